extension HostWatchClient {
  /// A name or a path as the filesystem has it: bytes without NUL, in no
  /// promised encoding. Empty where a record has none.
  public struct Name: Hashable, Sendable {
    /// As readdir(3) gives them.
    public let bytes: [UInt8]

    /// A name of any bytes.
    public init(_ bytes: [UInt8]) { self.bytes = bytes }
    /// A name of UTF-8.
    public init(_ string: String) { bytes = Array(string.utf8) }

    /// No name was told.
    public var isEmpty: Bool { bytes.isEmpty }

    /// The name as text, or nil when it is not UTF-8.
    public var string: String? { String(validating: bytes, as: UTF8.self) }
  }
}

extension HostWatchClient.Name: CustomStringConvertible {
  /// The name on one line that no terminal acts upon and no other name has:
  /// spaces, backslashes, control and formatting characters and what is not
  /// UTF-8 are escaped the way `ls -b` does (`\ `, `\n`, `\033`).
  public var description: String {
    var text = ""
    text.reserveCapacity(bytes.count)
    var position = 0
    var rest = bytes.makeIterator()
    var parser = Unicode.UTF8.ForwardParser()
    while true {
      switch parser.parseScalar(from: &rest) {
      case .emptyInput:
        return text
      case .error(let length):
        Self.appendOctal(bytes[position..<position + length], to: &text)
        position += length
      case .valid(let encoded):
        let scalar = Unicode.UTF8.decode(encoded)
        Self.append(scalar, bytes[position..<position + encoded.count], to: &text)
        position += encoded.count
      }
    }
  }

  private static func append(
    _ scalar: Unicode.Scalar, _ encoded: ArraySlice<UInt8>, to text: inout String
  ) {
    switch scalar {
    case " ": text += "\\ "
    case "\\": text += "\\\\"
    case "\u{07}": text += "\\a"
    case "\u{08}": text += "\\b"
    case "\t": text += "\\t"
    case "\n": text += "\\n"
    case "\u{0B}": text += "\\v"
    case "\u{0C}": text += "\\f"
    case "\r": text += "\\r"
    default:
      switch scalar.properties.generalCategory {
      // Format characters turn text around or hide it; separators end lines.
      case .control, .format, .lineSeparator, .paragraphSeparator, .unassigned, .privateUse:
        appendOctal(encoded, to: &text)
      default:
        text.unicodeScalars.append(scalar)
      }
    }
  }

  private static func appendOctal(_ bytes: ArraySlice<UInt8>, to text: inout String) {
    for byte in bytes {
      let digits = String(byte, radix: 8)
      text += "\\" + String(repeating: "0", count: 3 - digits.count) + digits
    }
  }
}
