import Glibc
import Synchronization

/// What a `HostWatchClient` and its reading thread share.
///
/// In: the packets of one connection after the other. Out: events to whoever
/// iterates, replies to whoever asked. It holds that an event is given once and
/// in order, that every request ends with a reply or a failure, and that the
/// buffer is bounded. No continuation is resumed under the lock.
final class ClientCore: Sendable {
  typealias Client = HostWatchClient
  typealias Failure = HostWatchClient.Failure

  enum Phase {
    case disconnected
    /// INIT is under way.
    case connecting
    case connected
    /// The client is to connect again by itself.
    case reconnecting
    case closed
  }

  struct Pending {
    let type: UInt16
    /// Of a SYNC: what its answer says to be told, if that counts.
    var moment: Client.Moment?
    /// The SYNC behind the registrations of a new session.
    var joins = false
    let continuation: CheckedContinuation<Result<Client.Reply, Failure>, Never>
  }

  struct Waiter {
    let id: UInt64
    let continuation: CheckedContinuation<Client.Event?, Never>
  }

  struct State {
    var phase = Phase.disconnected
    /// Counts connections, so that the thread of an old one changes nothing.
    var epoch: UInt64 = 0
    var connection: Client.Connection?
    var session: Client.Session?
    var pending: [UInt64: Pending] = [:]
    var buffer = EventBuffer()
    var hardLimitBytes = Int.max
    var waiters: [Waiter] = []
    var readerWaits = false
    var step = StepState()
  }

  let attachment: Client.Attachment
  // The attachment's own root directory, or -1. Closed in deinit.
  private let directory: Int32
  let bufferLimitBytes: Int
  let reconnection: Client.Reconnection?
  private let connecting: @Sendable () throws(Failure) -> Client.Connection
  let state = Locked(State())
  let room = ThreadSemaphore()
  private let lastWaiter = Atomic<UInt64>(0)

  init(
    _ attachment: Client.Attachment, _ bufferLimitBytes: Int,
    _ reconnection: Client.Reconnection?,
    _ connecting: @escaping @Sendable () throws(Failure) -> Client.Connection
  ) throws(Failure) {
    precondition(bufferLimitBytes > 0, "a buffer needs room")
    var own = attachment
    if case .directory(let descriptor) = attachment.root {
      directory = fcntl(descriptor, F_DUPFD_CLOEXEC, 0)
      guard directory >= 0 else { throw .system(SystemError("fcntl(F_DUPFD_CLOEXEC)", errno)) }
      own.root = .directory(directory)
    } else {
      directory = -1
    }
    self.attachment = own
    self.bufferLimitBytes = bufferLimitBytes
    self.reconnection = reconnection
    self.connecting = connecting
  }

  deinit {
    if directory >= 0 { _ = Glibc.close(directory) }
  }

  var session: Client.Session? { state.withLock { $0.session } }

  // MARK: Connecting

  /// - Parameter from: the phase it begins in, and goes back to if it fails.
  func connect(from phase: Phase = .disconnected) async throws(Failure) -> Client.Session {
    let epoch = try begin(phase)
    do throws(Failure) {
      let connection = try connecting()
      let current = state.withLock { state in
        guard state.epoch == epoch, state.phase == .connecting else { return false }
        state.connection = connection
        return true
      }
      guard current else { throw Failure.disconnected }
      try startReader(connection, epoch)
      guard case .session(let session) = try await perform(.attach(attachment)) else {
        throw Failure.unexpectedReply
      }
      return session
    } catch {
      abandon(epoch, phase)
      throw error
    }
  }

  private func begin(_ phase: Phase) throws(Failure) -> UInt64 {
    let result: Result<UInt64, Failure> = state.withLock { state in
      guard state.phase == phase else {
        let code = state.phase == .closed ? EBADF : EISCONN
        return .failure(.system(SystemError("connect", code)))
      }
      state.phase = .connecting
      state.epoch += 1
      state.step.begin(isFirst: state.epoch == 1)
      return .success(state.epoch)
    }
    return try result.get()
  }

  private func startReader(_ connection: Client.Connection, _ epoch: UInt64) throws(Failure) {
    do throws(SystemError) {
      try BackgroundThread.start { self.read(connection, epoch) }
    } catch {
      throw .system(error)
    }
  }

  /// Undoes an attempt to connect that failed, without an event.
  private func abandon(_ epoch: UInt64, _ phase: Phase) {
    let (connection, waiters) = state.withLock { state -> (Client.Connection?, [Waiter]) in
      guard state.epoch == epoch, state.phase == .connecting else { return (nil, []) }
      state.phase = phase
      let connection = state.connection
      state.connection = nil
      guard phase == .disconnected else { return (connection, []) }
      defer { state.waiters = [] }
      return (connection, state.waiters)
    }
    connection?.shutDown()
    for waiter in waiters { waiter.continuation.resume(returning: nil) }
  }

  func close() {
    let (connection, pending, waiters) = state.withLock { state in
      defer {
        state.phase = .closed
        state.connection = nil
        state.pending = [:]
        state.waiters = []
      }
      return (state.connection, state.pending, state.waiters)
    }
    connection?.shutDown()
    room.post()
    for request in pending.values {
      request.continuation.resume(returning: .failure(.disconnected))
    }
    for waiter in waiters { waiter.continuation.resume(returning: nil) }
  }

  // MARK: Requests

  /// - Parameter joining: makes a SYNC the one that is followed by `.inStep`.
  func perform(_ request: Client.Request, joining: Client.Moment? = nil) async throws(Failure)
    -> Client.Reply
  {
    let result = await withCheckedContinuation { submit(request, joining, $0) }
    if case .success(.refused(let refusal)) = result { throw .refused(refusal) }
    return try result.get()
  }

  private func submit(
    _ request: Client.Request, _ joining: Client.Moment?,
    _ continuation: CheckedContinuation<Result<Client.Reply, Failure>, Never>
  ) {
    // INIT is what connects; everything else waits for its reply.
    var phase = Phase.connected
    if case .attach = request { phase = .connecting }
    let connection = state.withLock { $0.phase == phase ? $0.connection : nil }
    guard let connection else {
      return continuation.resume(returning: .failure(.disconnected))
    }
    let unique = connection.nextUnique()
    let (accepted, wake) = state.withLock { state -> (Bool, Bool) in
      guard state.connection === connection else { return (false, false) }
      var pending = Pending(type: request.type, continuation: continuation)
      if case .sync = request {
        pending.moment = state.step.isJoined ? .now() : joining
        pending.joins = joining != nil
      }
      state.pending[unique] = pending
      defer { state.readerWaits = false }
      return (true, state.readerWaits)
    }
    guard accepted else { return continuation.resume(returning: .failure(.disconnected)) }
    // A reply may lie behind events, so from here on the reader reads.
    if wake { room.post() }
    do throws(Failure) {
      try connection.send(request, unique: unique)
    } catch {
      state.withLock { $0.pending.removeValue(forKey: unique) }?
        .continuation.resume(returning: .failure(error))
    }
  }

  /// Sends a request that has no reply.
  func post(_ request: Client.Request) throws(Failure) {
    guard let connection = state.withLock({ $0.phase == .connected ? $0.connection : nil }) else {
      throw .disconnected
    }
    try connection.send(request, unique: connection.nextUnique())
  }

  // MARK: Events

  private enum Taken {
    case event(Client.Event)
    case end
    case nothing
  }

  func next() async -> Client.Event? {
    switch take() {
    case .event(let event): return event
    case .end: return nil
    case .nothing: break
    }
    let id = lastWaiter.add(1, ordering: .relaxed).newValue
    return await withTaskCancellationHandler {
      await withCheckedContinuation { wait(Waiter(id: id, continuation: $0)) }
    } onCancel: {
      let waiter = state.withLock { state in
        state.waiters.firstIndex { $0.id == id }.map { state.waiters.remove(at: $0) }
      }
      waiter?.continuation.resume(returning: nil)
    }
  }

  private func wait(_ waiter: Waiter) {
    let taken = state.withLock { state -> Taken in
      // Whoever cancels looks for the waiter after it set this.
      if Task.isCancelled { return .end }
      let taken = take(&state)
      if case .nothing = taken { state.waiters.append(waiter) }
      return taken
    }
    switch taken {
    case .event(let event): waiter.continuation.resume(returning: event)
    case .end: waiter.continuation.resume(returning: nil)
    case .nothing: break
    }
  }

  private func take() -> Taken {
    let (taken, wake) = state.withLock { state -> (Taken, Bool) in
      let taken = take(&state)
      // Half a buffer of room, or the two threads would hand over every packet.
      guard state.readerWaits, state.buffer.bytes <= bufferLimitBytes / 2 else {
        return (taken, false)
      }
      state.readerWaits = false
      return (taken, true)
    }
    if wake { room.post() }
    return taken
  }

  private func take(_ state: inout State) -> Taken {
    if let event = state.buffer.pop() { return .event(event) }
    switch state.phase {
    case .connecting, .connected, .reconnecting: return .nothing
    case .disconnected, .closed: return .end
    }
  }
}
