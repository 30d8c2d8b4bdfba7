import CFanotify
import CSystemd
import HostWatch

/// sd-event as the library's `EventLoop`.
///
/// A source is an object that sd-event holds as its userdata, retained until
/// sd-event frees its side, which it does only after a handler that runs has
/// returned. So a handler may cancel its own source and any other, and a
/// cancelled source is neither called again nor freed while it runs.
@safe
final class SystemdLoop: EventLoop {
  private let event: OpaquePointer
  /// Signals and post-processing: they live as long as the loop.
  private var sources: [LoopEntry] = []
  /// Why the loop cannot go on.
  private var failure: SystemError?

  init() throws(SystemError) {
    var event: OpaquePointer?
    let result = unsafe sd_event_new(&event)
    guard result >= 0, let event = unsafe event else { throw SystemError("sd_event_new", -result) }
    unsafe self.event = unsafe event
  }

  deinit {
    for source in sources { source.cancel() }
    _ = unsafe sd_event_unref(event)
  }

  func watch(
    _ descriptor: Int32, for readiness: Readiness, priority: LoopPriority,
    handler: @escaping (Readiness) -> Void
  ) throws(SystemError) -> any LoopSource {
    let entry = DescriptorEntry(failed: failing, handler: handler)
    try unsafe entry.adopt("sd_event_add_io", priority: priority) { userdata, source in
      unsafe sd_event_add_io(
        event, &source, descriptor, readiness.rawValue, descriptorReady, userdata)
    }
    return entry
  }

  func timer(priority: LoopPriority, handler: @escaping () -> Void) throws(SystemError)
    -> any LoopTimer
  {
    let entry = TimerEntry(failed: failing, handler: handler)
    try unsafe entry.adopt("sd_event_add_time", priority: priority) { userdata, source in
      // Accuracy 1: zero would mean the default of 250 ms.
      unsafe sd_event_add_time(event, &source, CLOCK_MONOTONIC, 0, 1, timeReached, userdata)
    }
    entry.disarm()
    return entry
  }

  /// Calls `handler` whenever the signal arrives, from the loop. The caller
  /// blocked the signal before any thread was started.
  func signal(_ number: Int32, handler: @escaping () -> Void) throws(SystemError) {
    let entry = SignalEntry(failed: failing, handler: handler)
    try unsafe entry.adopt("sd_event_add_signal", priority: .urgent) { userdata, source in
      unsafe sd_event_add_signal(event, &source, number, signalArrived, userdata)
    }
    sources.append(entry)
  }

  /// A handler that runs once after something else has been handled, each
  /// time it is armed.
  func afterWork(handler: @escaping () -> Void) throws(SystemError) -> AfterWork {
    let entry = AfterWork(failed: failing, handler: handler)
    try unsafe entry.adopt("sd_event_add_post", priority: .normal) { userdata, source in
      unsafe sd_event_add_post(event, &source, workDone, userdata)
    }
    entry.arm()
    sources.append(entry)
    return entry
  }

  /// What an entry calls that cannot wait any more: the loop ends, and `run` throws.
  private var failing: (SystemError) -> Void {
    { [weak self] error in
      guard let self, self.failure == nil else { return }
      self.failure = error
      self.exit(0)
    }
  }

  /// Runs until `exit`; returns its code.
  func run() throws(SystemError) -> Int32 {
    let result = unsafe sd_event_loop(event)
    if let failure { throw failure }
    guard result >= 0 else { throw SystemError("sd_event_loop", -result) }
    return result
  }

  func exit(_ code: Int32) {
    _ = unsafe sd_event_exit(event, code)
  }
}

/// Microseconds on CLOCK_MONOTONIC, now. (sd_event_now would give the time at
/// which this turn of the loop began.)
func monotonicMicroseconds() -> UInt64 {
  var now = timespec()
  _ = unsafe clock_gettime(CLOCK_MONOTONIC, &now)
  return UInt64(now.tv_sec) * 1_000_000 + UInt64(now.tv_nsec) / 1000
}
