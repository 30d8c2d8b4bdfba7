import CFanotify
import CHostWatch
import Glibc
import Testing

@testable import HostWatch

/// The daemon's end of a socketpair, driven by a script on its own thread.
final class FakeDaemon: Sendable {
  private let socket: Int32

  init(socket: consuming OwnedDescriptor) { self.socket = socket.take() }
  deinit { _ = Glibc.close(socket) }

  /// Two ends of a SOCK_SEQPACKET connection.
  static func pair() throws -> (daemon: FakeDaemon, connection: HostWatchClient.Connection) {
    var ends: [Int32] = [-1, -1]
    let type = Int32(SOCK_SEQPACKET.rawValue | SOCK_CLOEXEC.rawValue)
    let result = unsafe ends.withUnsafeMutableBufferPointer {
      unsafe socketpair(AF_UNIX, type, 0, $0.baseAddress)
    }
    try #require(result == 0)
    return (
      FakeDaemon(socket: OwnedDescriptor(ends[0])),
      HostWatchClient.Connection(socket: OwnedDescriptor(ends[1]))
    )
  }

  /// Runs `script` with the daemon's end on a thread, then hangs up.
  static func start(_ script: @escaping @Sendable (FakeDaemon) -> Void) throws
    -> HostWatchClient.Connection
  {
    let (daemon, connection) = try pair()
    try BackgroundThread.start {
      script(daemon)
      _ = shutdown(daemon.socket, Int32(SHUT_RDWR))
    }
    return connection
  }

  func send(_ packet: [UInt8]) {
    _ = unsafe packet.withUnsafeBytes {
      unsafe Glibc.send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
    }
  }

  /// Whether a packet could be sent without waiting.
  func trySend(_ packet: [UInt8]) -> Bool {
    unsafe packet.withUnsafeBytes {
      unsafe Glibc.send(
        socket, $0.baseAddress, $0.count,
        Int32(MSG_NOSIGNAL) | Int32(MSG_DONTWAIT))
    } >= 0
  }

  /// The next request; nil when the client hung up. Its descriptors are closed
  /// and counted.
  func receive() -> (packet: [UInt8], header: hw_header, descriptors: Int)? {
    var buffer = [UInt8](repeating: 0, count: 65536)
    var descriptors = [Int32](repeating: -1, count: Int(hw_descriptors_max))
    while true {
      var ready = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&ready, 1, -1)
      let got = unsafe buffer.withUnsafeMutableBytes { bytes in
        unsafe descriptors.withUnsafeMutableBufferPointer {
          unsafe hw_receive(socket, bytes.baseAddress, bytes.count, $0.baseAddress)
        }
      }
      if got.size == -Int(EAGAIN) { continue }
      guard got.size >= 16 else { return nil }
      for index in 0..<Int(got.descriptor_count) { _ = Glibc.close(descriptors[index]) }
      let packet = Array(buffer[0..<got.size])
      return (packet, load(packet, 0, hw_header.self), Int(got.descriptor_count))
    }
  }

  /// Answers INIT with session `id`; false when something else came.
  @discardableResult
  func grant(id: UInt64 = 7, queueLimit: UInt32 = 65536) -> Bool {
    guard let request = receive(), request.header.type == UInt16(HW_INIT) else { return false }
    send(Packets.session(unique: request.header.unique, id: id, queueLimit: queueLimit))
    return true
  }
}

func load<Value: BitwiseCopyable>(_ packet: [UInt8], _ offset: Int, _: Value.Type) -> Value {
  precondition(offset + MemoryLayout<Value>.size <= packet.count)
  return unsafe packet.span.bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: Value.self)
}

/// Packets as the daemon makes them.
enum Packets {
  static func bytes<Value: BitwiseCopyable>(_ value: Value) -> [UInt8] {
    unsafe withUnsafeBytes(of: value) { unsafe Array($0) }
  }

  /// Puts the length into the header.
  static func sized(_ packet: [UInt8]) -> [UInt8] {
    var packet = packet
    packet.replaceSubrange(0..<4, with: bytes(UInt32(packet.count)))
    return packet
  }

  static func header(_ type: UInt32, unique: UInt64 = 0) -> hw_header {
    hw_header(size: 0, type: UInt16(type), flags: 0, unique: unique)
  }

  static func reply(_ type: UInt32, unique: UInt64, error: Int32 = 0, detail: UInt32 = 0)
    -> hw_reply
  {
    hw_reply(header: header(type | HW_REPLY, unique: unique), error: error, detail: detail)
  }

  static func session(unique: UInt64, id: UInt64 = 7, queueLimit: UInt32 = 65536) -> [UInt8] {
    sized(
      bytes(
        hw_init_reply(
          reply: reply(HW_INIT, unique: unique), major: 1, minor: 0, options: 0,
          events: UInt64(HW_EVENTS_DEFAULT), session: id, root_nodeid: 1, root_generation: 0,
          max_packet: 65536, queue_limit: queueLimit, max_nodes: 1000, reserved: 0)))
  }

  static func refusal(_ type: UInt32, unique: UInt64, code: Int32, _ text: String) -> [UInt8] {
    sized(bytes(reply(type, unique: unique, error: -code)) + Array(text.utf8))
  }

  static func statuses(_ type: UInt32, unique: UInt64, _ statuses: [Int32]) -> [UInt8] {
    var packet = bytes(reply(type, unique: unique, detail: UInt32(statuses.count)))
    for status in statuses { packet += bytes(status) }
    packet += [UInt8](repeating: 0, count: -packet.count & 7)
    return sized(packet)
  }

  static func synced(unique: UInt64) -> [UInt8] { sized(bytes(reply(HW_SYNC, unique: unique))) }

  static func record(
    _ sequence: UInt64, _ mask: EventMask = .create, flags: UInt32 = 0, name: [UInt8] = [],
    newName: [UInt8] = [], path: [UInt8] = [], newPath: [UInt8] = []
  ) -> [UInt8] {
    let names = name + newName + path + newPath
    let size = (MemoryLayout<hw_record>.size + names.count + 7) & ~7
    let record = hw_record(
      size: UInt32(size), flags: flags, sequence: sequence, mask: mask.rawValue,
      dir: hw_node(nodeid: 1, generation: 0), node: hw_node(nodeid: 5, generation: 6),
      new_dir: hw_node(nodeid: 0, generation: 0), origin: 3, pid: 99,
      name_size: UInt16(name.count), new_name_size: UInt16(newName.count),
      path_size: UInt32(path.count), new_path_size: UInt32(newPath.count))
    let packet = bytes(record) + names
    return packet + [UInt8](repeating: 0, count: size - packet.count)
  }

  static func events(_ records: [[UInt8]]) -> [UInt8] {
    sized(
      bytes(hw_events(header: header(HW_EVENTS), count: UInt32(records.count), reserved: 0))
        + records.joined())
  }

  /// Packets of `perPacket` records with the sequences in `range`.
  static func storm(_ range: ClosedRange<UInt64>, perPacket: UInt64 = 100) -> [[UInt8]] {
    stride(from: range.lowerBound, through: range.upperBound, by: Int(perPacket)).map { first in
      let last = min(first + perPacket - 1, range.upperBound)
      return events((first...last).map { record($0, name: Array("file-\($0)".utf8)) })
    }
  }

  static func lost(_ reason: UInt32, sequence: UInt64) -> [UInt8] {
    sized(
      bytes(hw_lost(header: header(HW_LOST), reason: reason, reserved: 0, sequence: sequence)))
  }

  static func resynced(_ sequence: UInt64, checked: UInt64, reported: UInt64) -> [UInt8] {
    sized(
      bytes(
        hw_resynced(
          header: header(HW_RESYNCED), sequence: sequence, nodes_checked: checked,
          nodes_reported: reported)))
  }

  static func detached(_ reason: UInt32) -> [UInt8] {
    sized(bytes(hw_detached(header: header(HW_DETACHED), reason: reason, reserved: 0)))
  }
}
