/// How much room text takes in a terminal.
enum Columns {
  /// The cells that `text` takes: two for what East Asian scripts and pictures
  /// take, one for everything else. Control characters have to be escaped before.
  static func width(_ text: String) -> Int {
    text.reduce(0) { $0 + width($1) }
  }

  /// As much of `text` as fits into `limit` cells; "…" stands for the rest.
  static func cut(_ text: String, to limit: Int) -> String {
    guard limit > 0 else { return "" }
    guard width(text) > limit else { return text }
    var result = ""
    var used = 0
    for character in text {
      let more = width(character)
      if used + more > limit - 1 { break }
      result.append(character)
      used += more
    }
    return result + "…"
  }

  private static func width(_ character: Character) -> Int {
    guard let first = character.unicodeScalars.first?.value else { return 0 }
    return wide.contains { $0.contains(first) } ? 2 : 1
  }

  /// The blocks that are wide as a whole (Unicode's EastAsianWidth.txt).
  private static let wide: [ClosedRange<UInt32>] = [
    0x1100...0x115f, 0x2e80...0x303e, 0x3041...0xa4cf, 0xac00...0xd7a3, 0xf900...0xfaff,
    0xfe30...0xfe6f, 0xff00...0xff60, 0xffe0...0xffe6, 0x1f300...0x1f64f, 0x1f900...0x1f9ff,
    0x20000...0x3fffd,
  ]
}
