import Testing

@testable import hostwatchd

@Suite struct SourceLocatorTests {
  private func line(_ path: KeyPath, in text: String) -> Int? { SourceLocator(text).line(of: path) }

  @Test func findsKeysBelowTheirTable() {
    let text = "top = 1\n\n[a]\nx = 1 # c\n[ a . b ]\r\ny = 2\n"
    #expect(line([.key("top")], in: text) == 1)
    #expect(line([.key("a")], in: text) == 3)
    #expect(line([.key("a"), .key("x")], in: text) == 4)
    #expect(line([.key("a"), .key("b"), .key("y")], in: text) == 6)
  }

  @Test func countsArraysOfTables() {
    let text = "[[s]]\nn = 1\n[[s]]\nn = 2\n[s.sub]\nm = 3\n[[s.t]]\nk = 1\n[[s]]\n[[s.t]]\nk = 2"
    #expect(line([.key("s"), .index(0), .key("n")], in: text) == 2)
    #expect(line([.key("s"), .index(1), .key("n")], in: text) == 4)
    #expect(line([.key("s"), .index(1), .key("sub"), .key("m")], in: text) == 6)
    #expect(line([.key("s"), .index(1), .key("t"), .index(0), .key("k")], in: text) == 8)
    #expect(line([.key("s"), .index(2), .key("t"), .index(0), .key("k")], in: text) == 11)
  }

  @Test func readsDottedAndQuotedKeys() {
    let text = "a . \"b c\".'d' = 1\n\"e\\u0041\\\"\" = 2\n[\"x.y\"]\nz = 1"
    #expect(line([.key("a"), .key("b c"), .key("d")], in: text) == 1)
    #expect(line([.key("eA\"")], in: text) == 2)
    #expect(line([.key("x.y"), .key("z")], in: text) == 4)
  }

  @Test func followsValuesOverLines() {
    let text = """
      a = [ # first ]
        "x, ]", [1,
        2],
        { k = "v", l = '}' } ]
      b = \"\"\"
      c = 1
      \\\"\"\" still""\"""\"
      d = '''
      e = [
      '''
      f = 1979-05-27T07:32:00Z
      g = { h = { i = 1 }, j = [
        3 ] }
      """
    #expect(line([.key("a"), .index(0)], in: text) == 2)
    #expect(line([.key("a"), .index(1), .index(1)], in: text) == 3)
    #expect(line([.key("a"), .index(2), .key("l")], in: text) == 4)
    #expect(line([.key("b")], in: text) == 5)
    #expect(SourceLocator(text).lines[[.key("c")]] == nil)
    #expect(SourceLocator(text).lines[[.key("e")]] == nil)
    #expect(line([.key("d")], in: text) == 8)
    #expect(line([.key("f")], in: text) == 11)
    #expect(line([.key("g"), .key("h"), .key("i")], in: text) == 12)
    #expect(line([.key("g"), .key("j"), .index(0)], in: text) == 13)
  }

  @Test func fallsBackToWhatIsAround() {
    #expect(line([.key("a"), .key("missing")], in: "\n[a]\n") == 2)
    #expect(line([.key("missing")], in: "a = 1") == nil)
    #expect(line([], in: "a = 1") == nil)
  }

  @Test func noticesEscapedNULs() {
    #expect(SourceLocator("a = \"x\\u0000\"\nb = '\\u0000'\n# \\u0000").nulLines == [1])
    #expect(SourceLocator("a = \"\"\"\n\\U00000000\"\"\"").nulLines == [2])
  }

  /// Every prefix of a text is some broken text: none may trap or hang.
  @Test func endsOnBrokenTexts() {
    let text =
      "[[a.'b']]\nc = [1, {d = \"\\u00e9\\\n\", e = '''x'''}] # é\n[f.\"g\"]\nh.i = \"\"\"j\"\"\"\""
    let bytes = Array(text.utf8)
    for count in bytes.indices {
      _ = SourceLocator(String(decoding: bytes[..<count], as: UTF8.self))
      _ = SourceLocator(String(decoding: bytes[count...], as: UTF8.self))
    }
    _ = SourceLocator(String(repeating: "[", count: 10_000))
    _ = SourceLocator("a = " + String(repeating: "[", count: 10_000))
    _ = SourceLocator("a = " + String(repeating: "{b=", count: 10_000))
  }
}
