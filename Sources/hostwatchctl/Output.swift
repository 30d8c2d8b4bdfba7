import ArgumentParser
import Glibc

/// The standard output, written whole lines at a time.
struct Output {
  private var bytes: [UInt8] = []

  mutating func line(_ text: String) {
    bytes += text.utf8
    bytes.append(UInt8(ascii: "\n"))
  }

  /// Hands everything to the kernel. Where nobody reads any more, the process
  /// ends as by SIGPIPE.
  mutating func flush() {
    Output.write(bytes, to: STDOUT_FILENO)
    bytes.removeAll(keepingCapacity: true)
  }

  static func write(_ bytes: [UInt8], to descriptor: Int32) {
    var rest = bytes[...]
    while !rest.isEmpty {
      let written = unsafe rest.withUnsafeBytes {
        unsafe Glibc.write(descriptor, $0.baseAddress, $0.count)
      }
      if written < 0 && errno == EINTR { continue }
      guard written > 0 else { return }
      rest = rest.dropFirst(written)
    }
  }

  static func line(_ text: String) {
    var output = Output()
    output.line(text)
    output.flush()
  }
}
