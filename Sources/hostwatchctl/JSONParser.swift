/// Text that is not JSON, and where.
struct JSONError: Error, Equatable, CustomStringConvertible {
  /// In UTF-8.
  let offset: Int
  var description: String { "not JSON at byte \(offset)" }
}

/// Reads one JSON value (RFC 8259). In: text. Out: the value, or the offset of
/// what is wrong. It goes at most 64 levels deep.
struct JSONParser {
  private let bytes: [UInt8]
  private var offset = 0

  static func parse(_ text: String) throws(JSONError) -> JSON {
    var parser = JSONParser(bytes: Array(text.utf8))
    let value = try parser.value(depth: 0)
    parser.skipSpace()
    guard parser.offset == parser.bytes.count else { throw parser.error }
    return value
  }

  private init(bytes: [UInt8]) { self.bytes = bytes }

  private var error: JSONError { JSONError(offset: offset) }
  private var next: UInt8? { offset < bytes.count ? bytes[offset] : nil }

  private mutating func skipSpace() {
    while let byte = next, [0x20, 0x09, 0x0a, 0x0d].contains(byte) { offset += 1 }
  }

  private mutating func take(_ character: Unicode.Scalar) -> Bool {
    skipSpace()
    guard next == UInt8(ascii: character) else { return false }
    offset += 1
    return true
  }

  private mutating func word(_ word: String, _ value: JSON) throws(JSONError) -> JSON {
    guard bytes[offset...].starts(with: word.utf8) else { throw error }
    offset += word.utf8.count
    return value
  }

  private mutating func value(depth: Int) throws(JSONError) -> JSON {
    skipSpace()
    guard depth < 64, let first = next else { throw error }
    switch first {
    case UInt8(ascii: "{"): return .object(try members(depth))
    case UInt8(ascii: "["): return .array(try elements(depth))
    case UInt8(ascii: "\""): return .string(try string())
    case UInt8(ascii: "t"): return try word("true", .bool(true))
    case UInt8(ascii: "f"): return try word("false", .bool(false))
    case UInt8(ascii: "n"): return try word("null", .null)
    default: return try number()
    }
  }

  private mutating func members(_ depth: Int) throws(JSONError) -> [JSON.Member] {
    var members: [JSON.Member] = []
    offset += 1
    if take("}") { return members }
    repeat {
      skipSpace()
      let key = try string()
      guard take(":") else { throw error }
      members.append(JSON.Member(key: key, value: try value(depth: depth + 1)))
    } while take(",")
    guard take("}") else { throw error }
    return members
  }

  private mutating func elements(_ depth: Int) throws(JSONError) -> [JSON] {
    var elements: [JSON] = []
    offset += 1
    if take("]") { return elements }
    repeat { elements.append(try value(depth: depth + 1)) } while take(",")
    guard take("]") else { throw error }
    return elements
  }

  private mutating func number() throws(JSONError) -> JSON {
    let start = offset
    while let byte = next, "+-.0123456789eE".utf8.contains(byte) { offset += 1 }
    let digits = String(decoding: bytes[start..<offset], as: UTF8.self)
    guard Double(digits) != nil else {
      offset = start
      throw error
    }
    return .number(digits)
  }

  private mutating func string() throws(JSONError) -> String {
    guard next == UInt8(ascii: "\"") else { throw error }
    offset += 1
    var units: [UInt8] = []
    while let byte = next, byte >= 0x20 {
      offset += 1
      switch byte {
      case UInt8(ascii: "\""): return String(decoding: units, as: UTF8.self)
      case UInt8(ascii: "\\"): units += try escaped()
      default: units.append(byte)
      }
    }
    throw error
  }

  private mutating func escaped() throws(JSONError) -> [UInt8] {
    guard let byte = next else { throw error }
    offset += 1
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): return [byte]
    case UInt8(ascii: "b"): return [0x08]
    case UInt8(ascii: "f"): return [0x0c]
    case UInt8(ascii: "n"): return [0x0a]
    case UInt8(ascii: "r"): return [0x0d]
    case UInt8(ascii: "t"): return [0x09]
    case UInt8(ascii: "u"):
      var units = [try unit()]
      if UTF16.isLeadSurrogate(units[0]), bytes[offset...].starts(with: [0x5c, 0x75]) {
        offset += 2
        units.append(try unit())
      }
      return Array(String(decoding: units, as: UTF16.self).utf8)
    default:
      offset -= 1
      throw error
    }
  }

  private mutating func unit() throws(JSONError) -> UInt16 {
    guard bytes.count - offset >= 4 else { throw error }
    let digits = bytes[offset..<offset + 4]
    guard !digits.contains(UInt8(ascii: "+")), !digits.contains(UInt8(ascii: "-")),
      let unit = UInt16(String(decoding: digits, as: UTF8.self), radix: 16)
    else { throw error }
    offset += 4
    return unit
  }
}
