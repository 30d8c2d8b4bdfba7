import CHostWatch
import Glibc
import Testing

@testable import HostWatch

/// A client that stays in step by itself, against daemons that go and come.
@Suite(.timeLimit(.minutes(3))) struct ClientReconnectionTests {
  typealias Client = HostWatchClient

  /// Daemons one after the other; without any left, there is no socket.
  private struct Daemons: Sendable {
    let left: Locked<[@Sendable (FakeDaemon) -> Void]>

    init(_ scripts: [@Sendable (FakeDaemon) -> Void]) { left = Locked(scripts) }

    func connect() throws(Client.Failure) -> Client.Connection {
      guard let next = left.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) else {
        throw .system(SystemError("connect", ECONNREFUSED))
      }
      do {
        return try FakeDaemon.start(next)
      } catch {
        throw .system(SystemError("socketpair", EMFILE))
      }
    }
  }

  /// A client with one node, and the moments with which it was asked for it.
  private func client(
    _ daemons: Daemons, mode: Client.Attachment.Mode = .nodes,
    since moments: Locked<[Client.Moment]> = Locked([])
  ) async throws -> Client {
    let reconnection = Client.Reconnection(syncIntervalMilliseconds: 1) { client, since in
      moments.withLock { $0.append(since) }
      let node = NodeID(nodeid: 4, generation: 1)
      _ = try await client.register([.init(node, descriptor: 0, since: since)])
    }
    return try await Client(.init(.share("src"), mode: mode), reconnection: reconnection) {
      () throws(Client.Failure) in try daemons.connect()
    }
  }

  private static func answerSync(_ daemon: FakeDaemon) -> Bool {
    guard let request = daemon.receive(), request.header.type == UInt16(HW_SYNC) else {
      return false
    }
    daemon.send(Packets.synced(unique: request.header.unique))
    return true
  }

  /// Answers a REGISTER of one node: its `since`.
  @discardableResult
  private static func answerRegister(_ daemon: FakeDaemon) -> Client.Moment? {
    guard let request = daemon.receive(), request.header.type == UInt16(HW_REGISTER) else {
      return nil
    }
    daemon.send(Packets.statuses(HW_REGISTER, unique: request.header.unique, [0]))
    let entry = load(request.packet, 24, hw_register_entry.self)
    return Client.Moment(seconds: entry.since_sec, nanoseconds: entry.since_nsec)
  }

  private func word(_ event: Client.Event?) -> String {
    switch event {
    case .record: "record"
    case .lost: "lost"
    case .resynced: "resynced"
    case .detached: "detached"
    case .disconnected: "disconnected"
    case .connected: "connected"
    case .outOfStep: "out"
    case .inStep: "in"
    case nil: "end"
    }
  }

  /// The next events, up to and with the one that `last` names.
  private func words(_ client: Client, to last: String) async -> [String] {
    var words: [String] = []
    repeat {
      words.append(word(await client.events.makeAsyncIterator().next()))
    } while words.last != last && words.last != "end" && words.count < 50
    return words
  }

  private static func nanoseconds(_ moment: Client.Moment) -> Int64 {
    moment.seconds * 1_000_000_000 + Int64(moment.nanoseconds)
  }

  @Test func aLostConnectionIsMadeUpFor() async throws {
    let bounds = Locked<[Int64]>([])
    let asked = Locked<Client.Moment?>(nil)
    let moments = Locked<[Client.Moment]>([])
    let daemons = Daemons([
      { daemon in
        daemon.grant()
        daemon.send(Packets.events([Packets.record(1)]))
        guard Self.answerSync(daemon) else { return }
        // The moments have to lie apart, so that it shows which of them is asked for.
        usleep(30_000)
        bounds.withLock { $0.append(Self.nanoseconds(.now())) }
        daemon.send(Packets.events([Packets.record(2)]))
        guard Self.answerSync(daemon) else { return }
        bounds.withLock { $0.append(Self.nanoseconds(.now())) }
        usleep(30_000)
        daemon.send(Packets.events([Packets.record(3)]))
      },
      { daemon in
        daemon.grant()
        let since = Self.answerRegister(daemon)
        asked.withLock { $0 = since }
        daemon.send(Packets.events([Packets.record(1, [], flags: UInt32(HW_RECHECK))]))
        guard Self.answerSync(daemon) else { return }
        daemon.send(Packets.events([Packets.record(2)]))
        while daemon.receive() != nil {}
      },
    ])
    let client = try await client(daemons, since: moments)
    #expect(
      await words(client, to: "in") == [
        "record", "record", "record", "out", "disconnected", "connected", "record", "record", "in",
      ])
    #expect(await words(client, to: "record") == ["record"])
    let used = moments.withLock { $0 }
    #expect(used.count == 1)
    #expect(asked.withLock { $0 } == used.first)
    let since = Self.nanoseconds(try #require(used.first))
    let (early, late) = bounds.withLock { ($0.first ?? 0, $0.last ?? 0) }
    #expect(since >= early && since <= late)
  }

  @Test func itStartsOverWhenTheConnectionIsLostAgain() async throws {
    let moments = Locked<[Client.Moment]>([])
    let daemons = Daemons([
      { $0.grant() },
      { daemon in  // gone before the registration is answered
        daemon.grant()
        _ = daemon.receive()
      },
      { _ = $0.receive() },  // gone before INIT is
      { daemon in  // gone before the SYNC is
        daemon.grant()
        Self.answerRegister(daemon)
        _ = daemon.receive()
      },
      { daemon in
        daemon.grant()
        Self.answerRegister(daemon)
        daemon.send(Packets.lost(1, sequence: 0))
        daemon.send(Packets.resynced(0, checked: 1, reported: 0))
        _ = Self.answerSync(daemon)
        while daemon.receive() != nil {}
      },
    ])
    let client = try await client(daemons, since: moments)
    // The client's own records of the root may come between.
    let words = await words(client, to: "in").filter { $0 != "record" }
    #expect(
      words == [
        "out", "disconnected", "connected", "disconnected", "connected", "disconnected",
        "connected", "lost", "resynced", "in",
      ])
    let used = moments.withLock { $0 }
    #expect(used.count == 3 && Set(used).count == 1)
  }

  @Test func aLossIsTheSameTwoMarks() async throws {
    let daemons = Daemons([
      { daemon in
        daemon.grant()
        daemon.send(Packets.lost(2, sequence: 0))
        daemon.send(Packets.events([Packets.record(1)]))
        daemon.send(Packets.resynced(1, checked: 3, reported: 1))
      },
      { daemon in
        daemon.grant()
        while daemon.receive() != nil {}
      },
    ])
    let client = try await client(daemons, mode: .tree)
    #expect(await words(client, to: "in") == ["out", "lost", "record", "resynced", "in"])
    #expect(await words(client, to: "in") == ["out", "disconnected", "connected", "in"])
  }

  @Test(arguments: [HW_DETACHED_UNMOUNTED, HW_DETACHED_REMOVED])
  func aSessionThatEndedForGoodIsLeftAlone(_ reason: UInt32) async throws {
    let daemons = Daemons([
      { daemon in
        daemon.grant()
        daemon.send(Packets.detached(reason))
      },
      { daemon in
        daemon.grant()
        Self.answerRegister(daemon)
        _ = Self.answerSync(daemon)
        while daemon.receive() != nil {}
      },
    ])
    let client = try await client(daemons)
    #expect(await words(client, to: "end") == ["out", "detached", "disconnected", "end"])
    #expect(daemons.left.withLock { $0.count } == 1)
    try await client.reconnect()
    #expect(await words(client, to: "in") == ["connected", "record", "in"])
  }

  @Test func aShutdownAndPassingRefusalsAreNoEnd() async throws {
    let refuse: @Sendable (FakeDaemon, Int32) -> Void = { daemon, code in
      guard let request = daemon.receive() else { return }
      daemon.send(Packets.refusal(HW_INIT, unique: request.header.unique, code: code, "because"))
      _ = daemon.receive()
    }
    let daemons = Daemons([
      { daemon in
        daemon.grant()
        daemon.send(Packets.detached(HW_DETACHED_SHUTDOWN))
      },
      { refuse($0, ENODEV) },
      { refuse($0, EUSERS) },
      { daemon in
        daemon.grant()
        Self.answerRegister(daemon)
        _ = Self.answerSync(daemon)
      },
      { refuse($0, EACCES) },
      { _ in },
    ])
    let client = try await client(daemons)
    #expect(
      await words(client, to: "end") == [
        "out", "detached", "disconnected", "connected", "record", "in", "out", "disconnected",
        "end",
      ])
    #expect(daemons.left.withLock { $0.count } == 1)
  }

  @Test func closingEndsTheAttempts() async throws {
    let client = try await client(Daemons([{ $0.grant() }]))
    #expect(await words(client, to: "disconnected") == ["out", "disconnected"])
    async let next = client.events.makeAsyncIterator().next()
    client.close()
    #expect(word(await next) == "end")
  }
}
