/// A JSON value. Numbers keep their digits, so that 64-bit ones stay exact.
indirect enum JSON: Equatable {
  case null
  case bool(Bool)
  case number(String)
  case string(String)
  case array([JSON])
  /// In the order they are written.
  case object([Member])

  struct Member: Equatable {
    let key: String
    let value: JSON
  }

  static func number(_ value: some BinaryInteger) -> JSON { .number(String(value)) }
  static func strings(_ values: [String]) -> JSON { .array(values.map { .string($0) }) }
  static func object(_ members: KeyValuePairs<String, JSON>) -> JSON {
    .object(members.map { Member(key: $0.key, value: $0.value) })
  }

  /// The member of an object; `.null` where there is none.
  subscript(key: String) -> JSON {
    guard case .object(let members) = self else { return .null }
    return members.first { $0.key == key }?.value ?? .null
  }

  var elements: [JSON] {
    guard case .array(let elements) = self else { return [] }
    return elements
  }

  /// Nil for everything but strings.
  var text: String? {
    guard case .string(let text) = self else { return nil }
    return text
  }

  /// Nil for everything but numbers; fractions are cut off.
  var double: Double? {
    guard case .number(let digits) = self else { return nil }
    return Double(digits)
  }

  /// Nil for everything but whole numbers that fit.
  var integer: Int? { double.flatMap { Int(exactly: $0) } }

  /// On one line, without spaces.
  var encoded: String {
    var text = ""
    encode(to: &text)
    return text
  }

  private func encode(to text: inout String) {
    switch self {
    case .null: text += "null"
    case .bool(let value): text += value ? "true" : "false"
    case .number(let digits): text += digits
    case .string(let value): Self.encode(value, to: &text)
    case .array(let elements):
      text += "["
      for (index, element) in elements.enumerated() {
        if index > 0 { text += "," }
        element.encode(to: &text)
      }
      text += "]"
    case .object(let members):
      text += "{"
      for (index, member) in members.enumerated() {
        if index > 0 { text += "," }
        Self.encode(member.key, to: &text)
        text += ":"
        member.value.encode(to: &text)
      }
      text += "}"
    }
  }

  private static func encode(_ value: String, to text: inout String) {
    text += "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": text += "\\\""
      case "\\": text += "\\\\"
      case "\n": text += "\\n"
      case "\r": text += "\\r"
      case "\t": text += "\\t"
      // C1 controls too: a terminal may act upon them.
      case "\u{00}"..."\u{1f}", "\u{7f}"..."\u{9f}":
        let digits = String(scalar.value, radix: 16)
        text += "\\u" + String(repeating: "0", count: 4 - digits.count) + digits
      default: text.unicodeScalars.append(scalar)
      }
    }
    text += "\""
  }
}
