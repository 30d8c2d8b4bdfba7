import CHostWatch
import Testing

@testable import HostWatch

@Suite struct ClientPacketReaderTests {
  typealias Client = HostWatchClient
  typealias Problem = HostWatchClient.PacketError.Problem

  private func read(_ packet: [UInt8]) throws -> Client.Packet {
    var reader = Client.PacketReader()
    return try reader.read(packet)
  }

  private func problem(_ packet: [UInt8]) -> Problem? {
    do {
      _ = try read(packet)
      return nil
    } catch {
      return (error as? Client.PacketError)?.problem
    }
  }

  @Test func recordsComeWithTheirNames() throws {
    let packet = Packets.events([
      Packets.record(
        1, [.rename, .isDirectory], flags: HW_CORRECTED, name: Array("old".utf8),
        newName: Array("new name".utf8), path: Array("a/b".utf8), newPath: Array("c".utf8)),
      Packets.record(2, .modify, name: [0xff, 0x0a]),
    ])
    guard case .events(let batch) = try read(packet) else {
      Issue.record("not a batch")
      return
    }
    let records = Array(batch)
    #expect(
      records == [
        Client.Record(
          sequence: 1, mask: [.rename, .isDirectory], flags: .corrected, directory: .root,
          node: NodeID(nodeid: 5, generation: 6), origin: 3, pid: 99, name: .init("old"),
          newName: .init("new name"), path: .init("a/b"), newPath: .init("c")),
        Client.Record(
          sequence: 2, mask: .modify, directory: .root, node: NodeID(nodeid: 5, generation: 6),
          origin: 3, pid: 99, name: .init([0xff, 0x0a])),
      ])
    #expect(records[1].name.string == nil)
  }

  @Test func notificationsAndReplies() throws {
    #expect(try read(Packets.lost(2, sequence: 0)) == .lost(.sessionQueue, sequence: 0))
    #expect(
      try read(Packets.resynced(9, checked: 4, reported: 2))
        == .resynced(.init(sequence: 9, nodesChecked: 4, nodesReported: 2)))
    #expect(try read(Packets.detached(3)) == .detached(.shutdown))
    #expect(
      try read(Packets.statuses(HW_REGISTER, unique: 4, [0, -17, 0]))
        == .reply(unique: 4, type: 2, .statuses([0, -17, 0])))
    #expect(
      try read(Packets.refusal(HW_INIT, unique: 4, code: 13, "not for you"))
        == .reply(unique: 4, type: 1, .refused(.init(code: 13, text: "not for you"))))
    #expect(try read(Packets.synced(unique: 5)) == .reply(unique: 5, type: 5, .synced))
  }

  @Test func everyTruncationIsRefused() {
    let packets = [
      Packets.events([Packets.record(1, name: Array("name".utf8)), Packets.record(2)]),
      Packets.lost(1, sequence: 0), Packets.resynced(1, checked: 1, reported: 1),
      Packets.detached(1), Packets.session(unique: 1),
      Packets.statuses(HW_REGISTER, unique: 1, [0, 0, 0]), Packets.synced(unique: 1),
    ]
    for packet in packets {
      #expect(problem(packet) == nil)
      for size in 0..<packet.count {
        // Once with the header's size left as it is, once made to fit.
        #expect(problem(Array(packet[0..<size])) != nil)
        if size >= 16 { #expect(problem(Packets.sized(Array(packet[0..<size]))) != nil) }
      }
      #expect(problem(packet + [0]) == .wrongSize(UInt32(packet.count)))
      #expect(problem(Packets.sized(packet + [UInt8](repeating: 0, count: 8))) != nil)
    }
  }

  @Test func whatIsReservedMustBeZero() {
    let record = Packets.events([Packets.record(1, name: Array("name".utf8))])
    for (packet, offsets) in [
      (record, [6, 7, 20, 124, 127]), (Packets.lost(1, sequence: 0), [6, 20]),
      (Packets.detached(1), [6, 20]), (Packets.session(unique: 1), [6, 20, 76]),
      (Packets.statuses(HW_REGISTER, unique: 1, [0]), [6, 28]),
    ] {
      for offset in offsets {
        var packet = packet
        packet[offset] = 1
        #expect(problem(packet) == .notZero, "offset \(offset)")
      }
    }
  }

  @Test func recordsMustFit() {
    let good = Packets.events([Packets.record(1, name: Array("name".utf8))])
    func with(_ offset: Int, _ bytes: [UInt8]) -> [UInt8] {
      var packet = good
      packet.replaceSubrange(offset..<offset + bytes.count, with: bytes)
      return packet
    }
    #expect(problem(with(24, Packets.bytes(UInt32(0)))) == .wrongRecordSize(0))
    #expect(problem(with(24, Packets.bytes(UInt32(101)))) == .wrongRecordSize(101))
    #expect(problem(with(24, Packets.bytes(UInt32.max))) == .wrongRecordSize(.max))
    #expect(problem(with(24 + 84, Packets.bytes(UInt16.max))) == .wrongRecordSize(104))
    #expect(problem(with(24 + 88, Packets.bytes(UInt32.max))) == .wrongRecordSize(104))
    #expect(problem(with(16, Packets.bytes(UInt32(2)))) == .wrongCount(2))
    #expect(problem(Packets.events([])) == .wrongCount(0))
    #expect(problem(with(121, [0])) == .wrongName)
    #expect(problem(with(121, [UInt8(ascii: "/")])) == .wrongName)
    #expect(problem(with(8, [1])) == .wrongUnique(1))
    #expect(problem(with(4, Packets.bytes(UInt16(0x4009)))) == .unknownType(0x4009))
  }

  @Test func aGapInTheSequenceIsRefused() throws {
    var reader = Client.PacketReader()
    _ = try reader.read(Packets.events([Packets.record(1), Packets.record(2)]))
    #expect(
      throws: Client.PacketError(problem: .sequenceGap(expected: 3, found: 4), offset: 32)
    ) { try reader.read(Packets.events([Packets.record(4)])) }
    #expect(
      throws: Client.PacketError(problem: .sequenceGap(expected: 2, found: 3), offset: 24)
    ) { try reader.read(Packets.lost(1, sequence: 3)) }
    #expect(try reader.read(Packets.lost(1, sequence: 2)) == .lost(.kernelQueue, sequence: 2))
  }

  @Test func repliesAreChecked() {
    var packet = Packets.synced(unique: 1)
    packet.replaceSubrange(16..<20, with: Packets.bytes(Int32(5)))
    #expect(problem(packet) == .wrongError(5))
    #expect(problem(Packets.synced(unique: 0)) == .wrongUnique(0))
    #expect(
      problem(Packets.sized(Packets.bytes(Packets.reply(HW_STATUS, unique: 1)) + [0xff]))
        == .notUTF8)
    #expect(
      problem(Packets.sized(Packets.bytes(Packets.reply(HW_FORGET, unique: 1))))
        == .unknownType(0x8003))
    var session = Packets.session(unique: 1)
    session[24] = 2
    #expect(problem(session) == .wrongVersion(2))
    for limit in [HW_PACKET_MIN - 1, HW_PACKET_MAX + 1] {
      var session = Packets.session(unique: 1)
      session.replaceSubrange(64..<68, with: Packets.bytes(UInt32(limit)))
      #expect(problem(session) == .wrongLimit(UInt32(limit)))
    }
  }

  @Test func namesAreEscaped() {
    for (bytes, text) in [
      (Array("plain-ü.txt".utf8), "plain-ü.txt"), (Array("a b\\c".utf8), "a\\ b\\\\c"),
      ([0x1b, 0x5b, 0x0a], "\\033[\\n"), ([0x61, 0xff, 0x62, 0xc3], "a\\377b\\303"),
      (Array("\u{202e}x".utf8), "\\342\\200\\256x"), ([0xc2, 0x9b], "\\302\\233"), ([], ""),
    ] as [([UInt8], String)] {
      #expect(Client.Name(bytes).description == text)
    }
  }
}
