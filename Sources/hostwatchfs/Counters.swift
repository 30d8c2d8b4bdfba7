import HostWatch

/// What was done with the daemon's records since the mount.
struct Counters: Sendable {
  var records: UInt64 = 0
  /// Records whose changes were performed again on the mount.
  var replayed: UInt64 = 0
  /// Records that were applied by invalidating what they name.
  var invalidated: UInt64 = 0
  /// Records that newer ones, or a client's own operation, had made void.
  var superseded: UInt64 = 0
  /// Names that had to be put right after the records about them.
  var settled: UInt64 = 0
  /// Changes that could not be performed again, by reason.
  var failures: [String: UInt64] = [:]
  /// Times that the server was out of step with the daemon.
  var outOfStep: UInt64 = 0
}

/// Counters that any thread may change.
final class Statistics: Sendable {
  private let counters = Locked(Counters())

  var value: Counters { counters.withLock { $0 } }
  func count(_ change: (inout Counters) -> Void) { counters.withLock { change(&$0) } }
}
