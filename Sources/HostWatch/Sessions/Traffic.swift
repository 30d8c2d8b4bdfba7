/// What a session has been sent, or all sessions of a share together, those that
/// have ended included.
struct Traffic {
  /// Records queued.
  var delivered: UInt64 = 0
  /// Bytes of these.
  var bytes: UInt64 = 0
  /// Records among them that were worked out from the filesystem.
  var corrected: UInt64 = 0
  /// Gaps told with LOST.
  var lost: UInt64 = 0
  /// Records that found the queue full.
  var dropped: UInt64 = 0
  var lag = Lag()

  init() {}

  init(_ session: Session) {
    let state = unsafe session.state.pointee
    (delivered, bytes, corrected) = (state.sequence, state.bytes, state.corrected)
    (lost, dropped, lag) = (session.lostCount, state.dropped, session.lag)
  }

  mutating func add(_ other: Traffic) {
    delivered += other.delivered
    bytes += other.bytes
    corrected += other.corrected
    lost += other.lost
    dropped += other.dropped
    lag.add(other.lag)
  }
}
