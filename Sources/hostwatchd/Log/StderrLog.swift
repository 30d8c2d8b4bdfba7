import CFanotify
import Logging

/// Writes lines to standard error: `<N>` and syslog's priority first, which
/// the service manager and syslog collectors read, or words on a terminal.
struct StderrLog: LogHandler {
  var metadata: Logger.Metadata = [:]
  var logLevel = Logger.Level.info
  let isTerminal: Bool

  init(isTerminal: Bool = isatty(STDERR_FILENO) == 1) {
    self.isTerminal = isTerminal
  }

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let merged = metadata.merging(event.metadata ?? [:]) { _, new in new }
    StderrLog.write(StderrLog.line(of: event, metadata: merged, isTerminal: isTerminal))
  }

  /// One line, always: what has a newline in it is escaped.
  static func line(of event: LogEvent, metadata: Logger.Metadata, isTerminal: Bool) -> String {
    let lead = isTerminal ? "hostwatchd: \(event.level): " : "<\(event.level.priority)>"
    // The id is for the journal; file, line and key stand in the message.
    let hidden: Set<String> = Set(
      [LogField.messageID, .configFile, .configLine, .configKey, .errno].map(\.rawValue))
    let details = metadata.filter { !hidden.contains($0.key) }
      .sorted { $0.key < $1.key }
      .map { "\($0.key)=\(escapingControls($0.value.description))" }
    let tail = details.isEmpty ? "" : " (\(details.joined(separator: " ")))"
    return lead + escapingControls(event.message.description) + tail
  }

  /// One write, so that lines of several processes do not mix; what it has not taken is
  /// tried once more. Where standard error cannot be written to, nobody can be told.
  static func write(_ line: String) {
    let bytes = Array((line + "\n").utf8)
    unsafe bytes.withUnsafeBytes { buffer in
      // At most the buffer's count is read from it.
      let count = unsafe CFanotify.write(STDERR_FILENO, buffer.baseAddress, buffer.count)
      guard count < buffer.count else { return }
      let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer[max(0, count)...])
      _ = unsafe CFanotify.write(STDERR_FILENO, rest.baseAddress, rest.count)
    }
  }
}
