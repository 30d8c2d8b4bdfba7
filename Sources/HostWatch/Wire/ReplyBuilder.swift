import CHostWatch

/// Packets that the daemon sends but EVENTS, as bytes.
enum ReplyBuilder {
  static func error(_ code: Int32, _ text: String, type: UInt16, unique: UInt64) -> [UInt8] {
    var reply = hw_reply()
    reply.error = -code
    return packet(header: reply, tail: Array(text.utf8), type: type, unique: unique) {
      $0.header = $1
    }
  }

  static func initialized(_ body: hw_init_reply, unique: UInt64) -> [UInt8] {
    packet(header: body, tail: [], type: UInt16(HW_INIT), unique: unique) { $0.reply.header = $1 }
  }

  /// The reply to REGISTER and INTEREST.
  static func statuses(_ statuses: [Int32], type: UInt32, unique: UInt64) -> [UInt8] {
    var reply = hw_reply()
    reply.detail = UInt32(statuses.count)
    var tail: [UInt8] = []
    for status in statuses {
      let bits = UInt32(bitPattern: status)
      for shift in 0..<4 {
        let byte = UInt32(littleEndian: bits) >> UInt32(8 * shift)
        tail.append(UInt8(truncatingIfNeeded: byte))
      }
    }
    if tail.count % 8 != 0 { tail.append(contentsOf: [0, 0, 0, 0]) }
    return packet(header: reply, tail: tail, type: UInt16(type), unique: unique) { $0.header = $1 }
  }

  static func synced(unique: UInt64) -> [UInt8] {
    packet(header: hw_reply(), tail: [], type: UInt16(HW_SYNC), unique: unique) { $0.header = $1 }
  }

  static func status(_ json: String, unique: UInt64) -> [UInt8] {
    packet(header: hw_reply(), tail: Array(json.utf8), type: UInt16(HW_STATUS), unique: unique) {
      $0.header = $1
    }
  }

  static func lost(reason: UInt32, sequence: UInt64) -> [UInt8] {
    var body = hw_lost()
    (body.reason, body.sequence) = (reason, sequence)
    return notification(body, HW_LOST) { $0.header = $1 }
  }

  static func resynced(sequence: UInt64, checked: UInt64, reported: UInt64) -> [UInt8] {
    var body = hw_resynced()
    (body.sequence, body.nodes_checked, body.nodes_reported) = (sequence, checked, reported)
    return notification(body, HW_RESYNCED) { $0.header = $1 }
  }

  static func detached(reason: UInt32) -> [UInt8] {
    var body = hw_detached()
    body.reason = reason
    return notification(body, HW_DETACHED) { $0.header = $1 }
  }

  private static func packet<Body: BitwiseCopyable>(
    header body: Body, tail: [UInt8], type: UInt16, unique: UInt64,
    set: (inout Body, hw_header) -> Void
  ) -> [UInt8] {
    assemble(body, tail, type | UInt16(HW_REPLY), unique, set)
  }

  private static func notification<Body: BitwiseCopyable>(
    _ body: Body, _ type: UInt32, set: (inout Body, hw_header) -> Void
  ) -> [UInt8] {
    assemble(body, [], UInt16(type), 0, set)
  }

  private static func assemble<Body: BitwiseCopyable>(
    _ body: Body, _ tail: [UInt8], _ type: UInt16, _ unique: UInt64,
    _ set: (inout Body, hw_header) -> Void
  ) -> [UInt8] {
    var body = body
    let size = MemoryLayout<Body>.size + tail.count
    set(&body, hw_header(size: UInt32(size), type: type, flags: 0, unique: unique))
    // The protocol's structs have no padding: all their bytes are theirs.
    return unsafe withUnsafeBytes(of: &body) { unsafe [UInt8]($0) } + tail
  }
}
