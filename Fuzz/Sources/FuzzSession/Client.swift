import CFanotify
import CFuzz
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// A client that says whatever the input says, and checks what it is told.
final class Client {
  private let socket: Int32
  private var sequence: UInt64 = 0
  /// What INIT's answer said; 0 before it.
  private(set) var session: UInt64 = 0
  private var unique: UInt64 = 0
  private var answered: UInt64 = 0
  private var isOver = false
  /// What a state that was changed has put into its queue may be anything.
  var isUnchecked = false

  /// nil when the daemon's backlog is full.
  init?(_ place: Place, asUser uid: uid_t) {
    socket = hw_socket(true)
    guard socket >= 0 else { return nil }
    // SO_PEERCRED is of the moment of connect(2).
    if uid != 0 { _ = fuzz_effective_user(uid) }
    let connected = hw_connect_path(socket, place.socketPath)
    if uid != 0 { _ = fuzz_effective_user(0) }
    guard connected == 0 else {
      close(socket)
      return nil
    }
  }

  func hangUp() { close(socket) }

  func sendRaw(_ input: inout FuzzInput, _ place: Place) {
    let descriptors = self.descriptors(&input, place)
    send(input.block(4096), descriptors)
  }

  /// A packet whose header is right, and whose count fits its length as often
  /// as not.
  func sendRequest(_ input: inout FuzzInput, _ place: Place) {
    let type = UInt16(input.below(8))
    let descriptors = self.descriptors(&input, place)
    var body = input.block(1024)
    if type == UInt16(HW_INIT) {
      // major, minor: what is spoken.
      if body.count >= 4 { body.replaceSubrange(0..<4, with: [1, 0, 0, 0]) }
    } else if body.count >= 8, body[7] & 1 == 0 {
      let sizes: [UInt16: Int] = [2: 40, 3: 16, 4: 24]
      let count = (body.count - 8) / (sizes[type] ?? 8)
      body.replaceSubrange(0..<8, with: [UInt8(count & 0xff), UInt8(count >> 8), 0, 0, 0, 0, 0, 0])
      if let size = sizes[type] { body.removeLast(body.count - 8 - count * size) }
    }
    send(packet(type, body), descriptors)
  }

  private func packet(_ type: UInt16, _ body: [UInt8]) -> [UInt8] {
    unique += 1
    var packet: [UInt8] = []
    append(UInt32(16 + body.count), to: &packet)
    append(type, to: &packet)
    append(UInt16(0), to: &packet)
    append(unique, to: &packet)
    return packet + body
  }

  /// Whether a SYNC is answered, `turn` being what makes the daemon go on.
  func syncs(_ turn: () -> Void) -> Bool {
    send(packet(UInt16(HW_SYNC), []), [])
    let asked = unique
    for _ in 0..<200 where answered < asked && !isOver {
      turn()
      drain()
    }
    return answered >= asked
  }

  private func append(_ number: some FixedWidthInteger, to packet: inout [UInt8]) {
    withUnsafeBytes(of: number) { packet += $0 }
  }

  private func descriptors(_ input: inout FuzzInput, _ place: Place) -> [Int32] {
    (0..<input.below(10)).map { _ in place.open(input.byte()) }.filter { $0 >= 0 }
  }

  private func send(_ packet: [UInt8], _ descriptors: [Int32]) {
    packet.withUnsafeBytes { bytes in
      _ = hw_send_with_descriptors(
        socket, bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 8)!, bytes.count, descriptors,
        UInt32(descriptors.count), Int32(MSG_DONTWAIT))
    }
    for number in descriptors { close(number) }
  }

  /// Reads all there is.
  func drain() {
    var buffer = [UInt8](repeating: 0, count: 1 << 18)
    while true {
      let count = recv(socket, &buffer, buffer.count, Int32(MSG_DONTWAIT))
      guard count > 0 else {
        isOver = isOver || count == 0 || errno != EAGAIN
        return
      }
      buffer.withUnsafeBytes { check(UnsafeRawBufferPointer(rebasing: $0[..<count])) }
    }
  }

  private func check(_ packet: UnsafeRawBufferPointer) {
    guard !isUnchecked else { return }
    precondition(packet.count >= MemoryLayout<hw_header>.size, "a packet without a header")
    let header = packet.loadUnaligned(as: hw_header.self)
    precondition(Int(header.size) == packet.count && header.flags == 0, "a wrong header")
    if header.type & 0x8000 != 0 {
      let reply = packet.loadUnaligned(as: hw_reply.self)
      precondition(reply.error <= 0 && reply.error > -4096, "not a negative errno")
      answered = max(answered, header.unique)
      if header.type == 0x8001, reply.error == 0 {
        session = packet.loadUnaligned(as: hw_init_reply.self).session
      }
      return
    }
    precondition(header.unique == 0, "an answer to nothing")
    precondition(session != 0, "told before INIT")
    switch UInt32(header.type) {
    case UInt32(HW_EVENTS): checkRecords(packet)
    case UInt32(HW_LOST):
      precondition(packet.loadUnaligned(as: hw_lost.self).sequence == sequence, "LOST: a gap")
    case UInt32(HW_RESYNCED):
      precondition(packet.loadUnaligned(as: hw_resynced.self).sequence == sequence)
    case UInt32(HW_DETACHED): break
    default: preconditionFailure("a message that does not exist: \(header.type)")
    }
  }

  private func checkRecords(_ packet: UnsafeRawBufferPointer) {
    var at = MemoryLayout<hw_events>.size
    let count = packet.loadUnaligned(as: hw_events.self).count
    precondition(count > 0, "no records")
    for _ in 0..<count {
      precondition(at + MemoryLayout<hw_record>.size <= packet.count, "a record beyond its packet")
      let record = packet.loadUnaligned(fromByteOffset: at, as: hw_record.self)
      precondition(record.size % 8 == 0 && at + Int(record.size) <= packet.count)
      sequence += 1
      precondition(record.sequence == sequence, "a gap in the sequence")
      let strings =
        Int(record.name_size) + Int(record.new_name_size) + Int(record.path_size)
        + Int(record.new_path_size)
      precondition(MemoryLayout<hw_record>.size + strings <= Int(record.size), "strings beyond")
      at += Int(record.size)
    }
    precondition(at == packet.count, "bytes after the last record")
  }
}
