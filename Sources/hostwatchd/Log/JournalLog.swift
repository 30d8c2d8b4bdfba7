import CFanotify
import Glibc
import HostWatch
import Logging
import Synchronization

/// Writes to the systemd journal, each piece of metadata as a field of its own.
///
/// In journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), and not with
/// sd_journal_sendv(3), which waits for a journal that does not read; journald waits for
/// its disk. A message that cannot be handed over at once is lost and counted.
///
/// A value that holds a newline goes with its length: no value can pose as another field.
/// In MESSAGE, which people read as lines, control characters are escaped.
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

  private static let path = "/run/systemd/journal/socket"
  /// Messages that the journal did not take since it took one.
  private static let lost = Mutex(0)

  /// Hands the entry over. A journal that is not there has nobody to tell.
  private static func send(_ fields: [String]) {
    let count = lost.withLock { $0 }
    if count > 0 {
      let notice = [
        "MESSAGE=The journal did not take \(count) messages that came before.",
        "PRIORITY=\(Logger.Level.warning.priority)", "SYSLOG_IDENTIFIER=hostwatchd",
      ]
      if hand(datagram(of: notice)) == 0 { lost.withLock { $0 -= count } }
    }
    let result = hand(datagram(of: fields))
    if result < 0 && result != -ENOENT && result != -ECONNREFUSED { lost.withLock { $0 += 1 } }
  }

  /// One entry, from `NAME=value` fields.
  static func datagram(of fields: [String]) -> [UInt8] {
    var bytes: [UInt8] = []
    for field in fields {
      let text = Array(field.utf8)
      guard text.contains(0x0a), let equals = text.firstIndex(of: 0x3d) else {
        bytes += text + [0x0a]
        continue
      }
      let value = text[(equals + 1)...]
      bytes += text[..<equals] + [0x0a]
      for shift in stride(from: 0, to: 64, by: 8) {
        bytes.append(UInt8(truncatingIfNeeded: UInt64(value.count) >> UInt64(shift)))
      }
      bytes += value + [0x0a]
    }
    return bytes
  }

  /// 0, or a negative errno.
  private static func hand(_ entry: [UInt8]) -> Int32 {
    // The bytes outlive the call.
    let result = unsafe entry.withUnsafeBytes { unsafe hw_notify(path, $0.baseAddress, $0.count) }
    return result == -EMSGSIZE || result == -ENOBUFS ? handAsFile(entry) : result
  }

  /// What is too large for a datagram goes as a sealed file.
  private static func handAsFile(_ entry: [UInt8]) -> Int32 {
    do throws(SystemError) {
      let file = try sealedFile(entry, name: "hostwatchd-journal")
      var number = file.rawValue
      return unsafe hw_notify_with_descriptors(path, "", 0, &number, 1, 1)
    } catch {
      return -error.code
    }
  }
}
