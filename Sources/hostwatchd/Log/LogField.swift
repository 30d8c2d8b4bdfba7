import Logging

/// The metadata keys the daemon uses, and the journal fields they become.
enum LogField: String, CaseIterable {
  case session
  case share
  case peerPID = "peer-pid"
  case peerUID = "peer-uid"
  case errno
  case messageID = "message-id"
  case configFile = "config-file"
  case configLine = "config-line"
  case configKey = "config-key"
  case suppressedCount = "suppressed"

  var journalName: String {
    switch self {
    case .session: "HOSTWATCH_SESSION"
    case .share: "HOSTWATCH_SHARE"
    case .peerPID: "PEER_PID"
    case .peerUID: "PEER_UID"
    case .errno: "ERRNO"
    case .messageID: "MESSAGE_ID"
    case .configFile: "CONFIG_FILE"
    case .configLine: "CONFIG_LINE"
    case .configKey: "CONFIG_KEY"
    case .suppressedCount: "HOSTWATCH_SUPPRESSED"
    }
  }

  /// A field's name for any metadata key. A key that is not ours becomes
  /// HOSTWATCH_ and what the journal allows of it: A–Z, 0–9 and _, at most 64.
  static func journalName(forKey key: String) -> String {
    if let field = LogField(rawValue: key) { return field.journalName }
    let allowed = key.uppercased().unicodeScalars.map { scalar -> Character in
      switch scalar {
      case "A"..."Z", "0"..."9", "_": Character(scalar)
      default: "_"
      }
    }
    return String(("HOSTWATCH_" + String(allowed)).prefix(64))
  }
}

extension Logger.Metadata {
  subscript(field: LogField) -> String? {
    get { self[field.rawValue]?.description }
    set { self[field.rawValue] = newValue.map { .string($0) } }
  }
}

extension Logger.Level {
  /// syslog's priority. trace and debug are one there.
  var priority: Int {
    switch self {
    case .trace, .debug: 7
    case .info: 6
    case .notice: 5
    case .warning: 4
    case .error: 3
    case .critical: 2
    }
  }
}
