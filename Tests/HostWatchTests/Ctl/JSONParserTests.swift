import Testing

@testable import hostwatchctl

@Suite struct JSONParserTests {
  @Test func everyKindOfValue() throws {
    let text = #" { "a" : [ 1, -2.5e3, true, false, null, {} , [] ], "b" : "x" } "#
    let value = try JSONParser.parse(text)
    #expect(
      value["a"]
        == .array([
          .number("1"), .number("-2.5e3"), .bool(true), .bool(false), .null, .object([:]),
          .array([]),
        ]))
    #expect(value["a"].elements[1].double == -2500)
    #expect(value["b"].text == "x")
    #expect(value["c"] == .null && value["b"]["c"] == .null)
    #expect(value["b"].elements.isEmpty && value["b"].double == nil && value["a"].text == nil)
  }

  @Test func digitsOfLargeNumbersAreKept() throws {
    #expect(try JSONParser.parse("18446744073709551615") == .number("18446744073709551615"))
  }

  @Test func numbersThatAreNoInteger() throws {
    #expect(try JSONParser.parse("77").integer == 77)
    for text in ["1e300", "1e999", "-1e19", "2.5", "\"2\""] {
      #expect(try JSONParser.parse(text).integer == nil, "\(text)")
    }
  }

  @Test func escapesAndTheirReverse() throws {
    let value = try JSONParser.parse(#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00é""#)
    #expect(value.text == "\"\\/\u{8}\u{c}\n\r\t\u{e9}\u{1f600}\u{e9}")
    // Half of a pair is no character.
    #expect(try JSONParser.parse(#""\ud83dx""#).text == "\u{fffd}x")
    let text = JSON.string("\u{1}\u{7f}\u{9b}\"\\\n")
    #expect(text.encoded == #""\u0001\u007f\u009b\"\\\n""#)
    #expect(try JSONParser.parse(text.encoded) == text)
    let whole: JSON = .object(["k": .array([.null, .bool(false), .number(7)])])
    #expect(whole.encoded == #"{"k":[null,false,7]}"#)
    #expect(try JSONParser.parse(whole.encoded) == whole)
  }

  @Test(arguments: [
    ("", 0), (" ", 1), ("{", 1), ("[1,]", 3), ("[1 2]", 3), (#"{"a"}"#, 4), (#"{a:1}"#, 1),
    ("tru", 0), ("1 1", 2), (#""abc"#, 4), ("\"a\nb\"", 2), (#""\x""#, 2), (#""\u12g4""#, 3),
    (#""\u+123""#, 3), ("-", 0), ("[1", 2), ("nan", 0),
  ])
  func whatIsNotJSONIsRefusedWithItsPlace(_ text: String, _ offset: Int) {
    #expect(throws: JSONError(offset: offset)) { try JSONParser.parse(text) }
  }

  @Test func depthIsBounded() throws {
    func nested(_ depth: Int) -> String {
      String(repeating: "[", count: depth) + String(repeating: "]", count: depth)
    }
    _ = try JSONParser.parse(nested(64))
    #expect(throws: JSONError(offset: 64)) { try JSONParser.parse(nested(65)) }
  }
}
