/// The answer to STATUS, as hostwatchctl reads it: a value, which says the same when it
/// is written again, or a place in the text.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzJSON(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  let bytes = UnsafeBufferPointer(start: data, count: size)
  guard let text = String(validating: bytes, as: UTF8.self) else { return 0 }
  do throws(JSONError) {
    let value = try JSONParser.parse(text)
    guard let again = try? JSONParser.parse(value.encoded) else {
      preconditionFailure("what was read is refused when it is written again")
    }
    precondition(again == value, "it says something else when it is written again")
  } catch {
    precondition((0...size).contains(error.offset), "a place outside the text")
  }
  return 0
}
