import CHostWatchFS
import Glibc

/// Messages on standard error, with syslog's priorities for the journal; to
/// syslog once the server is in the background.
final class Log: Sendable {
  enum Target: Sendable { case standardError, syslog }
  let target: Target
  let isVerbose: Bool

  init(target: Target, isVerbose: Bool = false) {
    self.target = target
    self.isVerbose = isVerbose
  }

  func error(_ text: String) { write(3, text) }
  func warning(_ text: String) { write(4, text) }
  func notice(_ text: String) { write(5, text) }
  func debug(_ text: @autoclosure () -> String) {
    if isVerbose { write(7, text()) }
  }

  private func write(_ priority: Int32, _ text: String) {
    // A file's name must not forge a line.
    let line = text.unicodeScalars.map {
      $0.properties.generalCategory == .control ? "?" : String($0)
    }
    .joined()
    switch target {
    case .standardError:
      Self.print(line, prefix: unsafe getenv("JOURNAL_STREAM") == nil ? "" : "<\(priority)>")
    case .syslog:
      unsafe line.withCString { text in
        unsafe withVaList([text]) { unsafe vsyslog(priority | LOG_DAEMON, "%s", $0) }
      }
    }
  }

  static func print(_ line: String, prefix: String = "") {
    let text = Array("\(prefix)hostwatchfs: \(line)\n".utf8CString.dropLast())
    unsafe text.withUnsafeBufferPointer {
      // It is not empty.
      unsafe hwfs_print_error($0.baseAddress!, $0.count)
    }
  }
}
