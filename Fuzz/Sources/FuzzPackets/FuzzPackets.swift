import CFuzzClient
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// What a daemon may send, to both client libraries: they take or refuse the same
/// packets, and tell the same.
///
/// Each packet of an input is a byte (even: its header's size is made right), its
/// length in two bytes, and its bytes. Replies go to the parsers alone, as a client
/// without a request takes none; everything else goes through a connection of the C
/// library as well.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzPackets(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  var input = FuzzInput(data, size)
  var reader = HostWatchClient.PacketReader()
  var sequence: UInt64 = 0
  var told: [Told] = []
  var sent: [[UInt8]] = []
  var isRefused = false
  for _ in 0..<32 where !input.isAtEnd && !isRefused {
    let packet = nextPacket(&input)
    let wrong = fuzz_check_packet(packet, packet.count, &sequence)
    do throws(HostWatchClient.PacketError) {
      let value = try reader.read(packet)
      if case .reply(let unique, let type, _) = value {
        precondition(wrong == nil || unique == 0 || type == 0, "C: \(String(cString: wrong!))")
        continue
      }
      precondition(wrong == nil, "refused by the C library alone: \(String(cString: wrong!))")
      precondition(sequence == reader.sequence)
      told += Told.all(value)
      sent.append(packet)
    } catch {
      isRefused = true
      guard wrong != nil else {
        precondition(error.isOfSwiftAlone, "refused by the Swift library alone: \(error)")
        continue
      }
      // A reply that is refused ends the connection as this does; it was not asked for.
      if !packet.isEmpty { sent.append(packet) }
    }
  }
  if !sent.isEmpty { Told.check(sent, told) }
  return 0
}

private func nextPacket(_ input: inout FuzzInput) -> [UInt8] {
  let isRight = input.byte() & 1 == 0
  var packet = input.block(4096)
  if isRight && packet.count >= 4 {
    withUnsafeBytes(of: UInt32(packet.count)) { packet.replaceSubrange(0..<4, with: $0) }
  }
  return packet
}

extension HostWatchClient.PacketError {
  /// The C library hands out numbers and bytes where Swift has an enumeration and text.
  fileprivate var isOfSwiftAlone: Bool {
    switch problem {
    case .wrongReason, .notUTF8: true
    default: false
    }
  }
}
