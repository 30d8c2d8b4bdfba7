import Glibc

/// A name in a directory, or that of an extended attribute: bytes without NUL.
struct Name: Hashable, Sendable, CustomStringConvertible {
  /// The bytes and a NUL.
  private let terminated: [CChar]

  init(_ bytes: some Collection<UInt8>) {
    terminated = bytes.map { CChar(bitPattern: $0) } + [0]
  }

  /// A NUL-terminated string of C.
  @unsafe init(cString: UnsafePointer<CChar>) {
    terminated = unsafe Array(UnsafeBufferPointer(start: cString, count: strlen(cString) + 1))
  }

  /// `count` bytes.
  @unsafe init(_ start: UnsafePointer<CChar>, count: Int) {
    terminated = unsafe Array(UnsafeBufferPointer(start: start, count: count)) + [0]
  }

  var count: Int { terminated.count - 1 }
  var bytes: [UInt8] { terminated.dropLast().map { UInt8(bitPattern: $0) } }
  var description: String { String(decoding: bytes, as: UTF8.self) }

  static let dot = Name([UInt8(ascii: ".")])
  static let dotDot = Name([UInt8(ascii: "."), UInt8(ascii: ".")])

  /// Calls `body` with the name as C has it; valid during the call alone.
  func withCString<Result, Failure: Error>(
    _ body: (UnsafePointer<CChar>) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    let outcome: Swift.Result<Result, Failure> = unsafe terminated.withUnsafeBufferPointer {
      buffer in
      do throws(Failure) {
        // It holds the NUL at least.
        return .success(try unsafe body(buffer.baseAddress!))
      } catch {
        return .failure(error)
      }
    }
    return try outcome.get()
  }
}

/// An errno that a request is answered with.
struct Failure: Error, Equatable {
  let code: Int32
  init(_ code: Int32) { self.code = code }

  /// Of an object that was there: it is gone. Any other failure says nothing of it.
  var isGone: Bool { code == ESTALE || code == ENOENT }
  /// No descriptor is free, of this process or of all.
  var isShortage: Bool { code == EMFILE || code == ENFILE }
}

/// What a call of CHostWatchFS or libfuse returned, or its errno thrown.
@discardableResult
func check<Value: SignedInteger>(_ result: Value) throws(Failure) -> Value {
  guard result >= 0 else { throw Failure(Int32(-result)) }
  return result
}
