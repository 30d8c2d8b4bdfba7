import CHostWatch
import Glibc

extension HostWatchClient {
  /// A message to the daemon, and its bytes.
  public enum Request: Sendable {
    /// INIT, the first of a session.
    case attach(Attachment)
    /// At most `maxRegistrations`.
    case register([Registration])
    /// At most `maxForgotten`. It has no reply.
    case forget([NodeID])
    /// At most `maxInterests`.
    case interest([(node: NodeID, mask: EventMask)])
    /// SYNC: answered after every event of what was complete before.
    case sync
    /// STATUS, allowed before INIT, too.
    case status

    /// Entries of one REGISTER.
    public static let maxRegistrations = Int(HW_REGISTER_MAX)
    /// Entries of one FORGET: 32 KiB, so that any receiver has room for it.
    public static let maxForgotten = 2048
    /// Entries of one INTEREST: 24 KiB.
    public static let maxInterests = 1024

    var type: UInt16 {
      switch self {
      case .attach: UInt16(HW_INIT)
      case .register: UInt16(HW_REGISTER)
      case .forget: UInt16(HW_FORGET)
      case .interest: UInt16(HW_INTEREST)
      case .sync: UInt16(HW_SYNC)
      case .status: UInt16(HW_STATUS)
      }
    }

    /// The descriptors that go with the message, in its order.
    var descriptors: [Int32] {
      switch self {
      case .attach(let attachment):
        guard case .directory(let descriptor) = attachment.root else { return [] }
        return [descriptor]
      case .register(let registrations): return registrations.map(\.descriptor)
      default: return []
      }
    }

    /// What is wrong with the request, so that it must not be sent.
    var fault: SystemError? {
      switch self {
      case .attach(let attachment):
        guard case .share(let name) = attachment.root else { return nil }
        return name.isEmpty || name.utf8.count > 4096 || name.utf8.contains(0)
          ? SystemError("share name", EINVAL) : nil
      case .register(let entries):
        return outside(entries.count, Self.maxRegistrations, "register")
      case .forget(let entries): return outside(entries.count, Self.maxForgotten, "forget")
      case .interest(let entries): return outside(entries.count, Self.maxInterests, "interest")
      case .sync, .status: return nil
      }
    }

    private func outside(_ count: Int, _ limit: Int, _ what: String) -> SystemError? {
      (1...limit).contains(count) ? nil : SystemError("\(what): \(count) entries", EINVAL)
    }

    /// The message. `unique` is not 0.
    func packet(unique: UInt64) -> [UInt8] {
      precondition(unique != 0)
      let header = hw_header(size: 0, type: type, flags: 0, unique: unique)
      var packet: [UInt8] = []
      switch self {
      case .attach(let attachment): append(attachment, header, to: &packet)
      case .register(let entries):
        packet.append(hw_batch(header: header, count: UInt32(entries.count), reserved: 0))
        for entry in entries {
          packet.append(
            hw_register_entry(
              nodeid: entry.node.nodeid, generation: entry.node.generation,
              interest: entry.interest.rawValue, since_sec: entry.since.seconds,
              since_nsec: entry.since.nanoseconds, reserved: 0))
        }
      case .forget(let nodes):
        packet.append(hw_batch(header: header, count: UInt32(nodes.count), reserved: 0))
        for node in nodes { packet.append(hw_node(node)) }
      case .interest(let entries):
        packet.append(hw_batch(header: header, count: UInt32(entries.count), reserved: 0))
        for entry in entries {
          packet.append(hw_interest_entry(node: hw_node(entry.node), mask: entry.mask.rawValue))
        }
      case .sync: packet.append(header)
      case .status: packet.append(hw_status(header: header, what: 0, reserved: 0))
      }
      let size = UInt32(packet.count)
      unsafe withUnsafeBytes(of: size) { unsafe packet.replaceSubrange(0..<4, with: $0) }
      return packet
    }

    private func append(_ attachment: Attachment, _ header: hw_header, to packet: inout [UInt8]) {
      var share: [UInt8] = []
      if case .share(let name) = attachment.root { share = Array(name.utf8) }
      packet.append(
        hw_init(
          header: header, major: UInt16(HW_PROTOCOL_MAJOR), minor: UInt16(HW_PROTOCOL_MINOR),
          options: attachment.options.rawValue, events: attachment.events.rawValue,
          max_packet: attachment.maxPacketBytes, queue_limit: attachment.queueLimitBytes,
          max_delay_us: attachment.maxDelayMicroseconds, echo_pid: attachment.echoProcess,
          mode: attachment.mode.rawValue, share_size: UInt16(share.count), reserved: 0))
      packet += share
      packet += [UInt8](repeating: 0, count: -share.count & 7)
    }
  }
}

extension [UInt8] {
  /// Appends one of the protocol's structs, none of which has padding.
  fileprivate mutating func append<Value: BitwiseCopyable>(_ value: Value) {
    unsafe Swift.withUnsafeBytes(of: value) { unsafe append(contentsOf: $0) }
  }
}
