import CFanotify
import Glibc
import HostWatch

/// A file in memory with these bytes, which nobody can change any more.
///
/// - Parameter name: what it is called in /proc.
func sealedFile(_ bytes: [UInt8], name: String) throws(SystemError) -> OwnedDescriptor {
  let number = unsafe name.withCString { unsafe hw_memfd($0) }
  guard number >= 0 else { throw SystemError("memfd_create", -number) }
  let file = OwnedDescriptor(number)
  var written = 0
  while written < bytes.count {
    // At most what is left of the array is read from it.
    let result = unsafe bytes.withUnsafeBytes {
      unsafe write(file.rawValue, $0.baseAddress! + written, $0.count - written)
    }
    if result < 0 && errno == EINTR { continue }
    guard result > 0 else { throw SystemError("write(memfd)", errno) }
    written += result
  }
  let sealed = hw_seal(file.rawValue)
  guard sealed >= 0 else { throw SystemError("fcntl(F_ADD_SEALS)", -sealed) }
  return file
}
