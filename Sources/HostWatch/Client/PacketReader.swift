import CHostWatch

extension HostWatchClient {
  /// Takes the daemon's packets apart.
  ///
  /// In: one packet as it was received. Out: a `Packet`. It holds that every
  /// record of a batch lies within its packet, that names are free of NUL and
  /// "/", and that sequences follow one another through the life of a reader.
  /// Refused: everything else, with the offset. No I/O, no clock. Flags and
  /// mask bits of later minor versions are let through.
  public struct PacketReader: Sendable {
    /// Of the last record read, 0 before the first.
    public private(set) var sequence: UInt64 = 0

    /// A reader before the first packet of a session.
    public init() {}

    /// Reads one packet; after an error the stream cannot be trusted.
    ///
    /// - Throws: ``HostWatchClient/PacketError``: what is wrong with the packet, and at
    ///   which offset.
    public mutating func read(_ packet: [UInt8]) throws(PacketError) -> Packet {
      let input = PacketInput(packet)
      let header = try input.load(0, hw_header.self)
      guard Int(header.size) == packet.count else { throw input.error(.wrongSize(header.size), 0) }
      guard header.flags == 0 else { throw input.error(.notZero, 6) }
      if UInt32(header.type) & HW_REPLY != 0 {
        return try readReply(input, header)
      }
      guard header.unique == 0 else { throw input.error(.wrongUnique(header.unique), 8) }
      switch UInt32(header.type) {
      case HW_EVENTS:
        return try readEvents(input)
      case HW_LOST:
        let message = try input.whole(hw_lost.self)
        guard message.reserved == 0 else { throw input.error(.notZero, 20) }
        guard message.sequence == sequence else {
          throw input.error(.sequenceGap(expected: sequence, found: message.sequence), 24)
        }
        guard let reason = LossReason(rawValue: message.reason) else {
          throw input.error(.wrongReason(message.reason), 16)
        }
        return .lost(reason, sequence: message.sequence)
      case HW_RESYNCED:
        let message = try input.whole(hw_resynced.self)
        return .resynced(
          Resync(
            sequence: message.sequence, nodesChecked: message.nodes_checked,
            nodesReported: message.nodes_reported))
      case HW_DETACHED:
        let message = try input.whole(hw_detached.self)
        guard message.reserved == 0 else { throw input.error(.notZero, 20) }
        guard let reason = DetachReason(rawValue: message.reason) else {
          throw input.error(.wrongReason(message.reason), 16)
        }
        return .detached(reason)
      default:
        throw input.error(.unknownType(header.type), 4)
      }
    }

    private mutating func readEvents(_ input: PacketInput) throws(PacketError) -> Packet {
      let message = try input.load(0, hw_events.self)
      guard message.reserved == 0 else { throw input.error(.notZero, 20) }
      var offset = MemoryLayout<hw_events>.size
      var found: UInt32 = 0
      while offset < input.count {
        let record = try input.load(offset, hw_record.self)
        try input.checkRecord(record, at: offset)
        guard record.sequence == sequence + 1 else {
          throw input.error(
            .sequenceGap(expected: sequence + 1, found: record.sequence), offset + 8)
        }
        sequence = record.sequence
        offset += Int(record.size)
        found += 1
      }
      guard found > 0, found == message.count else {
        throw input.error(.wrongCount(message.count), 16)
      }
      return .events(RecordBatch(checked: input.packet))
    }

    private func readReply(_ input: PacketInput, _ header: hw_header) throws(PacketError) -> Packet
    {
      let type = UInt32(header.type) & ~HW_REPLY
      let reply = try input.load(0, hw_reply.self)
      guard reply.error <= 0, reply.error > Int32.min else {
        throw input.error(.wrongError(reply.error), 16)
      }
      if reply.error != 0 {
        guard type <= HW_STATUS else { throw input.error(.unknownType(header.type), 4) }
        let text = try input.text(from: MemoryLayout<hw_reply>.size)
        return .reply(
          unique: header.unique, type: UInt16(type),
          .refused(Refusal(code: -reply.error, text: text)))
      }
      guard header.unique != 0 else { throw input.error(.wrongUnique(0), 8) }
      let answer: Reply
      switch type {
      case HW_INIT: answer = .session(try readSession(input))
      case HW_REGISTER, HW_INTEREST: answer = .statuses(try readStatuses(input, reply.detail))
      case HW_SYNC:
        _ = try input.whole(hw_reply.self)
        answer = .synced
      case HW_STATUS: answer = .status(try input.text(from: MemoryLayout<hw_reply>.size))
      default: throw input.error(.unknownType(header.type), 4)
      }
      return .reply(unique: header.unique, type: UInt16(type), answer)
    }

    private func readSession(_ input: PacketInput) throws(PacketError) -> Session {
      let message = try input.whole(hw_init_reply.self)
      guard UInt32(message.major) == HW_PROTOCOL_MAJOR else {
        throw input.error(.wrongVersion(message.major), 24)
      }
      guard message.reserved == 0 else { throw input.error(.notZero, 76) }
      guard message.reply.detail == 0 else { throw input.error(.notZero, 20) }
      guard (HW_PACKET_MIN...HW_PACKET_MAX).contains(message.max_packet) else {
        throw input.error(.wrongLimit(message.max_packet), 64)
      }
      return Session(
        id: message.session, options: Options(rawValue: message.options),
        events: EventMask(rawValue: message.events),
        root: NodeID(nodeid: message.root_nodeid, generation: message.root_generation),
        maxPacketBytes: message.max_packet, queueLimitBytes: message.queue_limit,
        maxNodes: message.max_nodes)
    }

    private func readStatuses(_ input: PacketInput, _ count: UInt32) throws(PacketError) -> [Int32]
    {
      let start = MemoryLayout<hw_reply>.size
      let end = start + Int(count) * 4
      let padded = (end + 7) & ~7
      guard padded == input.count else { throw input.error(.wrongCount(count), 20) }
      try input.checkZero(end..<padded)
      var statuses: [Int32] = []
      statuses.reserveCapacity(Int(count))
      for offset in stride(from: start, to: end, by: 4) {
        let status = try input.load(offset, Int32.self)
        guard status <= 0, status > Int32.min else {
          throw input.error(.wrongError(status), offset)
        }
        statuses.append(status)
      }
      return statuses
    }
  }
}

/// The cursor of `PacketReader`: loads within bounds, and the checks that more
/// than one message needs.
private struct PacketInput {
  typealias PacketError = HostWatchClient.PacketError

  let packet: [UInt8]
  var count: Int { packet.count }

  init(_ packet: [UInt8]) { self.packet = packet }

  func error(_ problem: PacketError.Problem, _ offset: Int) -> PacketError {
    PacketError(problem: problem, offset: offset)
  }

  func load<Value: BitwiseCopyable>(_ offset: Int, _: Value.Type) throws(PacketError) -> Value {
    guard count - offset >= MemoryLayout<Value>.size else { throw error(.truncated, count) }
    // Within bounds; the protocol's structs are integers, any bytes of which are valid.
    return unsafe packet.span.bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: Value.self)
  }

  /// A message that has no variable part.
  func whole<Value: BitwiseCopyable>(_ type: Value.Type) throws(PacketError) -> Value {
    let value = try load(0, type)
    guard count == MemoryLayout<Value>.size else {
      throw error(.surplus, MemoryLayout<Value>.size)
    }
    return value
  }

  func text(from offset: Int) throws(PacketError) -> String {
    guard let text = String(validating: packet[offset...], as: UTF8.self) else {
      throw error(.notUTF8, offset)
    }
    return text
  }

  func checkZero(_ range: Range<Int>) throws(PacketError) {
    for offset in range where packet[offset] != 0 { throw error(.notZero, offset) }
  }

  func checkRecord(_ record: hw_record, at start: Int) throws(PacketError) {
    let size = Int(record.size)
    let names = start + MemoryLayout<hw_record>.size
    let paths = names + Int(record.name_size) + Int(record.new_name_size)
    let end = paths + Int(record.path_size) + Int(record.new_path_size)
    guard size % 8 == 0, size <= count - start, (end + 7) & ~7 == start + size else {
      throw error(.wrongRecordSize(record.size), start)
    }
    for offset in names..<end
    where packet[offset] == 0 || (packet[offset] == UInt8(ascii: "/") && offset < paths) {
      throw error(.wrongName, offset)
    }
    try checkZero(end..<start + size)
  }
}
