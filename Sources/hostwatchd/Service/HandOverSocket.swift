import CFanotify
import Glibc
import HostWatch

/// How a hand-over gets from one process to the next: as one descriptor, a socket
/// in whose receive queue the others lie, in order. The first is a sealed memfd with the
/// state.
///
/// So it takes one place in the descriptor store, is there as a whole or not at all, and
/// can be read once.
enum HandOverSocket {
  /// More than any state could need.
  private static let largestState = 8 << 30

  static func make(_ handOver: HandOver) throws(SystemError) -> OwnedDescriptor {
    let memory = try sealedFile(handOver.state, name: "hostwatchd-state")
    var pair: [Int32] = [-1, -1]
    // The array has two places.
    let result = unsafe pair.withUnsafeMutableBufferPointer {
      unsafe hw_socket_pair($0.baseAddress!)
    }
    guard result == 0 else { throw SystemError("socketpair", -result) }
    let reader = OwnedDescriptor(pair[0])
    let writer = OwnedDescriptor(pair[1])
    let all = [memory.rawValue] + handOver.descriptors
    var start = 0
    while start < all.count {
      let part = Array(all[start..<min(start + Int(hw_descriptors_max), all.count)])
      let sent = unsafe part.withUnsafeBufferPointer {
        unsafe hw_send_with_descriptors(
          writer.rawValue, "D", 1, $0.baseAddress, UInt32($0.count), 0)
      }
      guard sent == 0 else { throw SystemError("sendmsg(SCM_RIGHTS)", -sent) }
      start += part.count
    }
    return reader
  }

  /// The state, or what is wrong with it, and the descriptors that came in any case.
  static func read(_ socket: borrowing OwnedDescriptor) -> (
    state: Result<[UInt8], SystemError>, descriptors: HandedDescriptors
  ) {
    var numbers: [Int32] = []
    var byte: UInt8 = 0
    var failure: Int32 = 0
    var place = [Int32](repeating: -1, count: Int(hw_descriptors_max))
    while true {
      // The array has room for as many as the kernel passes.
      let received = unsafe place.withUnsafeMutableBufferPointer {
        unsafe hw_receive(socket.rawValue, &byte, 1, $0.baseAddress)
      }
      numbers.append(contentsOf: place.prefix(Int(received.descriptor_count)))
      if received.descriptors_lost { failure = EMFILE }
      if received.size < 0 && received.size != -Int(EAGAIN) { failure = Int32(-received.size) }
      guard received.size > 0, failure == 0 else { break }
    }
    let descriptors = HandedDescriptors(Array(numbers.dropFirst()))
    guard let first = numbers.first else {
      let error = SystemError(
        "recvmsg(hand-over): no descriptors", failure == 0 ? ENODATA : failure)
      return (.failure(error), descriptors)
    }
    let file = OwnedDescriptor(first)
    guard failure == 0 else {
      return (.failure(SystemError("recvmsg(hand-over)", failure)), descriptors)
    }
    guard hw_is_sealed(file.rawValue) == 1 else {
      let error = SystemError("the state that was handed over is not sealed", EPERM)
      return (.failure(error), descriptors)
    }
    do throws(SystemError) {
      return (.success(try contents(file)), descriptors)
    } catch {
      return (.failure(error), descriptors)
    }
  }

  private static func contents(_ file: borrowing OwnedDescriptor) throws(SystemError) -> [UInt8] {
    let end = lseek(file.rawValue, 0, SEEK_END)
    guard end >= 0, end <= largestState else { throw SystemError("lseek(memfd)", EFBIG) }
    var bytes = [UInt8](repeating: 0, count: Int(end))
    var got = 0
    while got < bytes.count {
      // At most what is left of the array is written to it.
      let result = unsafe bytes.withUnsafeMutableBytes {
        unsafe pread(file.rawValue, $0.baseAddress! + got, $0.count - got, off_t(got))
      }
      if result < 0 && errno == EINTR { continue }
      guard result > 0 else { throw SystemError("read(memfd)", result == 0 ? EIO : errno) }
      got += result
    }
    return bytes
  }
}
