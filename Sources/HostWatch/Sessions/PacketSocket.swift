import CFanotify
import CHostWatch
import Glibc

/// The buffer for one packet and its descriptors: one for all sessions, since
/// a packet is dealt with before the next is received.
@safe final class PacketReceiver {
  /// No request is longer.
  static let capacity = 131_072

  enum Outcome {
    case packet(descriptors: DescriptorList)
    case tooLarge(descriptors: DescriptorList)
    /// Without all of its descriptors: this process had no room for them.
    case incomplete
    case nothing
    case hangUp
    case failed(SystemError)
  }

  private let buffer: UnsafeMutableRawPointer
  private(set) var count = 0

  init() {
    unsafe buffer = UnsafeMutableRawPointer.allocate(
      byteCount: PacketReceiver.capacity, alignment: 16)
  }

  deinit { unsafe buffer.deallocate() }

  /// Receives one packet without blocking.
  ///
  /// - Parameters:
  ///   - closer: closes the descriptors that come with it, once nobody needs them.
  ///   - sender: whose they are.
  func receive(
    from socket: Int32, closer: DescriptorCloser, sender: DescriptorCloser.Sender
  ) -> Outcome {
    var numbers = [Int32](repeating: -1, count: Int(hw_descriptors_max))
    // The array has room for as many descriptors as the kernel passes.
    let received = unsafe numbers.withUnsafeMutableBufferPointer {
      unsafe hw_receive(socket, buffer, PacketReceiver.capacity, $0.baseAddress)
    }
    if received.size < 0 {
      let code = Int32(-received.size)
      return code == EAGAIN ? .nothing : .failed(SystemError("recvmsg", code))
    }
    numbers.removeLast(numbers.count - Int(received.descriptor_count))
    let descriptors = DescriptorList(numbers, closer: closer, sender: sender)
    if received.size == 0 { return .hangUp }
    count = min(received.size, PacketReceiver.capacity)
    if received.truncated { return .tooLarge(descriptors: descriptors) }
    return received.descriptors_lost ? .incomplete : .packet(descriptors: descriptors)
  }

  /// Whether the next packet has descriptors. It stays in the socket; its header is what
  /// `withPacket` gives.
  func nextHasDescriptors(in socket: Int32) -> Bool {
    var hasDescriptors = false
    // The buffer is larger than a header.
    let size = unsafe hw_look(socket, buffer, MemoryLayout<hw_header>.size, &hasDescriptors)
    count = max(0, size)
    return hasDescriptors
  }

  /// Calls `body` with the packet received last.
  func withPacket<Result, Failure: Error>(_ body: (RawSpan) throws(Failure) -> Result)
    throws(Failure) -> Result
  {
    // `count` bytes have been written; the buffer outlives the call.
    try body(unsafe RawSpan(_unsafeStart: buffer, byteCount: count))
  }
}

/// A client's connection, closed when it goes.
///
/// With it go the packets that have not been received, and to release a descriptor in
/// them may wait for a server: for FUSE's that has cached writes. Then a helper does that.
final class ClientSocket {
  let rawValue: Int32
  private let closer: DescriptorCloser
  private let uid: UInt32

  init(_ socket: consuming OwnedDescriptor, closer: DescriptorCloser, uid: UInt32) {
    rawValue = socket.take()
    self.closer = closer
    self.uid = uid
  }

  /// Another process has it, too, and goes on.
  var isHandedOver = false

  deinit {
    if isHandedOver {
      _ = close(rawValue)
      return
    }
    // Nothing comes in any more; what is queued for the peer it can read still.
    _ = shutdown(rawValue, Int32(SHUT_RDWR))
    if descriptors == 0 {
      _ = close(rawValue)
    } else {
      closer.closeConnection(rawValue, ofUser: uid)
    }
  }

  /// Descriptors in packets that have not been received; nil where that is not to be had:
  /// before Linux 5.6, or as there is no descriptor left to look.
  var descriptors: Int? {
    guard let text = try? Syscall.contents(of: "/proc/self/fdinfo/\(rawValue)") else { return nil }
    for line in String(decoding: text, as: UTF8.self).split(separator: "\n")
    where line.hasPrefix("scm_fds:") {
      return Int(line.dropFirst("scm_fds:".count).trimmingPrefix { $0 == " " || $0 == "\t" })
    }
    return nil
  }
}

/// Descriptors that came with a packet: all are closed when the list goes.
final class DescriptorList {
  let numbers: [Int32]
  /// All have been found to be of a filesystem where close(2) waits for nobody.
  var closeAtOnce = false
  private let owner: (closer: DescriptorCloser, sender: DescriptorCloser.Sender)?

  /// Descriptors that this process has opened itself.
  init(_ numbers: [Int32]) {
    self.numbers = numbers
    owner = nil
  }

  /// Descriptors that a peer has sent.
  init(_ numbers: [Int32], closer: DescriptorCloser, sender: DescriptorCloser.Sender) {
    self.numbers = numbers
    owner = (closer, sender)
  }

  deinit {
    if let owner, !closeAtOnce { return owner.closer.close(numbers, of: owner.sender) }
    for number in numbers { _ = close(number) }
  }
}
