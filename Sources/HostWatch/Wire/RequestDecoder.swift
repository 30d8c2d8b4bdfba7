import CHostWatch
import Glibc

/// A client's request, taken apart.
enum Request: Equatable {
  case initialize(Initialize)
  /// INIT of another major version, of which nothing else is known.
  case initializeOther(major: UInt16)
  case register([Registration])
  case forget([NodeID])
  case interest([Interest])
  case sync
  case status(what: UInt32)

  struct Initialize: Equatable {
    var options: UInt32
    var events: EventMask
    var maxPacket: UInt32
    var queueLimit: UInt32
    var maxDelayMicroseconds: UInt32
    var echoPID: UInt32
    var mode: UInt16
    /// nil: a descriptor of the root was passed.
    var share: String?
  }

  struct Registration: Equatable {
    var id: NodeID
    /// Empty: the session's.
    var interest: EventMask
    /// Zero: no check.
    var since: Timestamp
    var hasValidSince: Bool
  }

  struct Interest: Equatable {
    var id: NodeID
    var mask: EventMask
  }
}

/// Why a packet is not a request.
struct RequestError: Error, Equatable {
  /// The packet cannot be parsed at all: -EPROTO, and the session ends.
  /// Otherwise it is -EINVAL, and the session goes on.
  var isProtocolError: Bool
  /// What is wrong and what to do.
  var text: String

  static func malformed(_ text: String) -> RequestError {
    RequestError(isProtocolError: true, text: text)
  }
  static func invalid(_ text: String) -> RequestError {
    RequestError(isProtocolError: false, text: text)
  }
}

/// Takes a client's packet apart.
///
/// In: the bytes of one packet and how many descriptors came with it. Out: a
/// request, or why it is none. Pure: no I/O, no state. Whatever the bytes
/// are, nothing beyond them is read.
enum RequestDecoder {
  /// The type and unique of a packet, as far as it has them; else zeros.
  static func header(_ bytes: RawSpan) -> (type: UInt16, unique: UInt64) {
    guard bytes.byteCount >= MemoryLayout<hw_header>.size else { return (0, 0) }
    return (load(bytes, 4, UInt16.self), load(bytes, 8, UInt64.self))
  }

  static func decode(_ bytes: RawSpan, descriptors: Int) throws(RequestError) -> Request {
    guard bytes.byteCount >= MemoryLayout<hw_header>.size else {
      throw .malformed("The packet is shorter than a header of 16 bytes.")
    }
    guard Int(load(bytes, 0, UInt32.self)) == bytes.byteCount else {
      throw .malformed("The header's size is not the packet's length.")
    }
    let request: Request
    switch UInt32(load(bytes, 4, UInt16.self)) {
    case HW_INIT:
      // Before anything else: what another version looks like is not known.
      if bytes.byteCount >= 18, case let major = load(bytes, 16, UInt16.self),
        UInt32(major) != HW_PROTOCOL_MAJOR
      {
        return .initializeOther(major: major)
      }
      request = try initialize(bytes, descriptors)
    case HW_REGISTER: request = try register(bytes, descriptors)
    case HW_FORGET: request = try forget(bytes, descriptors)
    case HW_INTEREST: request = try interest(bytes, descriptors)
    case HW_SYNC:
      try expect(bytes, 16, descriptors, 0)
      request = .sync
    case HW_STATUS:
      try expect(bytes, MemoryLayout<hw_status>.size, descriptors, 0)
      request = .status(what: load(bytes, 16, UInt32.self))
      try zero(load(bytes, 20, UInt32.self), "reserved")
    default: throw .malformed("The message type is unknown.")
    }
    guard load(bytes, 6, UInt16.self) == 0 else { throw .invalid("The header's flags must be 0.") }
    guard load(bytes, 8, UInt64.self) != 0 else {
      throw .invalid("A request's unique must not be 0.")
    }
    return request
  }

  private static func initialize(_ bytes: RawSpan, _ descriptors: Int) throws(RequestError)
    -> Request
  {
    let fixed = MemoryLayout<hw_init>.size
    guard bytes.byteCount >= fixed else { throw .malformed("INIT has at least 56 bytes.") }
    let size = Int(load(bytes, 50, UInt16.self))
    try expect(bytes, fixed + (size + 7) & ~7, descriptors, size == 0 ? 1 : 0)
    let value = Request.Initialize(
      options: load(bytes, 20, UInt32.self),
      events: EventMask(rawValue: load(bytes, 24, UInt64.self)),
      maxPacket: load(bytes, 32, UInt32.self), queueLimit: load(bytes, 36, UInt32.self),
      maxDelayMicroseconds: load(bytes, 40, UInt32.self), echoPID: load(bytes, 44, UInt32.self),
      mode: load(bytes, 48, UInt16.self), share: try shareName(bytes, fixed, size))
    try zero(load(bytes, 52, UInt32.self), "reserved")
    guard value.options & ~UInt32(HW_OPTIONS_ALL) == 0 else {
      throw .invalid("An option bit is unknown in protocol 1.0.")
    }
    guard UInt32(value.mode) == HW_MODE_NODES || UInt32(value.mode) == HW_MODE_TREE else {
      throw .invalid("The mode must be 1 (NODES) or 2 (TREE).")
    }
    return .initialize(value)
  }

  private static func shareName(_ bytes: RawSpan, _ start: Int, _ size: Int)
    throws(RequestError) -> String?
  {
    guard size > 0 else { return nil }
    var name: [UInt8] = []
    for offset in start..<bytes.byteCount {
      let byte = load(bytes, offset, UInt8.self)
      if offset - start < size {
        guard byte != 0 else { throw .invalid("The share's name contains a NUL.") }
        name.append(byte)
      } else if byte != 0 {
        throw .invalid("The padding behind the share's name must be zero.")
      }
    }
    guard let text = String(validating: name, as: UTF8.self) else {
      throw .invalid("The share's name is not UTF-8.")
    }
    return text
  }

  private static func register(_ bytes: RawSpan, _ descriptors: Int) throws(RequestError)
    -> Request
  {
    let count = try batch(bytes, entry: MemoryLayout<hw_register_entry>.size)
    guard descriptors == count else {
      throw .malformed("REGISTER carries one descriptor for each entry.")
    }
    guard count <= HW_REGISTER_MAX else { throw .invalid("REGISTER has at most 250 entries.") }
    var entries: [Request.Registration] = []
    entries.reserveCapacity(count)
    for index in 0..<count {
      let at = 24 + index * 40
      try zero(load(bytes, at + 36, UInt32.self), "reserved")
      let nanoseconds = load(bytes, at + 32, UInt32.self)
      entries.append(
        Request.Registration(
          id: node(bytes, at),
          interest: EventMask(rawValue: load(bytes, at + 16, UInt64.self)),
          since: Timestamp(
            seconds: load(bytes, at + 24, Int64.self), nanoseconds: nanoseconds),
          hasValidSince: nanoseconds < 1_000_000_000))
    }
    return .register(entries)
  }

  private static func forget(_ bytes: RawSpan, _ descriptors: Int) throws(RequestError) -> Request {
    let count = try batch(bytes, entry: MemoryLayout<hw_node>.size)
    try expect(bytes, bytes.byteCount, descriptors, 0)
    return .forget((0..<count).map { node(bytes, 24 + $0 * 16) })
  }

  private static func interest(_ bytes: RawSpan, _ descriptors: Int) throws(RequestError)
    -> Request
  {
    let count = try batch(bytes, entry: MemoryLayout<hw_interest_entry>.size)
    try expect(bytes, bytes.byteCount, descriptors, 0)
    return .interest(
      (0..<count).map {
        Request.Interest(
          id: node(bytes, 24 + $0 * 24),
          mask: EventMask(rawValue: load(bytes, 24 + $0 * 24 + 16, UInt64.self)))
      })
  }

  /// Checks the head of a message of `count` entries, and its size.
  private static func batch(_ bytes: RawSpan, entry: Int) throws(RequestError) -> Int {
    let fixed = MemoryLayout<hw_batch>.size
    guard bytes.byteCount >= fixed else { throw .malformed("The message has at least 24 bytes.") }
    let count = Int(load(bytes, 16, UInt32.self))
    // count is below 2^32 and entry small, so the product does not overflow.
    guard bytes.byteCount == fixed + count * entry else {
      throw .malformed("The message's size does not fit its count of entries.")
    }
    try zero(load(bytes, 20, UInt32.self), "reserved")
    guard count > 0 else { throw .invalid("The count must not be 0.") }
    return count
  }

  private static func expect(_ bytes: RawSpan, _ size: Int, _ descriptors: Int, _ wanted: Int)
    throws(RequestError)
  {
    guard bytes.byteCount == size else {
      throw .malformed("The message's size does not fit its type and contents.")
    }
    guard descriptors == wanted else {
      throw .malformed(
        wanted == 0
          ? "This message carries no descriptors."
          : "INIT without a share's name carries exactly one descriptor, of the root directory.")
    }
  }

  private static func zero(_ value: UInt32, _ field: String) throws(RequestError) {
    guard value == 0 else { throw .invalid("The field `\(field)` must be 0.") }
  }

  private static func node(_ bytes: RawSpan, _ offset: Int) -> NodeID {
    NodeID(
      nodeid: load(bytes, offset, UInt64.self), generation: load(bytes, offset + 8, UInt64.self))
  }

  @inline(__always)
  private static func load<Number: FixedWidthInteger & BitwiseCopyable>(
    _ bytes: RawSpan, _ offset: Int, _: Number.Type
  ) -> Number {
    // RawSpan checks the bounds; any bytes are a valid integer.
    unsafe bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: Number.self)
  }
}
