import CHostWatch
import Glibc
import TestSupport
import Testing

@testable import HostWatch

@Suite struct PacketQueueTests {
  /// A queue and the counter it shares, freed at the end.
  @safe final class Fixture {
    let counter = UnsafeMutablePointer<Int>.allocate(capacity: 1)
    var queue: PacketQueue

    init(limit: Int, maxPacket: Int = 4096, userLimit: Int = .max) {
      unsafe counter.initialize(to: 0)
      queue = unsafe PacketQueue(
        limit: limit, maxPacket: maxPacket, userQueued: counter, userLimit: userLimit)
    }

    /// What the counter says.
    var shared: Int { unsafe counter.pointee }

    deinit {
      queue.release()
      unsafe counter.deallocate()
    }

    /// Adds a record whose body is all `tag`.
    func add(_ size: Int, _ tag: UInt8) -> Bool {
      guard let start = unsafe queue.reserveRecord(size) else { return false }
      unsafe memset(start, Int32(tag), size)
      return true
    }

    /// Takes up to `count` packets out, as their bytes.
    func take(_ count: Int) -> [[UInt8]] {
      unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: count) { pieces in
        let got = unsafe queue.gather(pieces)
        var packets: [[UInt8]] = []
        for index in 0..<got {
          let piece = unsafe pieces[index]
          packets.append(
            unsafe [UInt8](UnsafeRawBufferPointer(start: piece.iov_base, count: piece.iov_len)))
        }
        queue.drop(got)
        return packets
      }
    }
  }

  @Test func recordsShareAPacketUntilItIsFull() {
    let fixture = Fixture(limit: 65536, maxPacket: 4096)
    for tag in 0..<60 { #expect(fixture.add(104, UInt8(tag))) }
    let packets = fixture.take(64)
    #expect(packets.count == 2)
    #expect(packets.allSatisfy { $0.count <= 4096 })
    #expect(packets[0].count == 24 + 39 * 104)
    #expect(fixture.queue.isEmpty)
  }

  @Test func whatDoesNotFitIsRefusedWhole() {
    let fixture = Fixture(limit: 65536)
    var accepted = 0
    while fixture.add(1024, 1) { accepted += 1 }
    #expect(accepted == 63)
    #expect(fixture.queue.queued <= 65536)
    // Replies still have room.
    let reply = [UInt8](repeating: 0, count: 131072)
    var whole = reply
    unsafe whole.withUnsafeMutableBytes { unsafe $0.storeBytes(of: 131072, as: UInt32.self) }
    let fits = unsafe whole.withUnsafeBytes { unsafe fixture.queue.append($0) }
    #expect(fits)
    #expect(fixture.take(200).last?.count == 131072)
    #expect(fixture.queue.isEmpty)
  }

  /// Beyond what each of them is guaranteed.
  @Test func aUsersSessionsShareOneLimit() {
    let fixture = Fixture(limit: 1 << 20, userLimit: 2048)
    var accepted = 0
    while fixture.queue.hasRoom(forRecordOf: 1024), fixture.add(1024, 1) { accepted += 1 }
    #expect(accepted == PacketQueue.guaranteed / 1024 - 1)
    #expect(!fixture.add(1024, 2))
    _ = fixture.take(100)
    #expect(fixture.shared == 0)
    #expect(fixture.add(1024, 3))
    let alone = Fixture(limit: 1 << 20, userLimit: 1 << 19)
    while alone.queue.hasRoom(forRecordOf: 1024), alone.add(1024, 1) {}
    #expect(((1 << 19) - 2048...1 << 19).contains(alone.shared))
    #expect(!alone.add(1024, 2))
  }

  /// Random records, packets and sends: what comes out is what went in.
  @Test func everythingLeavesInOrderAroundTheRing() throws {
    var generator = SeededGenerator(state: 11)
    let fixture = Fixture(limit: 65536, maxPacket: 8192)
    var (written, read): ([UInt8], [UInt8]) = ([], [])
    var tag: UInt8 = 0
    for _ in 0..<40_000 {
      switch Int.random(in: 0..<10, using: &generator) {
      case 0..<6:
        let size = 8 * Int.random(in: 12...80, using: &generator)
        if fixture.add(size, tag) { written.append(tag) }
        tag &+= 1
      case 6:
        // A packet of its own, its length no multiple of 8.
        var packet = [UInt8](repeating: tag, count: 41)
        unsafe packet.withUnsafeMutableBytes {
          unsafe $0.storeBytes(of: 41, as: UInt32.self)
          unsafe $0.storeBytes(of: 0x8005, toByteOffset: 4, as: UInt16.self)
        }
        if unsafe packet.withUnsafeBytes({ unsafe fixture.queue.append($0) }) {
          written.append(tag)
        }
        tag &+= 1
      default:
        for packet in fixture.take(Int.random(in: 1...6, using: &generator)) {
          read += tags(packet)
        }
      }
    }
    while !fixture.queue.isEmpty { for packet in fixture.take(64) { read += tags(packet) } }
    #expect(read == written)
    #expect(fixture.shared == 0)
  }

  /// The tags of a packet's records: runs of one byte, told apart by `count`.
  private func tags(_ packet: [UInt8]) -> [UInt8] {
    let type = UInt16(packet[4]) | UInt16(packet[5]) << 8
    if type != UInt16(HW_EVENTS) { return [packet[40]] }
    var result: [UInt8] = []
    for byte in packet[24...] where result.last != byte { result.append(byte) }
    return result
  }
}
