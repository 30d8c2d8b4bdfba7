/// Finds the line on which a key of a TOML text stands.
///
/// In: a text that a TOML parser accepted. Out: the line of each key, table
/// header and array element. The parser says where a text breaks its grammar,
/// but not where a value came from, hence this second, smaller reading. It
/// checks nothing: a text that is not TOML gives lines that mean nothing, but
/// neither traps nor loops.
struct SourceLocator {
  /// Counted from 1.
  private(set) var lines: [KeyPath: Int] = [:]
  /// Lines with a string that holds an escaped NUL. TOML allows it, no path
  /// or name can hold it, and the parser's strings would end there silently.
  private(set) var nulLines: [Int] = []

  /// Lines where a table's name or an array's element is not there but something
  /// else. The parser would abort the process on them.
  private(set) var gapLines: [Int] = []

  private let text: [UInt8]
  private var position = 0
  private var line = 1
  /// How many tables `[[path]]` has opened so far.
  private var tableCounts: [KeyPath: Int] = [:]

  init(_ source: String) {
    text = Array(source.utf8)
    readDocument()
  }

  /// The line of `path`, or of the nearest thing around it that has one.
  func line(of path: KeyPath) -> Int? {
    var path = path
    while !path.isEmpty {
      if let line = lines[path] { return line }
      path.removeLast()
    }
    return nil
  }

  static func isBareKeyByte(_ byte: UInt8) -> Bool {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "_"), UInt8(ascii: "-"):
      true
    default: false
    }
  }
}

// The statements of a document.
extension SourceLocator {
  private mutating func readDocument() {
    var table: KeyPath = []
    while true {
      skipBlank()
      guard let byte = current else { return }
      let before = position
      if byte == UInt8(ascii: "[") {
        table = readHeader()
      } else {
        readPair(in: table)
      }
      // Not TOML: step over it, so that the reading ends.
      if position == before { advance() }
    }
  }

  /// `[a.b]` or `[[a.b]]`: the path that the pairs below it belong to.
  private mutating func readHeader() -> KeyPath {
    advance()
    let isArray = current == UInt8(ascii: "[")
    if isArray { advance() }
    let headerLine = line
    skipSpaces()
    if !startsKey, current != UInt8(ascii: "]") { gapLines.append(headerLine) }
    let keys = readKeys()
    var path: KeyPath = []
    for (number, key) in keys.enumerated() {
      path.append(.key(key))
      if lines[path] == nil { lines[path] = headerLine }
      if number == keys.count - 1, isArray { tableCounts[path, default: 0] += 1 }
      // A path through an array of tables means its latest table.
      if let count = tableCounts[path] { path.append(.index(count - 1)) }
    }
    lines[path] = lines[path] ?? headerLine
    while let byte = current, byte != UInt8(ascii: "\n"), byte != UInt8(ascii: "#") { advance() }
    return path
  }

  private mutating func readPair(in table: KeyPath) {
    let pairLine = line
    var path = table
    for key in readKeys() {
      path.append(.key(key))
      if lines[path] == nil { lines[path] = pairLine }
    }
    skipSpaces()
    guard current == UInt8(ascii: "=") else { return }
    advance()
    readValue(at: path, depth: 0)
  }

  /// `a . "b" . 'c'`
  private mutating func readKeys() -> [String] {
    var keys: [String] = []
    while true {
      skipSpaces()
      guard let key = readKey() else { return keys }
      keys.append(key)
      skipSpaces()
      guard current == UInt8(ascii: ".") else { return keys }
      advance()
    }
  }

  private var startsKey: Bool {
    current.map {
      $0 == UInt8(ascii: "\"") || $0 == UInt8(ascii: "'") || SourceLocator.isBareKeyByte($0)
    } ?? false
  }

  private mutating func readKey() -> String? {
    guard let byte = current else { return nil }
    if byte == UInt8(ascii: "\"") || byte == UInt8(ascii: "'") { return readString() }
    let start = position
    while let byte = current, SourceLocator.isBareKeyByte(byte) { advance() }
    return position > start ? String(decoding: text[start..<position], as: UTF8.self) : nil
  }
}

// Values.
extension SourceLocator {
  /// Deeper nesting than any parser takes is not followed.
  private static let depthLimit = 64

  private mutating func readValue(at path: KeyPath, depth: Int) {
    skipSpaces()
    guard let byte = current, depth < SourceLocator.depthLimit else { return }
    switch byte {
    case UInt8(ascii: "\""), UInt8(ascii: "'"): _ = readString()
    case UInt8(ascii: "["): readArray(at: path, depth: depth)
    case UInt8(ascii: "{"): readInlineTable(at: path, depth: depth)
    default: skipScalar()
    }
  }

  private mutating func readArray(at path: KeyPath, depth: Int) {
    advance()
    var index = 0
    while true {
      skipBlank()
      guard let byte = current else { return }
      if byte == UInt8(ascii: "]") { return advance() }
      if byte == UInt8(ascii: ",") {
        advance()
        index += 1
        continue
      }
      if byte == UInt8(ascii: "}") { gapLines.append(line) }
      let before = position
      let element = path + [.index(index)]
      lines[element] = line
      readValue(at: element, depth: depth + 1)
      if position == before { advance() }
    }
  }

  private mutating func readInlineTable(at path: KeyPath, depth: Int) {
    advance()
    while true {
      skipBlank()
      guard let byte = current else { return }
      if byte == UInt8(ascii: "}") { return advance() }
      let before = position
      if byte != UInt8(ascii: ",") {
        var inner = path
        for key in readKeys() {
          inner.append(.key(key))
          if lines[inner] == nil { lines[inner] = line }
        }
        skipSpaces()
        if current == UInt8(ascii: "=") {
          advance()
          readValue(at: inner, depth: depth + 1)
        }
      }
      if position == before { advance() }
    }
  }

  /// A number, a boolean or a date: up to what may follow a value.
  private mutating func skipScalar() {
    while let byte = current {
      switch byte {
      case UInt8(ascii: ","), UInt8(ascii: "]"), UInt8(ascii: "}"), UInt8(ascii: "#"),
        UInt8(ascii: "\n"):
        return
      default: advance()
      }
    }
  }
}

// Strings.
extension SourceLocator {
  /// One string of any of the four kinds; escapes are taken apart.
  private mutating func readString() -> String {
    guard let quote = current else { return "" }
    let isMultiline = startsWith([quote, quote, quote])
    advance(isMultiline ? 3 : 1)
    var bytes: [UInt8] = []
    while let byte = current {
      if byte == quote, !isMultiline || startsWith([quote, quote, quote]) {
        closeString(quote, isMultiline: isMultiline)
        break
      }
      if byte == UInt8(ascii: "\n"), !isMultiline { break }
      if byte == UInt8(ascii: "\\"), quote == UInt8(ascii: "\"") {
        readEscape(into: &bytes)
      } else {
        bytes.append(byte)
        advance()
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// Up to two quotes may stand right before the closing three.
  private mutating func closeString(_ quote: UInt8, isMultiline: Bool) {
    advance(isMultiline ? 3 : 1)
    guard isMultiline else { return }
    for _ in 0..<2 where current == quote { advance() }
  }

  private mutating func readEscape(into bytes: inout [UInt8]) {
    advance()
    guard let kind = current else { return }
    advance()
    switch kind {
    case UInt8(ascii: "b"): bytes.append(0x08)
    case UInt8(ascii: "t"): bytes.append(0x09)
    case UInt8(ascii: "n"): bytes.append(0x0A)
    case UInt8(ascii: "f"): bytes.append(0x0C)
    case UInt8(ascii: "r"): bytes.append(0x0D)
    case UInt8(ascii: "u"): readCodePoint(digits: 4, into: &bytes)
    case UInt8(ascii: "U"): readCodePoint(digits: 8, into: &bytes)
    case UInt8(ascii: "\n"): break  // the string goes on in the next line
    default: bytes.append(kind)
    }
  }

  private mutating func readCodePoint(digits: Int, into bytes: inout [UInt8]) {
    var value: UInt32 = 0
    for _ in 0..<digits {
      guard let byte = current, let digit = Character(UnicodeScalar(byte)).hexDigitValue else {
        break
      }
      value = value << 4 | UInt32(digit)
      advance()
    }
    if value == 0 { nulLines.append(line) }
    guard let scalar = UnicodeScalar(value) else { return }
    bytes.append(contentsOf: Character(scalar).utf8)
  }
}

// The cursor.
extension SourceLocator {
  private var current: UInt8? { position < text.count ? text[position] : nil }

  private mutating func advance(_ count: Int = 1) {
    for _ in 0..<count where position < text.count {
      if text[position] == UInt8(ascii: "\n") { line += 1 }
      position += 1
    }
  }

  private func startsWith(_ bytes: [UInt8]) -> Bool { text[position...].starts(with: bytes) }

  private mutating func skipSpaces() {
    while let byte = current, byte == 0x20 || byte == 0x09 { advance() }
  }

  /// Spaces, newlines and comments.
  private mutating func skipBlank() {
    while let byte = current {
      if byte == UInt8(ascii: "#") {
        while let byte = current, byte != UInt8(ascii: "\n") { advance() }
      } else if byte == 0x20 || byte == 0x09 || byte == 0x0A || byte == 0x0D {
        advance()
      } else {
        return
      }
    }
  }
}
