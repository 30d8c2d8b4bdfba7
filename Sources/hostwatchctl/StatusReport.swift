import HostWatch

/// The daemon's figures as text. What a daemon of another version does not
/// tell is shown as "-"; what it tells beyond this is left out.
struct StatusReport {
  private let status: JSON

  private let mountStatus: [JSON]

  init(_ status: JSON, mounts: [JSON] = []) {
    self.status = status
    mountStatus = mounts
  }

  var lines: [String] {
    var lines = summary
    lines += section("FILESYSTEMS", filesystems)
    lines += section("SHARES", shares) + shareErrors
    lines += section("SESSIONS", sessions)
    if let leftOut = Self.leftOut(status) { lines += ["", leftOut] }
    lines += section("MOUNTS", mounts)
    return lines
  }

  private func section(_ title: String, _ table: Table?) -> [String] {
    guard let table else { return [] }
    return ["", title] + table.lines
  }

  private var summary: [String] {
    let totals = status["totals"]
    let version = HostWatchClient.Name(status["version"].text ?? "?")
    let uptime = Self.duration(status["uptime_seconds"])
    var first = "hostwatchd \(version), pid \(Self.integer(status["pid"])), up \(uptime)"
    if status["privileged"] == .bool(false) { first += " (your own sessions only)" }
    let rate = totals["events_per_second"].double.map { Self.decimal($0) } ?? "-"
    let figures = [
      ("sessions", "sessions"), ("nodes", "nodes"), ("kernel events", "kernel_events"),
      ("delivered", "delivered"), ("corrected", "corrected"), ("lost", "lost"),
    ].map { "\($0.0) \(Self.integer(totals[$0.1]))" }
    return [first, (figures + ["events/s \(rate)"]).joined(separator: ", ")]
  }

  private var filesystems: Table? {
    let rows = status["filesystems"].elements
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.text("DEVICE"), Table.text("TYPE"), Table.number("SESSIONS"), Table.number("OBJECTS"),
      Table.number("QUEUE"), Table.number("EVENTS"), Table.number("CORRECTED"),
      Table.number("OVERFLOWS"), Table.number("BATCHES"), Table.number("LARGEST"),
      Table.text("MASK"),
    ])
    for row in rows {
      let counts = [
        "sessions", "objects", "queue_events", "kernel_events", "corrected", "overflows", "batches",
        "largest_batch",
      ].map { Self.integer(row[$0]) }
      let mask = row["mask"].elements.compactMap(\.text).joined(separator: ",")
      table.append([row["device"].text ?? "", row["type"].text ?? ""] + counts + [mask])
    }
    return table
  }

  private var shares: Table? {
    let rows = status["shares"].elements
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.text("NAME"), Table.text("STATE"), Table.number("SESSIONS"), Table.text("PATH"),
    ])
    for row in rows {
      table.append([
        row["name"].text ?? "", row["state"].text ?? "", Self.integer(row["sessions"]),
        row["path"].text ?? "",
      ])
    }
    return table
  }

  /// What the daemon's answer, which is one packet, had no room for; nil if it is whole.
  static func leftOut(_ status: JSON) -> String? {
    let parts = ["sessions", "shares"].compactMap { kind -> String? in
      guard let count = status["\(kind)_left_out"].double, count > 0 else { return nil }
      return "\(integer(status["\(kind)_left_out"])) more \(kind)"
    }
    guard !parts.isEmpty else { return nil }
    return parts.joined(separator: " and ") + " than the daemon's answer has room for"
  }

  /// Why shares are unavailable: below the table, for these are sentences.
  private var shareErrors: [String] {
    status["shares"].elements.compactMap { share in
      guard let error = share["error"].text else { return nil }
      return "\(HostWatchClient.Name(share["name"].text ?? "?")): \(Line.text(error))"
    }
  }

  private var sessions: Table? {
    let rows = status["sessions"].elements
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.number("ID"), Table.text("MODE"), Table.text("SHARE"), Table.number("PID"),
      Table.number("UID"), Table.number("NODES"), Table.number("QUEUE"), Table.number("LIMIT"),
      Table.number("DELIVERED"), Table.number("DROPPED"), Table.number("LOST"),
      Table.number("AGE"), Table.text("OPTIONS"), Table.text("PATH"),
    ])
    for row in rows {
      let counts = ["pid", "uid", "nodes", "queue_bytes", "queue_limit", "delivered", "dropped"]
        .map { Self.integer(row[$0]) }
      table.append(
        [Self.integer(row["id"]), row["mode"].text ?? "", row["share"].text ?? ""] + counts + [
          Self.integer(row["lost"]), Self.duration(row["age_seconds"]),
          row["options"].elements.compactMap(\.text).joined(separator: ","),
          row["path"].text ?? "",
        ])
    }
    return table
  }

  private var mounts: Table? {
    guard !mountStatus.isEmpty else { return nil }
    var table = Table([
      Table.number("PID"), Table.text("STATE"), Table.text("EVENTS"), Table.number("NODES"),
      Table.number("RECORDS"), Table.number("REPLAYED"), Table.number("INVALIDATED"),
      Table.number("SUPERSEDED"), Table.number("SETTLED"), Table.number("LAG"),
      Table.text("SOURCE"), Table.text("MOUNTPOINT"),
    ])
    for row in mountStatus {
      let counts = ["nodes", "records", "replayed", "invalidated", "superseded", "settled"]
        .map { Self.integer(row[$0]) }
      let lag = row["lag_microseconds"].double.map { "\(Self.decimal($0 / 1000)) ms" } ?? "-"
      table.append(
        [Self.integer(row["pid"]), row["state"].text ?? "", row["events"].text ?? ""] + counts
          + [lag, row["source"].text ?? "", row["mountpoint"].text ?? ""])
    }
    return table
  }

  private static func integer(_ value: JSON) -> String {
    guard case .number(let digits) = value else { return "-" }
    return digits
  }

  /// With one decimal.
  static func decimal(_ value: Double) -> String {
    guard value.isFinite, abs(value) < 1e15 else { return "-" }
    let tenths = Int64((value * 10).rounded())
    return "\(tenths < 0 ? "-" : "")\(abs(tenths) / 10).\(abs(tenths) % 10)"
  }

  /// The two largest units: "3d4h", "5m6s", "7s".
  static func duration(_ value: JSON) -> String {
    guard let seconds = value.double, seconds >= 0, seconds < 1e15 else { return "-" }
    let whole = Int64(seconds)
    let (days, hours, minutes) = (whole / 86400, whole / 3600 % 24, whole / 60 % 60)
    if days > 0 { return "\(days)d\(hours)h" }
    if hours > 0 { return "\(hours)h\(minutes)m" }
    if minutes > 0 { return "\(minutes)m\(whole % 60)s" }
    return "\(whole)s"
  }
}
