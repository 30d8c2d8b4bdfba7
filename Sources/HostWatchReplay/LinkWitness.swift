import CReplay
import Glibc
import HostWatch

/// Tells the mount's kernel a link count before it counts down by itself.
///
/// When a client of the mount removes one of an object's names, its kernel takes one from the
/// count that it knows, and raises DELETE_SELF at 0. If the host has made another name
/// meanwhile, the kernel may not know: then the object would be said to be
/// gone that lives on. So before such a request is answered, another process asks for the
/// object's attributes, and is told one link more than are left.
///
/// The request waits for it, as long for its turn and for the answer: the kernel holds no lock that this
/// takes. Its handler does not: were all handlers here, none would answer what the process asks.
/// If the process does not answer it is ended, and started anew for the next; one that was
/// killed is started anew at once.
final class LinkWitness: Sendable {
  static let argument = "--witness"
  private static let waitMilliseconds = 100

  private final class Process: Sendable {
    private let replayer: Replayer
    init(_ replayer: consuming Replayer) { self.replayer = replayer }
    func call(_ request: replay_request) -> Replayer.Answer { replayer.call(request) }
  }

  private struct State: Sendable {
    var mount: Int32?
    var process: Process?
  }
  private let state: Locked<State>
  /// Nodes whose count is one higher at the moment, and how often.
  private let raised = Locked<[UInt64: Int]>([:])

  private struct Waiting: Sendable {
    let node: NodeID
    /// Nobody is asked after this, nanoseconds.
    let end: UInt64
    let then: @Sendable (Int32) -> Void
  }
  private struct Queue: Sendable {
    var waiting: [Waiting] = []
    /// The thread takes what is put in.
    var isOpen = false
  }
  private let queue = Monitor(Queue())
  private let finished = Monitor(false)

  /// The descriptor is the engine's; not used after `stop`.
  init(mount: Int32) { state = Locked(State(mount: mount)) }

  /// Starts the process, so that the first who asks does not wait for that. If it cannot
  /// be started who asks is told. Without a thread it is handlers that wait.
  func start() {
    state.withLock { _ = try? Self.process(&$0) }
    queue.change { $0.isOpen = true }
    do throws(SystemError) {
      try BackgroundThread.start { [self] in
        while let one = next() { complete(one) }
        finished.change { $0 = true }
      }
    } catch {
      queue.change { $0.isOpen = false }
    }
  }

  /// Returns when no `then` is called any more but in `tell`.
  func stop() {
    state.withLock { $0 = State() }
    let isRunning = queue.change { queue in
      defer { queue.isOpen = false }
      return queue.isOpen
    }
    guard isRunning else { return }
    _ = finished.wait(until: nil) { $0 ? true : nil }
  }

  /// Nil at the end.
  private func next() -> Waiting? {
    queue.wait(until: nil) { queue -> Waiting?? in
      if !queue.waiting.isEmpty { return queue.waiting.removeFirst() }
      return queue.isOpen ? nil : .some(nil)
    } ?? nil
  }

  func bias(of nodeid: UInt64) -> Int { raised.withLock { $0[nodeid] ?? 0 } }

  /// Has the kernel ask, and calls `then` after that, with 0 or why it did not. ESTALE: it does
  /// not know the node.
  func tell(_ node: NodeID, then: @escaping @Sendable (Int32) -> Void) {
    raised.withLock { $0[node.nodeid, default: 0] += 1 }
    let end = monotonicNanoseconds() + UInt64(Self.waitMilliseconds) * 1_000_000
    let one = Waiting(node: node, end: end, then: then)
    let isQueued = queue.change { queue in
      if queue.isOpen { queue.waiting.append(one) }
      return queue.isOpen
    }
    if !isQueued { complete(one) }
  }

  private func complete(_ one: Waiting) {
    let result = ask(one.node, until: one.end)
    raised.withLock {
      let count = ($0[one.node.nodeid] ?? 1) - 1
      $0[one.node.nodeid] = count > 0 ? count : nil
    }
    one.then(result)
  }

  private func ask(_ node: NodeID, until end: UInt64) -> Int32 {
    var request = replay_request()
    request.operation = REPLAY_ASK.rawValue
    request.object = replay_place(node)
    return state.withLock { state in
      // One that was killed meanwhile has not taken the time: another is asked.
      while monotonicNanoseconds() < end {
        let process: Process
        do throws(SystemError) {
          guard let one = try Self.process(&state) else { return EPIPE }
          process = one
        } catch {
          return error.code
        }
        switch process.call(request) {
        case .done: return 0
        case .failed(let number): return number
        case .pathNeeded, .objectNotHeld: return ESTALE
        case .ended: state.process = nil
        }
      }
      return ETIMEDOUT
    }
  }

  /// Nil at the end.
  private static func process(_ state: inout State) throws(SystemError) -> Process? {
    if state.process == nil, let mount = state.mount {
      let started = try Replayer(mount: mount, as: argument)
      started.limitWait(milliseconds: waitMilliseconds)
      state.process = Process(started)
    }
    return state.process
  }
}
