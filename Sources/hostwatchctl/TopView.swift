import HostWatch

/// One picture of `top`, as lines or as JSON.
struct TopView {
  let now: TopSample
  let before: TopSample?
  var order = TopOrder.rate
  var reversed = false

  private var seconds: Double {
    before.map { Double(now.microseconds - $0.microseconds) / 1e6 } ?? 0
  }
  private var sessions: [TopRow] {
    order.sorted(TopRow.sessions(now, since: before), reversed: reversed)
  }
  private var shares: [TopRow] {
    order.sorted(TopRow.shares(now, since: before), reversed: reversed)
  }

  /// What fits into the terminal: no line is wider than `width` cells, and there are
  /// at most `height`; nil stands for no limit. Of what is too much the sessions at
  /// the end are left out first, and their number is told; and of each table the
  /// columns that tell least.
  func lines(width: Int? = nil, height: Int? = nil) -> [String] {
    func section(_ title: String, _ table: Table?) -> [String] {
      guard let table else { return [] }
      return ["", title] + table.lines(width: width)
    }
    let top =
      summary + (StatusReport.leftOut(now.status).map { [$0] } ?? [])
      + section("FILESYSTEMS", filesystemTable) + section("SHARES", shareTable)
    var bottom = section(
      "SESSIONS by \(order.rawValue)\(reversed ? ", reversed" : "")", sessionTable)
    if let height {
      let room = max(0, height - top.count)
      if bottom.count > room {
        let hidden = max(0, bottom.count - max(room - 1, 0))
        bottom = Array(bottom.prefix(max(room - 1, 0))) + ["… \(hidden) more"]
      }
    }
    let all = (top + bottom).prefix(height ?? .max)
    guard let width else { return Array(all) }
    return all.map { Columns.cut($0, to: width) }
  }

  // MARK: Text

  private var summary: [String] {
    let (new, old) = (now.status["totals"], before?.status["totals"])
    let version = HostWatchClient.Name(now.status["version"].text ?? "?")
    var first = "hostwatchd \(version), pid \(Self.text(now.status["pid"]))"
    first += ", up \(StatusReport.duration(now.status["uptime_seconds"]))"
    if now.status["privileged"] == .bool(false) { first += " (your own sessions only)" }
    let rates = [
      ("events", "kernel_events"), ("delivered", "delivered"), ("corrected", "corrected"),
    ]
    .map { "\($0.0)/s \(Self.text(TopSample.rate($0.1, new, old, seconds: seconds)))" }
    let totals = ["sessions", "nodes", "lost"].map { "\($0) \(Self.text(new[$0]))" }
    return [first, (totals + rates).joined(separator: ", ")]
  }

  private var filesystemTable: Table? {
    let rows = now.status["filesystems"].elements
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.text("DEVICE"), Table.text("TYPE", leave: 4), Table.number("SESSIONS", leave: 1),
      Table.number("OBJECTS", leave: 3), Table.number("QUEUE"), Table.number("EVENTS/S"),
      Table.number("CORRECTED/S"), Table.number("OVERFLOWS", leave: 5),
      Table.number("LAG-P50", leave: 2), Table.number("LAG-P99"),
    ])
    for row in rows {
      let old = filesystem(row["device"], in: before)
      let rates = ["kernel_events", "corrected"]
        .map { Self.text(TopSample.rate($0, row, old, seconds: seconds)) }
      let lags = [0.5, 0.99].map { Self.lag(now.lag(row, old, share: $0)) }
      table.append(
        [row["device"].text ?? "", row["type"].text ?? ""]
          + ["sessions", "objects", "queue_events"].map { Self.text(row[$0]) } + rates
          + [Self.text(row["overflows"])] + lags)
    }
    return table
  }

  private func filesystem(_ device: JSON, in sample: TopSample?) -> JSON? {
    sample?.status["filesystems"].elements.first { $0["device"] == device }
  }

  private var shareTable: Table? {
    let rows = shares
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.text("NAME"), Table.text("STATE", leave: leave(4)),
      Table.number("SESSIONS", leave: leave(3)), Table.number("RECORDS/S"),
      Table.number("QUEUE"), Table.number("LAG-P50", leave: leave(2)), Table.number("LAG-P99"),
      Table.number("DROPPED", leave: leave(5, .dropped)), Table.number("LOST"),
      Table.number("CORRECTED"), Table.text("PATH", leave: leave(1)),
    ])
    for share in rows {
      let row = share.row
      table.append([
        row["name"].text ?? "", row["state"].text ?? "", Self.text(row["sessions"]),
        Self.text(share.rate), Self.text(row["queue_bytes"]), Self.lag(share.median),
        Self.lag(share.lag), Self.text(row["dropped"]), Self.text(row["lost"]),
        Self.text(row["corrected"]), row["path"].text ?? "",
      ])
    }
    return table
  }

  private var sessionTable: Table? {
    let rows = sessions
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.number("ID"), Table.text("MODE", leave: leave(4)), Table.text("SHARE"),
      Table.number("PID"), Table.number("NODES", leave: leave(6, .nodes)),
      Table.number("RECORDS/S"), Table.number("QUEUE", leave: leave(8)),
      Table.number("FULL%"), Table.number("LAG-P50", leave: leave(5)), Table.number("LAG-P99"),
      Table.number("DELIVERED", leave: leave(3, .delivered)),
      Table.number("DROPPED", leave: leave(7, .dropped)), Table.number("LOST"),
      Table.number("CORRECTED"), Table.number("AGE", leave: leave(2)),
      Table.text("PATH", leave: leave(1)),
    ])
    for session in rows {
      let row = session.row
      table.append([
        Self.text(row["id"]), row["mode"].text ?? "", row["share"].text ?? "",
        Self.text(row["pid"]), Self.text(row["nodes"]), Self.text(session.rate),
        Self.text(row["queue_bytes"]), Self.text(session.fill.map { $0 * 100 }),
        Self.lag(session.median), Self.lag(session.lag), Self.text(row["delivered"]),
        Self.text(row["dropped"]), Self.text(row["lost"]), Self.text(row["corrected"]),
        StatusReport.duration(row["age_seconds"]), row["path"].text ?? "",
      ])
    }
    return table
  }

  /// What is sorted by is not left out.
  private func leave(_ turn: Int, _ shows: TopOrder? = nil) -> Int { order == shows ? 0 : turn }

  private static func text(_ value: JSON) -> String {
    guard case .number(let digits) = value else { return "-" }
    return digits
  }

  private static func text(_ value: Double?) -> String {
    value.map { StatusReport.decimal($0) } ?? "-"
  }

  /// An upper bound of microseconds.
  static func lag(_ bound: Double?) -> String {
    guard let bound else { return "-" }
    if bound.isInfinite { return ">1s" }
    return bound < 1000 ? "<\(Int(bound))us" : "<\(StatusReport.decimal(bound / 1000))ms"
  }

  // MARK: JSON

  /// The daemon's own answer, with the time before it and rates and lags added to each part.
  func json(time: String) -> JSON {
    func number(_ value: Double?) -> JSON {
      value.map { .number(StatusReport.decimal($0)) } ?? .null
    }
    func with(_ row: JSON, _ more: [(String, JSON)]) -> JSON {
      guard case .object(let members) = row else { return row }
      return .object(members + more.map { JSON.Member(key: $0.0, value: $0.1) })
    }
    let old = before?.status
    let totals = ["kernel_events", "delivered", "corrected"].map {
      (
        "\($0)_rate",
        number(TopSample.rate($0, now.status["totals"], old?["totals"], seconds: seconds))
      )
    }
    func lags(_ median: Double?, _ lag: Double?) -> [(String, JSON)] {
      [("lag_p50_us", median), ("lag_p99_us", lag)].map { ($0, Self.bound($1)) }
    }
    let filesystems = now.status["filesystems"].elements.map { row in
      let same = filesystem(row["device"], in: before)
      return with(
        row,
        ["kernel_events", "corrected"].map {
          ("\($0)_rate", number(TopSample.rate($0, row, same, seconds: seconds)))
        } + lags(now.lag(row, same, share: 0.5), now.lag(row, same, share: 0.99)))
    }
    func all(_ rows: [TopRow]) -> JSON {
      .array(
        rows.map { row in
          with(
            row.row,
            [
              ("delivered_rate", number(row.rate)), ("corrected_rate", number(row.correctedRate)),
            ] + lags(row.median, row.lag))
        })
    }
    let renewed: [String: JSON] = [
      "totals": with(now.status["totals"], totals), "filesystems": .array(filesystems),
      "shares": all(shares), "sessions": all(sessions),
    ]
    var members = [
      JSON.Member(key: "time", value: .string(time)),
      JSON.Member(key: "interval_seconds", value: before == nil ? .null : number(seconds)),
    ]
    if case .object(let told) = now.status {
      members += told.map { JSON.Member(key: $0.key, value: renewed[$0.key] ?? $0.value) }
    }
    return .object(members)
  }

  /// Greater than every number in jq(1)'s order, if it is above the last bound.
  private static func bound(_ value: Double?) -> JSON {
    guard let value else { return .null }
    return value.isInfinite ? .string("+Inf") : .number("\(Int64(value))")
  }
}
