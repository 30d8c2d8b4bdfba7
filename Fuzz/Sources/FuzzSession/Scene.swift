import CFanotify
import CFuzz
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// A daemon, and the clients of one input after the other.
final class Scene {
  private let place: Place
  private let loop = TurnLoop()
  private let hub: Hub
  private var clients: [Client] = []
  private static let most = 6
  /// Open while nobody is connected.
  private(set) var descriptors: [String] = []

  init(_ place: Place) {
    self.place = place
    var limits = Limits()
    limits.sessions = 4
    limits.sessionsPerUser = 2
    limits.nodesPerSession = 8
    limits.nodesPerSessionUnprivileged = 4
    limits.queuePerSession = 65_536
    do {
      hub = try Hub(loop: loop, limits: limits) { precondition(!$0.message.isEmpty) }
      let listener = OwnedDescriptor(try checked(hw_socket(true), "socket"))
      unlink(place.socketPath)
      try checked(hw_bind_path(listener.rawValue, place.socketPath), "bind")
      try checked(listen(listener.rawValue, 16), "listen")
      try hub.serve(listener)
    } catch {
      fatalError("\(error)")
    }
    chmod(place.socketPath, 0o666)
    hub.setShares([Self.share()])
    loop.run(turns: 100)
    descriptors = openDescriptors()
  }

  private static func share(_ events: EventMask = .allEvents) -> ShareConfiguration {
    ShareConfiguration(name: "s", path: Place.share, allowedUsers: [65_534], events: events)
  }

  func step(_ input: inout FuzzInput) {
    let what = input.byte()
    let client = clients.isEmpty ? nil : clients[Int(what >> 4) % clients.count]
    switch what & 15 {
    case 0 where clients.count < Self.most:
      if let new = Client(place, asUser: what & 0x10 == 0 ? 0 : 65_534) { clients.append(new) }
    case 1: client?.sendRaw(&input, place)
    case 2, 3, 4, 5: client?.sendRequest(&input, place)
    case 6: client?.drain()
    case 7:
      client?.hangUp()
      clients.removeAll { $0 === client }
    case 8: loop.run(turns: 1)
    case 9: loop.run(turns: 50)
    case 10 where what >> 4 == 0: hub.setShares([])
    case 10: hub.setShares([Self.share(EventMask(rawValue: UInt64(what >> 4) << 8))])
    default: place.change(input.byte(), input.byte())
    }
  }

  /// What helper processes have done is noticed.
  func settle() { loop.run(turns: 100) }

  /// Everybody goes; nothing may be left of them.
  func finish() {
    loop.run(turns: 2000)
    for client in clients { client.drain() }
    loop.run(turns: 2000)
    for client in clients {
      client.drain()
      client.hangUp()
    }
    clients = []
    loop.run(turns: 2000)
    precondition(hub.sessions.isEmpty, "a session outlived its connection")
    hub.setShares([Self.share()])
    place.empty()
    loop.run(turns: 2000)
    precondition(hub.filesystems.count == 1, "a filesystem that nobody needs is watched")
    for filesystem in hub.filesystems.values {
      precondition(filesystem.router.nodes.count == 0, "a registration was left")
    }
  }
}

/// A client that says whatever the input says, and checks what it is told.
final class Client {
  private let socket: Int32
  private var sequence: UInt64 = 0
  private var isAttached = false
  private var unique: UInt64 = 0

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
    unique += 1
    var packet: [UInt8] = []
    append(UInt32(16 + body.count), to: &packet)
    append(type, to: &packet)
    append(UInt16(0), to: &packet)
    append(unique, to: &packet)
    send(packet + body, descriptors)
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
      guard count > 0 else { return }
      buffer.withUnsafeBytes { check(UnsafeRawBufferPointer(rebasing: $0[..<count])) }
    }
  }

  private func check(_ packet: UnsafeRawBufferPointer) {
    precondition(packet.count >= MemoryLayout<hw_header>.size, "a packet without a header")
    let header = packet.loadUnaligned(as: hw_header.self)
    precondition(Int(header.size) == packet.count && header.flags == 0, "a wrong header")
    if header.type & 0x8000 != 0 {
      let reply = packet.loadUnaligned(as: hw_reply.self)
      precondition(reply.error <= 0 && reply.error > -4096, "not a negative errno")
      if header.type == 0x8001, reply.error == 0 { isAttached = true }
      return
    }
    precondition(header.unique == 0, "an answer to nothing")
    precondition(isAttached, "told before INIT")
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
