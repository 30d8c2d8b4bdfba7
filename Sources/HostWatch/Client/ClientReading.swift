import Glibc

/// What the reading thread does.
extension ClientCore {
  func read(_ connection: Client.Connection, _ epoch: UInt64) {
    do throws(Failure) {
      while awaitRoom(epoch), let packet = try connection.receive() {
        try deliver(packet, epoch)
      }
      end(epoch, nil)
    } catch {
      connection.shutDown()
      end(epoch, error)
    }
  }

  /// Returns when the next packet may be read; false when the connection is
  /// not the current one any more.
  private func awaitRoom(_ epoch: UInt64) -> Bool {
    while true {
      let goOn = state.withLock { state -> Bool? in
        guard state.epoch == epoch, state.phase != .closed else { return false }
        if state.buffer.bytes < bufferLimitBytes || !state.pending.isEmpty { return true }
        state.readerWaits = true
        return nil
      }
      if let goOn { return goOn }
      room.wait()
    }
  }

  private func deliver(_ packet: Client.Packet, _ epoch: UInt64) throws(Failure) {
    switch packet {
    case .reply(let unique, let type, let reply): try answer(unique, type, reply, epoch)
    case .events(let batch): try push(epoch) { $0.push(batch) }
    case .lost(let reason, let sequence):
      try push(epoch) { $0.push(.lost(reason, sequence: sequence)) }
    case .resynced(let resync): try push(epoch) { $0.push(.resynced(resync)) }
    case .detached(let reason): try push(epoch) { $0.push(.detached(reason)) }
    }
  }

  private func push(_ epoch: UInt64, _ body: (inout EventBuffer) -> Void) throws(Failure) {
    let (overfull, ready) = state.withLock { state -> (Bool, [Ready]) in
      guard state.epoch == epoch, state.phase == .connected else { return (false, []) }
      body(&state.buffer)
      return (state.buffer.bytes > state.hardLimitBytes, serve(&state))
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
    if overfull { throw .system(SystemError("event buffer", ENOBUFS)) }
  }

  private typealias Ready = (Waiter, Client.Event)

  /// Hands buffered events to those who wait, oldest first.
  private func serve(_ state: inout State) -> [Ready] {
    var ready: [Ready] = []
    while !state.waiters.isEmpty, let event = state.buffer.pop() {
      ready.append((state.waiters.removeFirst(), event))
    }
    return ready
  }

  private func answer(_ unique: UInt64, _ type: UInt16, _ reply: Client.Reply, _ epoch: UInt64)
    throws(Failure)
  {
    let (pending, ready) = state.withLock { state -> (Pending?, [Ready]) in
      guard state.epoch == epoch, let pending = state.pending.removeValue(forKey: unique) else {
        return (nil, [])
      }
      if case .session(let session) = reply, pending.type == type {
        adopt(session, &state)
      }
      return (pending, serve(&state))
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
    if case .refused(let refusal) = reply {
      // Without a request it is about a FORGET or an unreadable message, and final.
      guard let pending else { throw .refused(refusal) }
      return pending.continuation.resume(returning: .success(reply))
    }
    guard let pending else { throw .unexpectedReply }
    guard pending.type == type else {
      pending.continuation.resume(returning: .failure(.unexpectedReply))
      throw .unexpectedReply
    }
    pending.continuation.resume(returning: .success(reply))
  }

  private func adopt(_ session: Client.Session, _ state: inout State) {
    // The first session's id is the initializer's to tell.
    if state.session != nil { state.buffer.push(.connected(sessionID: session.id)) }
    state.session = session
    state.phase = .connected
    state.hardLimitBytes = bufferLimitBytes + 4 * Int(session.queueLimitBytes)
  }

  /// The connection is over: every request fails, and whoever iterates learns it.
  private func end(_ epoch: UInt64, _ failure: Failure?) {
    let (pending, ready, waiters) = state.withLock { state -> ([Pending], [Ready], [Waiter]) in
      guard state.epoch == epoch else { return ([], [], []) }
      let pending = Array(state.pending.values)
      state.pending = [:]
      guard state.phase == .connected else { return (pending, [], []) }
      state.phase = .disconnected
      state.connection = nil
      state.buffer.push(.disconnected(failure.map(\.systemError)))
      let ready = serve(&state)
      defer { state.waiters = [] }
      return (pending, ready, state.waiters)
    }
    for request in pending {
      request.continuation.resume(returning: .failure(failure ?? .disconnected))
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
    for waiter in waiters { waiter.continuation.resume(returning: nil) }
  }
}

extension HostWatchClient.Failure {
  /// The failure as an error of a call, its text included.
  var systemError: SystemError {
    switch self {
    case .system(let error): error
    case .refused(let refusal): SystemError(refusal.text, refusal.code)
    case .malformed: SystemError(description, EPROTO)
    case .disconnected: SystemError("the daemon hung up", ECONNRESET)
    }
  }
}
