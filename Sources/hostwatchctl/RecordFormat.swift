import HostWatch

/// A record as a line for people and as one for programs.
struct RecordFormat {
  typealias Name = HostWatchClient.Name
  typealias Record = HostWatchClient.Record

  private let record: Record
  private let time: Clock
  private let command: Name?

  init(_ record: Record, _ time: Clock) {
    self.record = record
    self.time = time
    command = record.pid > 0 ? Probe.command(of: record.pid) : nil
  }

  // MARK: Text

  /// For people. Names are escaped, so what is coloured holds no control characters.
  func line(_ paint: Paint = Paint()) -> String {
    let event = paint(style, Line.padded(events, 12))
    var line = "\(paint(.faint, time.local))  \(event)  \(paths)"
    let flags = record.flags.subtracting([.movedIn, .movedOut, .recheck]).flagNames
    if !flags.isEmpty { line += "  [\(flags.joined(separator: ","))]" }
    if record.pid > 0 {
      line += paint(.faint, "  by \(command?.description ?? "?") (\(record.pid))")
    }
    return line
  }

  /// The colour of what happened to the name; none where only the object changed.
  private var style: Paint.Style? {
    if record.flags.contains(.recheck) { return .yellow }
    if record.mask.contains(.rename) { return .blue }
    if !record.mask.isDisjoint(with: [.delete, .deleteSelf]) { return .red }
    return record.mask.contains(.create) ? .green : nil
  }

  private var isDirectory: Bool { record.mask.contains(.isDirectory) }

  private var events: String {
    if record.flags.contains(.recheck) { return "RECHECK" }
    return record.mask.subtracting(.isDirectory).eventNames.joined(separator: ",")
  }

  private var paths: String {
    if record.flags.contains(.recheck) { return recheckedPath }
    guard record.mask.contains(.rename) else {
      return text(oldPath) ?? node(record.node)
    }
    return "\(text(oldPath) ?? "(outside)") -> \(text(newPath) ?? "(outside)")"
  }

  /// The record of a RECHECK holds the object alone.
  private var recheckedPath: String {
    if record.node == .root { return "." }
    return record.path.isEmpty ? node(record.node) : text(record.path) ?? ""
  }

  private func text(_ path: Name?) -> String? {
    guard let path else { return nil }
    return path.description + (isDirectory && path != Self.rootPath ? "/" : "")
  }

  private func node(_ node: NodeID) -> String { "inode \(node.nodeid):\(node.generation)" }

  private static let rootPath = Name(".")

  private var oldPath: Name? {
    record.directory == .none ? nil : join(record.path, record.name)
  }

  private var newPath: Name? {
    record.newDirectory == .none ? nil : join(record.newPath, record.newName)
  }

  /// The path below the root; "." for the root itself.
  private func join(_ path: Name, _ name: Name) -> Name {
    let parts = [path.bytes, name.bytes].filter { !$0.isEmpty }
    let joined = Array(parts.joined(separator: [UInt8(ascii: "/")]))
    return joined.isEmpty ? Self.rootPath : Name(joined)
  }

  // MARK: JSON

  var json: JSON {
    var members = [
      JSON.Member(key: "type", value: .string("record")),
      JSON.Member(key: "time", value: .string(time.universal)),
      JSON.Member(key: "sequence", value: .number(record.sequence)),
      JSON.Member(
        key: "events", value: .strings(record.mask.subtracting(.isDirectory).eventNames)),
      JSON.Member(key: "is_directory", value: .bool(isDirectory)),
      JSON.Member(key: "flags", value: .strings(record.flags.flagNames)),
      JSON.Member(key: "node", value: json(record.node)),
      JSON.Member(key: "directory", value: json(record.directory)),
      JSON.Member(key: "new_directory", value: json(record.newDirectory)),
    ]
    let recheckPath = record.node == .root ? Self.rootPath : nil
    let path = record.flags.contains(.recheck) ? recheckPath : oldPath
    members += named("path", path)
    members += named("new_path", newPath)
    members.append(JSON.Member(key: "origin", value: .number(record.origin)))
    members.append(
      JSON.Member(key: "pid", value: record.pid > 0 ? .number(record.pid) : .null))
    members += named("command", command)
    return .object(members)
  }

  private func json(_ node: NodeID) -> JSON {
    node == .none
      ? .null
      : .object(["nodeid": .number(node.nodeid), "generation": .number(node.generation)])
  }

  private func named(_ key: String, _ name: Name?) -> [JSON.Member] {
    guard let name else { return [JSON.Member(key: key, value: .null)] }
    if let text = name.string { return [JSON.Member(key: key, value: .string(text))] }
    let hex = name.bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    return [
      JSON.Member(key: key, value: .string(String(decoding: name.bytes, as: UTF8.self))),
      JSON.Member(key: key + "_hex", value: .string(hex)),
    ]
  }
}

// MARK: What is not a record

extension RecordFormat {
  static func attached(_ session: UInt64, _ events: [String]) -> JSON {
    .object([
      "type": .string("attached"), "time": .string(Clock.now().universal),
      "session": .number(session), "events": .strings(events),
    ])
  }

  /// LOST, RESYNCED and DETACHED; nil for everything else.
  static func notice(_ packet: HostWatchClient.Packet, _ time: Clock, json: Bool) -> String? {
    switch packet {
    case .reply, .events:
      return nil
    case .lost(let reason, let sequence):
      return json
        ? notice(
          "lost", time, reason.code, [JSON.Member(key: "sequence", value: .number(sequence))]
        )
        : "! \(time.local)  LOST: \(reason); changes after number \(sequence) are missing"
    case .resynced(let resync):
      return json
        ? notice(
          "resynced", time, nil,
          [
            JSON.Member(key: "sequence", value: .number(resync.sequence)),
            JSON.Member(key: "nodes_checked", value: .number(resync.nodesChecked)),
            JSON.Member(key: "nodes_reported", value: .number(resync.nodesReported)),
          ])
        : "! \(time.local)  RESYNCED: the stream is whole again; look at the directory anew"
    case .detached(let reason):
      return json
        ? notice("detached", time, reason.code, []) : "! \(time.local)  DETACHED: \(reason)"
    }
  }

  private static func notice(
    _ type: String, _ time: Clock, _ reason: String?, _ members: [JSON.Member]
  ) -> String {
    let start = [
      JSON.Member(key: "type", value: .string(type)),
      JSON.Member(key: "time", value: .string(time.universal)),
    ]
    let why = reason.map { [JSON.Member(key: "reason", value: .string($0))] } ?? []
    return JSON.object(start + why + members).encoded
  }
}

extension HostWatchClient.LossReason {
  /// For programs.
  fileprivate var code: String {
    switch self {
    case .kernelQueue: "kernel-queue"
    case .sessionQueue: "session-queue"
    case .restart: "restart"
    }
  }
}

extension HostWatchClient.DetachReason {
  /// For programs.
  fileprivate var code: String {
    switch self {
    case .unmounted: "unmounted"
    case .shareRemoved: "share-removed"
    case .shutdown: "shutdown"
    }
  }
}

/// Pieces of lines.
enum Line {
  static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  /// A sentence whose control characters are escaped and whose spaces are not.
  static func text(_ sentence: String) -> String {
    sentence.split(separator: " ", omittingEmptySubsequences: false)
      .map { HostWatchClient.Name(String($0)).description }.joined(separator: " ")
  }
}
