@testable import HostWatch

/// What one daemon hands over to the next: taken or refused, and what is taken
/// says the same when it is handed over again. The first byte is how many
/// descriptors came with it; the header is made here, since an input does not
/// find its checksum by itself.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzHandOver(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  guard size > 0 else { return 0 }
  let descriptors = Int(data[0])
  let body = Array(UnsafeBufferPointer(start: data + 1, count: size - 1))
  var bytes = HandOverEncoder.magic
  append(HandOverState.version, to: &bytes)
  append(UInt32(0), to: &bytes)
  append(UInt64(body.count), to: &bytes)
  append(UInt64(0), to: &bytes)
  bytes += body
  withUnsafeBytes(of: HandOverEncoder.hash(bytes)) { bytes.replaceSubrange(24..<32, with: $0) }
  do throws(HandOverError) {
    let state = try HandOverDecoder.decode(bytes, descriptors: descriptors)
    let again = HandOverEncoder.encode(state)
    guard let same = try? HandOverDecoder.decode(again, descriptors: descriptors) else {
      preconditionFailure("what was taken is refused when it is handed over again")
    }
    precondition(same == state, "it says something else when it is handed over again")
  } catch {
    precondition(!error.description.isEmpty)
  }
  return 0
}

private func append(_ number: some FixedWidthInteger, to bytes: inout [UInt8]) {
  withUnsafeBytes(of: number) { bytes += $0 }
}
