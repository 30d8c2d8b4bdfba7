import Glibc
import HostWatch

/// An event loop that does as much as it is told to. Descriptors are polled;
/// timers go off when nothing is ready, in the order of their times, without
/// waiting for them.
public final class TurnLoop: EventLoop {
  final class Source: LoopSource {
    let descriptor: Int32
    var readiness: Readiness
    let handler: (Readiness) -> Void
    weak var loop: TurnLoop?

    init(_ descriptor: Int32, _ readiness: Readiness, _ handler: @escaping (Readiness) -> Void) {
      (self.descriptor, self.readiness, self.handler) = (descriptor, readiness, handler)
    }
    func setReadiness(_ readiness: Readiness) { self.readiness = readiness }
    func cancel() { loop?.sources.removeAll { $0 === self } }
  }

  final class Timer: LoopTimer {
    let handler: () -> Void
    var due: UInt64?
    weak var loop: TurnLoop?

    init(_ handler: @escaping () -> Void) { self.handler = handler }
    func arm(afterMicroseconds microseconds: UInt64) { due = (loop?.now ?? 0) + microseconds }
    func disarm() { due = nil }
    func cancel() {
      due = nil
      loop?.timers.removeAll { $0 === self }
    }
  }

  private var sources: [Source] = []
  private var timers: [Timer] = []
  private var now: UInt64 = 0

  public init() {}

  public func watch(
    _ descriptor: Int32, for readiness: Readiness, priority: LoopPriority,
    handler: @escaping (Readiness) -> Void
  ) throws(SystemError) -> any LoopSource {
    let source = Source(descriptor, readiness, handler)
    source.loop = self
    sources.append(source)
    return source
  }

  public func timer(priority: LoopPriority, handler: @escaping () -> Void) throws(SystemError)
    -> any LoopTimer
  {
    let timer = Timer(handler)
    timer.loop = self
    timers.append(timer)
    return timer
  }

  /// Runs until nothing is ready, or `limit` turns; timers up to `horizon`
  /// microseconds from now go off as well. How many turns it took.
  @discardableResult
  public func run(turns limit: Int, horizon: UInt64 = 20_000) -> Int {
    let end = now + horizon
    for turn in 0..<limit {
      if dispatchReady() { continue }
      guard let timer = timers.filter({ $0.due != nil }).min(by: { $0.due! < $1.due! }),
        let due = timer.due, due <= end
      else { return turn }
      now = max(now, due)
      timer.due = nil
      timer.handler()
    }
    return limit
  }

  private func dispatchReady() -> Bool {
    let before = sources
    var polled = before.map {
      pollfd(
        fd: $0.descriptor, events: Int16(truncatingIfNeeded: $0.readiness.rawValue), revents: 0)
    }
    guard poll(&polled, nfds_t(polled.count), 0) > 0 else { return false }
    var didSomething = false
    for (source, result) in zip(before, polled) where result.revents != 0 {
      // One that ran before may have cancelled it.
      guard sources.contains(where: { $0 === source }) else { continue }
      let ready = Readiness(rawValue: UInt32(UInt16(bitPattern: result.revents)))
      source.handler(ready)
      didSomething = true
    }
    return didSomething
  }
}
