import Glibc

/// What the reading thread does.
extension ClientCore {
  func read(_ connection: Client.Connection, _ epoch: UInt64) {
    do throws(Failure) {
      while awaitRoom(epoch), let packet = try receive(connection, epoch) {
        try deliver(packet, epoch)
      }
      end(epoch, nil)
    } catch {
      connection.shutDown()
      end(epoch, error)
    }
  }

  /// The next packet; sends the client's own SYNCs while it waits.
  private func receive(_ connection: Client.Connection, _ epoch: UInt64) throws(Failure)
    -> Client.Packet?
  {
    while true {
      let wait = timeUntilSync(epoch)
      if wait == 0 {
        sendOwnSync(connection, epoch)
        continue
      }
      do throws(Failure) {
        return try connection.receive(timeoutMilliseconds: wait)
      } catch {
        guard wait > 0, case .system(let cause) = error, cause.code == ETIMEDOUT else {
          throw error
        }
      }
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
    case .events(let batch):
      try push(epoch) { state in
        state.buffer.push(batch)
        wantSync(&state)
      }
    case .lost(let reason, let sequence):
      try push(epoch) { state in
        markOutOfStep(&state)
        state.step.isLost = true
        state.buffer.push(.lost(reason, sequence: sequence))
      }
    case .resynced(let resync):
      try push(epoch) { state in
        state.buffer.push(.resynced(resync))
        state.step.isLost = false
        wantSync(&state)
        // Before it has joined, the SYNC that follows says so.
        if state.step.isJoined { markInStep(&state) }
      }
    case .detached(let reason):
      try push(epoch) { state in
        markOutOfStep(&state)
        state.step.hasEnded = reason != .shutdown
        state.buffer.push(.detached(reason))
      }
    }
  }

  private func push(_ epoch: UInt64, _ body: (inout State) -> Void) throws(Failure) {
    let (overfull, ready) = state.withLock { state -> (Bool, [Ready]) in
      guard state.epoch == epoch, state.phase == .connected else { return (false, []) }
      body(&state)
      return (state.buffer.bytes > state.hardLimitBytes, serve(&state))
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
    if overfull { throw .system(SystemError("event buffer", ENOBUFS)) }
  }

  typealias Ready = (Waiter, Client.Event)

  /// Hands buffered events to those who wait, oldest first.
  func serve(_ state: inout State) -> [Ready] {
    var ready: [Ready] = []
    while !state.waiters.isEmpty, let event = state.buffer.pop() {
      ready.append((state.waiters.removeFirst(), event))
    }
    return ready
  }

  private func answer(_ unique: UInt64, _ type: UInt16, _ reply: Client.Reply, _ epoch: UInt64)
    throws(Failure)
  {
    if isOwnSync(unique, type, reply, epoch) { return }
    let (pending, ready) = state.withLock { state -> (Pending?, [Ready]) in
      guard state.epoch == epoch, let pending = state.pending.removeValue(forKey: unique) else {
        return (nil, [])
      }
      if case .session(let session) = reply, pending.type == type {
        adopt(session, &state)
      }
      if case .statuses = reply { wantSync(&state) }
      if case .synced = reply, pending.type == type { advance(pending, &state) }
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

  private func isOwnSync(
    _ unique: UInt64, _ type: UInt16, _ reply: Client.Reply, _ epoch: UInt64
  ) -> Bool {
    state.withLock { state in
      guard state.epoch == epoch, let sync = state.step.sync, sync.unique == unique,
        type == Client.Request.sync.type, case .synced = reply
      else { return false }
      state.step.sync = nil
      state.step.since = sync.moment
      return true
    }
  }

  /// A SYNC was answered.
  private func advance(_ pending: Pending, _ state: inout State) {
    if pending.joins {
      markJoined(pending.moment, &state)
    } else if let moment = pending.moment {
      state.step.since = moment
    }
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
    var rejoins = false
    let (pending, ready, waiters) = state.withLock { state -> ([Pending], [Ready], [Waiter]) in
      guard state.epoch == epoch else { return ([], [], []) }
      let pending = Array(state.pending.values)
      state.pending = [:]
      guard state.phase == .connected else { return (pending, [], []) }
      state.connection = nil
      markOutOfStep(&state)
      state.buffer.push(.disconnected(failure.map(\.systemError)))
      let ready = serve(&state)
      guard reconnection == nil || state.step.hasEnded else {
        state.phase = .reconnecting
        rejoins = !state.step.isRejoining
        state.step.isRejoining = true
        return (pending, ready, [])
      }
      state.phase = .disconnected
      defer { state.waiters = [] }
      return (pending, ready, state.waiters)
    }
    for request in pending {
      request.continuation.resume(returning: .failure(failure ?? .disconnected))
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
    for waiter in waiters { waiter.continuation.resume(returning: nil) }
    if rejoins { startRejoining() }
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
