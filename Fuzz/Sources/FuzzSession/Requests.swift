import CHostWatch
import Glibc

@testable import HostWatch

/// What a client has asked and has no answer to yet, in order.
struct Requests {
  /// A packet that was sent.
  struct Sent {
    let packet: [UInt8]
    /// Of `Place.open`, one for each descriptor that came with it.
    let kinds: [UInt8]

    /// What its answer says, as far as the packet has a header.
    var type: UInt16 { packet.count < 16 ? 0 : load(4) }
    var unique: UInt64 { packet.count < 16 ? 0 : load(8) }
    /// How many entries a batch has that was answered without an error.
    var count: Int { Int(load(16) as UInt32) }

    func load<Number: FixedWidthInteger & BitwiseCopyable>(_ offset: Int) -> Number {
      packet.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: Number.self) }
    }

    /// The identity of an entry of `size` bytes.
    func node(_ index: Int, size: Int) -> NodeID {
      NodeID(nodeid: load(24 + index * size), generation: load(32 + index * size))
    }
  }

  private var waiting: [Sent] = []

  /// Those that must be answered.
  var unanswered: [Sent] { waiting.filter { $0.type != UInt16(HW_FORGET) } }

  mutating func add(_ sent: Sent) { waiting.append(sent) }

  /// Takes the request that a reply belongs to. Before it there may be FORGETs, which have
  /// no answer if nothing is wrong with them.
  mutating func take(_ header: hw_header) -> (forgets: [Sent], request: Sent) {
    var forgets: [Sent] = []
    while let first = waiting.first {
      waiting.removeFirst()
      if first.type | UInt16(HW_REPLY) == header.type && first.unique == header.unique {
        return (forgets, first)
      }
      precondition(
        first.type == UInt16(HW_FORGET),
        "\(first.type)/\(first.unique) has no answer before that to \(header)")
      forgets.append(first)
    }
    preconditionFailure("an answer to nothing: \(header)")
  }
}
