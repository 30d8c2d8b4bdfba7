@testable import HostWatch

/// A client's packet: decoded or refused with a sentence. The first byte says
/// how many descriptors came with it.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzRequests(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  guard size > 0 else { return 0 }
  let descriptors = Int(data[0])
  let packet = UnsafeRawBufferPointer(start: data + 1, count: size - 1)
  do throws(RequestError) {
    let request = try RequestDecoder.decode(packet.bytes, descriptors: descriptors)
    switch request {
    case .register(let entries):
      precondition(entries.count == descriptors, "an object without its descriptor")
      precondition(24 + entries.count * 40 == packet.count)
    case .forget(let nodes): precondition(24 + nodes.count * 16 == packet.count)
    case .interest(let entries): precondition(24 + entries.count * 24 == packet.count)
    case .initialize(let value):
      precondition(value.share != nil || descriptors == 1, "a root without its descriptor")
    case .initializeOther(let major): precondition(major != 1 && packet.count >= 18)
    case .sync, .status: break
    }
  } catch {
    precondition(!error.text.isEmpty)
  }
  return 0
}
