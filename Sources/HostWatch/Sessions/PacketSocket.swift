import CFanotify
import Glibc

/// The buffer for one packet and its descriptors: one for all sessions, since
/// a packet is dealt with before the next is received.
@safe final class PacketReceiver {
  /// No request is longer.
  static let capacity = 131_072

  enum Outcome {
    case packet(descriptors: DescriptorList)
    case tooLarge(descriptors: DescriptorList)
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
  ///   - admitted: whether descriptors are received; otherwise the kernel drops them,
  ///     without asking anybody.
  func receive(
    from socket: Int32, closer: DescriptorCloser, sender: DescriptorCloser.Sender, admitted: Bool
  ) -> Outcome {
    var numbers = [Int32](repeating: -1, count: Int(hw_descriptors_max))
    // The array has room for as many descriptors as the kernel passes.
    let received = unsafe numbers.withUnsafeMutableBufferPointer {
      unsafe hw_receive(socket, buffer, PacketReceiver.capacity, $0.baseAddress, !admitted)
    }
    if received.size < 0 {
      let code = Int32(-received.size)
      return code == EAGAIN ? .nothing : .failed(SystemError("recvmsg", code))
    }
    numbers.removeLast(numbers.count - Int(received.descriptor_count))
    let descriptors = DescriptorList(numbers, closer: closer, sender: sender)
    if received.size == 0 { return .hangUp }
    count = min(received.size, PacketReceiver.capacity)
    return received.truncated || received.descriptors_lost
      ? .tooLarge(descriptors: descriptors) : .packet(descriptors: descriptors)
  }

  /// Calls `body` with the packet received last.
  func withPacket<Result, Failure: Error>(_ body: (RawSpan) throws(Failure) -> Result)
    throws(Failure) -> Result
  {
    // `count` bytes have been written; the buffer outlives the call.
    try body(unsafe RawSpan(_unsafeStart: buffer, byteCount: count))
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
