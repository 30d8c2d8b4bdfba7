/// The loop that drives a `Hub`: what the library needs of one, without
/// naming any. `hostwatchd` implements it with libsystemd's sd-event.
///
/// Everything runs on the thread that runs the loop. Handlers are called from
/// it and never from within `watch` or `timer`.
public protocol EventLoop: AnyObject {
  /// Calls `handler` with what is ready whenever `descriptor` is ready for
  /// any of `readiness` (level-triggered), until the source is cancelled.
  ///
  /// - Throws: the errno of what the loop is made of, as ENOMEM, or epoll_ctl(2)'s
  ///   EPERM for a descriptor that cannot be waited for and ENOSPC.
  func watch(
    _ descriptor: Int32, for readiness: Readiness, priority: LoopPriority,
    handler: @escaping (Readiness) -> Void
  ) throws(SystemError) -> any LoopSource

  /// A timer that is not armed yet. It fires once each time it is armed.
  ///
  /// - Throws: the errno of what the loop is made of, as ENOMEM or EMFILE.
  func timer(priority: LoopPriority, handler: @escaping () -> Void) throws(SystemError)
    -> any LoopTimer
}

/// A descriptor in an `EventLoop`.
public protocol LoopSource: AnyObject {
  /// Changes what the source waits for; an empty set keeps it and waits for
  /// hang-ups alone.
  func setReadiness(_ readiness: Readiness)
  /// Waits for nothing at all, not even hang-ups, until `setReadiness`.
  /// To epoll(7) a descriptor that is watched for nothing is a wake-up whenever its
  /// wait queue is woken, and a fanotify group's is with each event.
  func pause()
  /// Takes the source out of the loop; its handler is not called again. The
  /// descriptor may be closed afterwards, not before.
  func cancel()
}

extension LoopSource {
  public func pause() { setReadiness([]) }
}

/// A timer in an `EventLoop`, on CLOCK_MONOTONIC.
public protocol LoopTimer: AnyObject {
  /// Fires once, that many microseconds from now; replaces an earlier time.
  func arm(afterMicroseconds microseconds: UInt64)
  /// Does not fire until it is armed again.
  func disarm()
  /// Takes the timer out of the loop for good.
  func cancel()
}

/// What a descriptor is ready for, in poll(2)'s and epoll(7)'s values.
public struct Readiness: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }

  /// EPOLLIN.
  public static let readable = Readiness(rawValue: 0x001)
  /// POLLPRI: what /proc/self/mountinfo gives when the mount table changed.
  public static let exceptional = Readiness(rawValue: 0x002)
  /// EPOLLOUT.
  public static let writable = Readiness(rawValue: 0x004)
  /// EPOLLERR, told without being asked for.
  public static let error = Readiness(rawValue: 0x008)
  /// EPOLLHUP, told without being asked for.
  public static let hangUp = Readiness(rawValue: 0x010)
}

/// Which of several ready sources goes first. Sources of one priority take
/// turns, so that neither a storm of events nor a client that never stops
/// asking keeps the others waiting.
public enum LoopPriority: Int64, Sendable {
  /// Signals.
  case urgent = -10
  /// Events, clients, and the work that keeps them true.
  case normal = 0
  /// What may wait for a quiet moment.
  case idle = 10
}
