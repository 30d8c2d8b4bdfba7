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
  private var sessions: [TopSession] {
    order.sorted(TopSession.all(now, since: before), reversed: reversed)
  }

  /// What fits into the terminal: no line is wider than `width` cells, and there are
  /// at most `height`; nil stands for no limit. Of what is too much the sessions at
  /// the end are left out first, and their number is told.
  func lines(width: Int? = nil, height: Int? = nil) -> [String] {
    let top = summary + section("FILESYSTEMS", filesystems) + section("SHARES", shares)
    var bottom = section("SESSIONS by \(order.rawValue)\(reversed ? ", reversed" : "")", table)
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

  private func section(_ title: String, _ table: Table?) -> [String] {
    guard let table else { return [] }
    return ["", title] + table.lines
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

  private var filesystems: Table? {
    let rows = now.status["filesystems"].elements
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.text("DEVICE"), Table.text("TYPE"), Table.number("SESSIONS"), Table.number("OBJECTS"),
      Table.number("QUEUE"), Table.number("EVENTS/S"), Table.number("CORRECTED/S"),
      Table.number("OVERFLOWS"), Table.number("LAG-P50"), Table.number("LAG-P99"),
    ])
    for row in rows {
      let old = before?.status["filesystems"].elements.first { $0["device"] == row["device"] }
      let rates = ["kernel_events", "corrected"]
        .map { Self.text(TopSample.rate($0, row, old, seconds: seconds)) }
      let lags = [0.5, 0.99].map {
        Self.lag(TopSample.lag(row, old, bounds: row["lag_bounds_us"], share: $0))
      }
      table.append(
        [row["device"].text ?? "", row["type"].text ?? ""]
          + ["sessions", "objects", "queue_events"].map { Self.text(row[$0]) } + rates
          + [Self.text(row["overflows"])] + lags)
    }
    return table
  }

  private var shares: Table? {
    let rows = now.status["shares"].elements
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.text("NAME"), Table.text("STATE"), Table.number("SESSIONS"), Table.number("RECORDS/S"),
      Table.number("QUEUE"), Table.number("LAG-P99"), Table.number("LOST"),
      Table.number("CORRECTED"), Table.text("PATH"),
    ])
    for row in rows {
      let old = before?.status["shares"].elements.first { $0["name"] == row["name"] }
      let bounds = now.status["lag_bounds_us"]
      table.append([
        row["name"].text ?? "", row["state"].text ?? "", Self.text(row["sessions"]),
        Self.text(TopSample.rate("delivered", row, old, seconds: seconds)),
        Self.text(row["queue_bytes"]),
        Self.lag(TopSample.lag(row, old, bounds: bounds, share: 0.99)), Self.text(row["lost"]),
        Self.text(row["corrected"]), row["path"].text ?? "",
      ])
    }
    return table
  }

  private var table: Table? {
    let rows = sessions
    guard !rows.isEmpty else { return nil }
    var table = Table([
      Table.number("ID"), Table.text("MODE"), Table.text("SHARE"), Table.number("PID"),
      Table.number("NODES"), Table.number("RECORDS/S"), Table.number("QUEUE"),
      Table.number("FULL%"), Table.number("LAG-P99"), Table.number("LOST"),
      Table.number("CORRECTED"), Table.number("DELIVERED"), Table.number("DROPPED"),
      Table.number("AGE"), Table.text("PATH"),
    ])
    for session in rows {
      let row = session.row
      table.append([
        Self.text(row["id"]), row["mode"].text ?? "", row["share"].text ?? "",
        Self.text(row["pid"]), Self.text(row["nodes"]), Self.text(session.rate),
        Self.text(row["queue_bytes"]), Self.text(session.fill.map { $0 * 100 }),
        Self.lag(session.lag), Self.text(row["lost"]), Self.text(row["corrected"]),
        Self.text(row["delivered"]), Self.text(row["dropped"]),
        StatusReport.duration(row["age_seconds"]), row["path"].text ?? "",
      ])
    }
    return table
  }

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

  /// The daemon's own answer with the rates added to each part.
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
    let filesystems = now.status["filesystems"].elements.map { row in
      let same = old?["filesystems"].elements.first { $0["device"] == row["device"] }
      return with(
        row,
        ["kernel_events", "corrected"].map {
          ("\($0)_rate", number(TopSample.rate($0, row, same, seconds: seconds)))
        })
    }
    let shares = now.status["shares"].elements.map { row in
      let same = old?["shares"].elements.first { $0["name"] == row["name"] }
      return with(
        row,
        ["delivered", "corrected"].map {
          ("\($0)_rate", number(TopSample.rate($0, row, same, seconds: seconds)))
        })
    }
    return .object([
      "time": .string(time), "interval_seconds": before == nil ? .null : number(seconds),
      "pid": now.status["pid"], "totals": with(now.status["totals"], totals),
      "filesystems": .array(filesystems), "shares": .array(shares),
      "sessions": .array(
        sessions.map {
          with(
            $0.row,
            [("delivered_rate", number($0.rate)), ("corrected_rate", number($0.corrected))])
        }),
    ])
  }
}
