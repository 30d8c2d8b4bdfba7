import CHostWatch

/// What the way of an event needs of a session: plain memory at a fixed
/// place, so that routing a record touches no reference count.
struct SessionState: BitwiseCopyable {
  let id: UInt64
  let isTree: Bool
  /// The events granted, without ISDIR.
  let events: EventMask
  let options: UInt32
  /// Whose changes are the session's own: echo_pid, or the peer; 0 once that
  /// process has ended, since its number may be given out again.
  var ownPID: Int32
  var queue: PacketQueue

  /// The record whose parties stand below.
  var stamp: UInt64 = 0
  /// Registrations of that record's directory, object and new directory, or 0.
  var directory: UInt32 = 0
  var object: UInt32 = 0
  var newDirectory: UInt32 = 0

  /// Of the last record queued.
  var sequence: UInt64 = 0
  /// Records are dropped: the queue was full and LOST has not been queued yet.
  var isLosing = false
  /// Records that were dropped so.
  var dropped: UInt64 = 0
  /// Of the records queued, without packet headers.
  var bytes: UInt64 = 0
  /// Records queued that were worked out from the filesystem.
  var corrected: UInt64 = 0

  init(
    id: UInt64, isTree: Bool, events: EventMask, options: UInt32, ownPID: Int32,
    queue: PacketQueue
  ) {
    self.id = id
    self.isTree = isTree
    self.events = events
    self.options = options
    self.ownPID = ownPID
    self.queue = queue
  }

  @inline(__always)
  func has(_ option: UInt32) -> Bool { options & option != 0 }
}
