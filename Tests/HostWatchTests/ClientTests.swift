import CHostWatch
import Glibc
import Testing

@testable import HostWatch

/// The client against a fake daemon.
@Suite(.timeLimit(.minutes(3))) struct ClientTests {
  typealias Client = HostWatchClient
  private static let attachment = Client.Attachment(.share("src"))

  /// A client whose daemon follows `script` after it granted the session.
  private func client(
    bufferLimitBytes: Int = 1 << 20, queueLimit: UInt32 = 65536,
    _ script: @escaping @Sendable (FakeDaemon) -> Void
  ) async throws -> Client {
    let connection = try FakeDaemon.start { daemon in
      if daemon.grant(queueLimit: queueLimit) { script(daemon) }
    }
    return try await Client(Self.attachment, bufferLimitBytes: bufferLimitBytes) { connection }
  }

  @Test func initCarriesTheAttachment() async throws {
    let seen = Locked<[UInt8]>([])
    let connection = try FakeDaemon.start { daemon in
      guard let request = daemon.receive() else { return }
      seen.withLock { $0 = request.packet }
      daemon.send(Packets.session(unique: request.header.unique, id: 42))
    }
    var attachment = Client.Attachment(
      .share("src"), mode: .tree, options: [.wantPath], events: [.create, .rename])
    attachment.maxDelayMicroseconds = 5
    let client = try await Client(attachment) { connection }
    #expect(client.session?.id == 42)
    let packet = seen.withLock { $0 }
    let message = load(packet, 0, hw_init.self)
    #expect(packet.count == 64 && message.header.size == 64)
    #expect(message.major == 1 && message.mode == 2 && message.options == HW_WANT_PATH)
    #expect(message.events == 0x1000_0100 && message.max_delay_us == 5)
    #expect(message.share_size == 3 && Array(packet[56...]) == Array("src\0\0\0\0\0".utf8))
  }

  @Test func aDirectoryGoesAsADescriptor() async throws {
    let directory = unsafe open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    let count = Locked(-1)
    let connection = try FakeDaemon.start { daemon in
      guard let request = daemon.receive() else { return }
      count.withLock { $0 = request.descriptors }
      daemon.send(Packets.session(unique: request.header.unique))
    }
    let client = try await Client(.init(.directory(directory))) { connection }
    // The client has its own by now.
    close(directory)
    #expect(count.withLock { $0 } == 1)
    client.close()
  }

  @Test func aRefusalSaysWhy() async throws {
    let connection = try FakeDaemon.start { daemon in
      guard let request = daemon.receive() else { return }
      daemon.send(
        Packets.refusal(HW_INIT, unique: request.header.unique, code: EACCES, "add uid 5"))
    }
    await #expect(throws: Client.Failure.refused(.init(code: EACCES, text: "add uid 5"))) {
      try await Client(Self.attachment) { connection }
    }
  }

  @Test func requestsGetTheirReplies() async throws {
    let client = try await client { daemon in
      while let request = daemon.receive() {
        let unique = request.header.unique
        switch UInt32(request.header.type) {
        case HW_REGISTER:
          let count = load(request.packet, 16, UInt32.self)
          guard Int(count) == request.descriptors else { return }
          var statuses = [Int32](repeating: 0, count: Int(count))
          statuses[0] = -EEXIST
          daemon.send(Packets.statuses(HW_REGISTER, unique: unique, statuses))
        case HW_INTEREST:
          daemon.send(Packets.statuses(HW_INTEREST, unique: unique, [-ENOENT]))
        case HW_SYNC: daemon.send(Packets.synced(unique: unique))
        case HW_STATUS:
          daemon.send(
            Packets.sized(Packets.bytes(Packets.reply(HW_STATUS, unique: unique)) + "{}".utf8))
        default: break
        }
      }
    }
    // More than one message's worth.
    let nodes = (0..<300).map {
      Client.Registration(NodeID(nodeid: 100 + $0, generation: 1), descriptor: 0)
    }
    let statuses = try await client.register(nodes)
    #expect(statuses.count == 300)
    #expect(statuses.indices.filter { statuses[$0]?.code == EEXIST } == [0, 250])
    try client.forget([NodeID(nodeid: 100, generation: 1)])
    #expect(try await client.setInterest([(.root, .create)]).map { $0?.code } == [ENOENT])
    try await client.sync()
    #expect(try await client.status() == "{}")
    await withTaskGroup(of: Bool.self) { group in
      for _ in 0..<50 { group.addTask { (try? await client.sync()) != nil } }
      for await done in group { #expect(done) }
    }
  }

  @Test func everythingIsVisibleInOrder() async throws {
    let client = try await client { daemon in
      daemon.send(Packets.events([Packets.record(1, name: [0x61])]))
      daemon.send(Packets.lost(1, sequence: 1))
      daemon.send(Packets.events([Packets.record(2)]))
      daemon.send(Packets.resynced(2, checked: 3, reported: 1))
      daemon.send(Packets.detached(2))
    }
    var seen: [String] = []
    for await event in client.events {
      switch event {
      case .record(let record): seen.append("record \(record.sequence)")
      case .lost(let reason, let sequence): seen.append("lost \(reason.rawValue) \(sequence)")
      case .resynced(let resync): seen.append("resynced \(resync.nodesChecked)")
      case .detached(let reason): seen.append("detached \(reason.rawValue)")
      case .disconnected(let error): seen.append("disconnected \(error?.description ?? "")")
      case .connected: seen.append("connected")
      case .outOfStep, .inStep: seen.append("a mark that nobody asked for")
      }
    }
    #expect(
      seen == ["record 1", "lost 1 1", "record 2", "resynced 3", "detached 2", "disconnected "])
    await #expect(throws: Client.Failure.disconnected) { try await client.sync() }
  }

  @Test func aMalformedPacketEndsTheSession() async throws {
    let client = try await client { daemon in
      daemon.send(Packets.events([Packets.record(1)]))
      daemon.send(Packets.events([Packets.record(3)]))
      _ = daemon.receive()
    }
    let events = client.events.makeAsyncIterator()
    guard case .record = await events.next() else {
      Issue.record("no record")
      return
    }
    guard case .disconnected(let error?) = await events.next() else {
      Issue.record("no error")
      return
    }
    #expect(error.code == EPROTO)
    #expect(error.call.contains("sequenceGap"))
    #expect(await events.next() == nil)
  }

  @Test func aHangUpFailsWhatIsPending() async throws {
    let client = try await client { daemon in _ = daemon.receive() }
    await #expect(throws: Client.Failure.disconnected) { try await client.sync() }
  }

  @Test func reconnectGoesOn() async throws {
    let connections = Locked<[Client.Connection]>(
      try (1...2).map { id in try FakeDaemon.start { $0.grant(id: UInt64(id)) } })
    let client = try await Client(Self.attachment) { () throws(Client.Failure) in
      guard let next = connections.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) else {
        throw .system(SystemError("connect", ECONNREFUSED))
      }
      return next
    }
    var seen: [Client.Event] = []
    for await event in client.events {
      seen.append(event)
      if case .disconnected = event { _ = try? await client.reconnect() }
    }
    #expect(seen == [.disconnected(nil), .connected(sessionID: 2), .disconnected(nil)])
    await #expect(throws: Client.Failure.system(SystemError("connect", ECONNREFUSED))) {
      try await client.reconnect()
    }
  }

  @Test func aSlowConsumerStopsTheReaderAndLosesNothing() async throws {
    let total: UInt64 = 100_000
    let stalled = Locked(false)
    let client = try await client(bufferLimitBytes: 65536) { daemon in
      for packet in Packets.storm(1...total) {
        if daemon.trySend(packet) { continue }
        stalled.withLock { $0 = true }
        daemon.send(packet)
      }
    }
    var next: UInt64 = 1
    for await event in client.events {
      guard case .record(let record) = event else { continue }
      // The consumer waits until the daemon has nowhere left to write.
      while !stalled.withLock({ $0 }) { await Task.yield() }
      guard record.sequence == next, record.name == .init("file-\(next)") else {
        Issue.record("record \(record.sequence) instead of \(next)")
        return
      }
      next += 1
    }
    #expect(next == total + 1)
    #expect(stalled.withLock { $0 })
  }

  @Test func aRequestIsAnsweredThoughTheBufferIsFull() async throws {
    let client = try await client(bufferLimitBytes: 4096, queueLimit: 1 << 20) { daemon in
      for packet in Packets.storm(1...2000) { daemon.send(packet) }
      while let request = daemon.receive() {
        daemon.send(Packets.synced(unique: request.header.unique))
      }
    }
    var count = 0
    for await event in client.events {
      guard case .record(let record) = event else { break }
      count += 1
      if record.sequence % 500 == 1 { try await client.sync() }
      if count == 2000 { break }
    }
    #expect(count == 2000)
  }

  @Test func aBufferThatOnlyGrowsEndsTheSession() async throws {
    let client = try await client(bufferLimitBytes: 4096, queueLimit: 4096) { daemon in
      _ = daemon.receive()
      for packet in Packets.storm(1...10_000) { daemon.send(packet) }
    }
    await #expect(throws: Client.Failure.system(SystemError("event buffer", ENOBUFS))) {
      try await client.sync()
    }
  }

  @Test func cancellingLosesNoEvent() async throws {
    let client = try await client { daemon in
      guard let request = daemon.receive() else { return }
      daemon.send(Packets.events([Packets.record(1)]))
      daemon.send(Packets.synced(unique: request.header.unique))
      _ = daemon.receive()
    }
    let waiting = Task { await client.events.makeAsyncIterator().next() }
    waiting.cancel()
    #expect(await waiting.value == nil)
    try await client.sync()
    guard case .record = await client.events.makeAsyncIterator().next() else {
      Issue.record("no record")
      return
    }
    client.close()
    #expect(await client.events.makeAsyncIterator().next() == nil)
  }

  @Test func tooManyEntriesAreRefusedHere() throws {
    let (_, connection) = try FakeDaemon.pair()
    let entries = (0..<251).map {
      Client.Registration(NodeID(nodeid: 2 + $0, generation: 0), descriptor: 0)
    }
    #expect(throws: Client.Failure.system(SystemError("register: 251 entries", EINVAL))) {
      try connection.send(.register(entries), unique: 1)
    }
  }
}
