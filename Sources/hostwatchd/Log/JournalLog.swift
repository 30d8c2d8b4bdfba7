import CFanotify
import CSystemd
import Logging

/// Writes to the systemd journal, each piece of metadata as a field of its own.
///
/// A field goes over as one iovec, and libsystemd sends a value that holds a
/// newline with its length: no value can pose as another field. In MESSAGE,
/// which people read as lines, control characters are escaped.
struct JournalLog: LogHandler {
  var metadata: Logger.Metadata = [:]
  var logLevel = Logger.Level.info

  subscript(metadataKey key: String) -> Logger.Metadata.Value? {
    get { metadata[key] }
    set { metadata[key] = newValue }
  }

  func log(event: LogEvent) {
    let merged = metadata.merging(event.metadata ?? [:]) { _, new in new }
    JournalLog.send(JournalLog.fields(of: event, metadata: merged))
  }

  /// The fields of one entry, each as `NAME=value`.
  static func fields(of event: LogEvent, metadata: Logger.Metadata) -> [String] {
    var fields = [
      "MESSAGE=\(escapingControls(event.message.description))",
      "PRIORITY=\(event.level.priority)",
      "SYSLOG_IDENTIFIER=hostwatchd",
      "CODE_FILE=\(event.file)",
      "CODE_LINE=\(event.line)",
      "CODE_FUNC=\(event.function)",
    ]
    for (key, value) in metadata.sorted(by: { $0.key < $1.key }) {
      fields.append("\(LogField.journalName(forKey: key))=\(value)")
    }
    return fields
  }

  /// Hands the entry over. A journal that is not there has nobody to tell.
  private static func send(_ fields: [String]) {
    var bytes: [UInt8] = []
    var ends: [Int] = []
    for field in fields {
      bytes += field.utf8
      ends.append(bytes.count)
    }
    unsafe bytes.withUnsafeMutableBytes { buffer in
      var vectors: [iovec] = unsafe []
      var start = 0
      for end in ends {
        // Each part lies within the buffer, which outlives the call.
        let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[start..<end])
        unsafe vectors.append(iovec(iov_base: part.baseAddress, iov_len: part.count))
        start = end
      }
      _ = unsafe sd_journal_sendv(vectors, Int32(vectors.count))
    }
  }
}
