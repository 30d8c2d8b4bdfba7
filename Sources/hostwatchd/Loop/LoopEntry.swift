import CFanotify
import CSystemd
import HostWatch

/// One source of sd-event's, and what it calls.
///
/// Always holds: `source` is non-nil from `adopt` to `cancel`, and sd-event
/// holds one retain of this object from `adopt` until it frees the source.
@safe
class LoopEntry {
  private(set) var source: OpaquePointer?
  /// Called when the kernel refuses what the entry has to wait for.
  private let failed: (SystemError) -> Void

  init(failed: @escaping (SystemError) -> Void) { self.failed = failed }

  /// Makes the sd-event source with this object as its userdata.
  final func adopt(
    _ call: String, priority: LoopPriority,
    _ add: (UnsafeMutableRawPointer, inout OpaquePointer?) -> Int32
  ) throws(SystemError) {
    let userdata = unsafe Unmanaged.passRetained(self)
    var added: OpaquePointer?
    let result = unsafe add(userdata.toOpaque(), &added)
    guard result >= 0, let added = unsafe added else {
      unsafe userdata.release()
      throw SystemError(call, -result)
    }
    unsafe source = unsafe added
    // From here on sd-event gives the retain back when it frees the source.
    _ = unsafe sd_event_source_set_destroy_callback(added) { userdata in
      guard let userdata = unsafe userdata else { return }
      unsafe Unmanaged<LoopEntry>.fromOpaque(userdata).release()
    }
    // Of a signal it makes another signalfd.
    let priorityResult = unsafe sd_event_source_set_priority(added, priority.rawValue)
    guard priorityResult >= 0 else {
      cancel()
      throw SystemError("sd_event_source_set_priority", -priorityResult)
    }
  }

  /// Takes the source out of the loop. sd-event drops what is pending of it
  /// at once and keeps its memory while its handler runs.
  func cancel() {
    guard let source = unsafe source else { return }
    unsafe self.source = nil
    _ = unsafe sd_event_source_disable_unref(source)
  }

  /// SD_EVENT_OFF, SD_EVENT_ON or SD_EVENT_ONESHOT.
  final func setEnabled(_ state: Int32) {
    guard let source = unsafe source else { return }
    check(unsafe sd_event_source_set_enabled(source, state), "sd_event_source_set_enabled")
  }

  /// What is not waited for any more would be silence to the clients.
  fileprivate final func check(_ result: Int32, _ call: String) {
    if result < 0 { failed(SystemError(call, -result)) }
  }

  /// The object behind a handler's userdata; nil once it is cancelled.
  static func live<Entry: LoopEntry>(_ userdata: UnsafeMutableRawPointer?, as: Entry.Type) -> Entry?
  {
    guard let userdata = unsafe userdata else { return nil }
    // `adopt` passed exactly such an object, and the retain it gave still counts.
    let entry = unsafe Unmanaged<LoopEntry>.fromOpaque(userdata).takeUnretainedValue()
    return unsafe entry.source == nil ? nil : entry as? Entry
  }
}

/// A descriptor that is watched.
final class DescriptorEntry: LoopEntry, LoopSource {
  private var handler: ((Readiness) -> Void)?
  private var isPaused = false

  init(failed: @escaping (SystemError) -> Void, handler: @escaping (Readiness) -> Void) {
    self.handler = handler
    super.init(failed: failed)
  }

  func setReadiness(_ readiness: Readiness) {
    guard let source = unsafe source else { return }
    check(
      unsafe sd_event_source_set_io_events(source, readiness.rawValue),
      "sd_event_source_set_io_events")
    if isPaused { setEnabled(Int32(SD_EVENT_ON)) }
    isPaused = false
  }

  func pause() {
    isPaused = true
    // sd-event takes a source that is off out of the epoll set.
    setEnabled(Int32(SD_EVENT_OFF))
  }

  override func cancel() {
    super.cancel()
    handler = nil
  }

  func fire(_ readiness: Readiness) { handler?(readiness) }
}

/// A one-shot timer that can be armed again.
final class TimerEntry: LoopEntry, LoopTimer {
  private var handler: (() -> Void)?

  init(failed: @escaping (SystemError) -> Void, handler: @escaping () -> Void) {
    self.handler = handler
    super.init(failed: failed)
  }

  func arm(afterMicroseconds microseconds: UInt64) {
    guard let source = unsafe source else { return }
    let (sum, overflow) = monotonicMicroseconds().addingReportingOverflow(microseconds)
    // UINT64_MAX would mean "never" to sd-event; a sum that large is as good.
    check(
      unsafe sd_event_source_set_time(source, overflow ? UInt64.max : sum),
      "sd_event_source_set_time")
    setEnabled(Int32(SD_EVENT_ONESHOT))
  }

  func disarm() { setEnabled(Int32(SD_EVENT_OFF)) }

  override func cancel() {
    super.cancel()
    handler = nil
  }

  func fire() { handler?() }
}

/// A signal.
final class SignalEntry: LoopEntry {
  private let handler: () -> Void
  init(failed: @escaping (SystemError) -> Void, handler: @escaping () -> Void) {
    self.handler = handler
    super.init(failed: failed)
  }
  func fire() { handler() }
}

/// Runs once after other work of the loop, each time it is armed.
final class AfterWork: LoopEntry {
  private let handler: () -> Void
  init(failed: @escaping (SystemError) -> Void, handler: @escaping () -> Void) {
    self.handler = handler
    super.init(failed: failed)
  }
  func arm() { setEnabled(Int32(SD_EVENT_ONESHOT)) }
  func fire() { handler() }
}

// sd-event's side of the handlers: plain C functions. A negative result would
// switch the source off, so they never give one.

let descriptorReady: sd_event_io_handler_t = { _, _, events, userdata in
  unsafe LoopEntry.live(userdata, as: DescriptorEntry.self)?.fire(Readiness(rawValue: events))
  return 0
}

let timeReached: sd_event_time_handler_t = { _, _, userdata in
  unsafe LoopEntry.live(userdata, as: TimerEntry.self)?.fire()
  return 0
}

let signalArrived: sd_event_signal_handler_t = { _, _, userdata in
  unsafe LoopEntry.live(userdata, as: SignalEntry.self)?.fire()
  return 0
}

let workDone: sd_event_handler_t = { _, userdata in
  unsafe LoopEntry.live(userdata, as: AfterWork.self)?.fire()
  return 0
}
