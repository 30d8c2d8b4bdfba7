/// The daemon's figures at one moment, and what changed since an earlier one.
struct TopSample {
  let status: JSON
  /// CLOCK_MONOTONIC.
  let microseconds: UInt64

  /// By how much a counter grew in a second, nil where that is not known: in the
  /// first sample, for what is new, and where the counter began anew.
  static func rate(_ key: String, _ now: JSON, _ before: JSON?, seconds: Double) -> Double? {
    guard let before, seconds > 0, let new = now[key].double, let old = before[key].double,
      new >= old
    else { return nil }
    return (new - old) / seconds
  }

  /// The bucket in which a batch's lag lies that `share` of the batches since
  /// `before` did not exceed: its upper bound in microseconds, infinite for the last
  /// bucket. Nil when there was no batch, or the daemon tells of no lag.
  func lag(_ now: JSON, _ before: JSON?, share: Double) -> Double? {
    // A filesystem has them beside its counts, too.
    let bounds = status["lag_bounds_us"].elements.map { $0.double ?? .infinity } + [.infinity]
    var counts = now["lag_counts"].elements.map { $0.double ?? 0 }
    guard !counts.isEmpty, counts.count == bounds.count else { return nil }
    let old = before?["lag_counts"].elements.map { $0.double ?? 0 } ?? []
    if old.count == counts.count, zip(counts, old).allSatisfy({ $0 >= $1 }) {
      counts = zip(counts, old).map { $0 - $1 }
    }
    let total = counts.reduce(0, +)
    guard total > 0 else { return nil }
    var seen = 0.0
    for (bound, count) in zip(bounds, counts) {
      seen += count
      if seen >= total * share { return bound }
    }
    return .infinity
  }
}

/// A session or a share as `top` shows it.
struct TopRow {
  let row: JSON
  /// Records a second, and those among them that were corrected.
  let rate: Double?
  let correctedRate: Double?
  /// Of the queue's limit, 0 to 1; nil of a share, which has none.
  let fill: Double?
  /// As `TopSample.lag`, of half and of 99 of 100 batches.
  let median: Double?
  let lag: Double?

  private init(_ row: JSON, _ same: JSON?, _ now: TopSample, seconds: Double) {
    self.row = row
    rate = TopSample.rate("delivered", row, same, seconds: seconds)
    correctedRate = TopSample.rate("corrected", row, same, seconds: seconds)
    let limit = row["queue_limit"].double ?? 0
    fill = limit > 0 ? row["queue_bytes"].double.map { $0 / limit } : nil
    median = now.lag(row, same, share: 0.5)
    lag = now.lag(row, same, share: 0.99)
  }

  /// The sessions of `now`, with what each had in `before`.
  static func sessions(_ now: TopSample, since before: TopSample?) -> [TopRow] {
    rows("sessions", now, before) { $0["id"] == $1["id"] && $0["pid"] == $1["pid"] }
  }

  /// The shares: of each what its sessions had, those included that have ended.
  static func shares(_ now: TopSample, since before: TopSample?) -> [TopRow] {
    rows("shares", now, before) { $0["name"] == $1["name"] }
  }

  private static func rows(
    _ key: String, _ now: TopSample, _ before: TopSample?, _ isSame: (JSON, JSON) -> Bool
  ) -> [TopRow] {
    let seconds = before.map { Double(now.microseconds - $0.microseconds) / 1e6 } ?? 0
    let old = before?.status[key].elements ?? []
    return now.status[key].elements.map { row in
      TopRow(row, old.first { isSame($0, row) }, now, seconds: seconds)
    }
  }
}

/// What sessions and shares are sorted by. Figures begin with the greatest, names and
/// numbers of things with the least; equal ones, and shares by what they do not have,
/// are in the daemon's order.
enum TopOrder: String, CaseIterable {
  case rate, queue, lag, lost, corrected, dropped, delivered, nodes, id, pid, share

  /// The key that chooses it.
  var key: Character {
    switch self {
    case .rate: "r"
    case .queue: "u"  // "q" ends the program
    case .lag: "a"
    case .lost: "l"
    case .corrected: "c"
    case .dropped: "d"
    case .delivered: "e"
    case .nodes: "n"
    case .id: "i"
    case .pid: "p"
    case .share: "s"
    }
  }

  init?(key: Character) {
    guard let order = Self.allCases.first(where: { $0.key == key }) else { return nil }
    self = order
  }

  func sorted(_ rows: [TopRow], reversed: Bool) -> [TopRow] {
    rows.enumerated().sorted { left, right in
      let order = compare(left.element, right.element)
      if order == 0 { return left.offset < right.offset }
      return (order < 0) != reversed
    }.map(\.element)
  }

  private func compare(_ left: TopRow, _ right: TopRow) -> Int {
    switch self {
    case .rate: return greater(left.rate, right.rate)
    case .queue:
      let order = greater(left.fill, right.fill)
      return order != 0
        ? order : greater(left.row["queue_bytes"].double, right.row["queue_bytes"].double)
    case .lag:
      let order = greater(left.lag, right.lag)
      return order != 0 ? order : greater(left.median, right.median)
    case .nodes, .delivered, .dropped, .lost, .corrected:
      return greater(left.row[rawValue].double, right.row[rawValue].double)
    case .id, .pid: return -greater(left.row[rawValue].double, right.row[rawValue].double)
    case .share: return less(Self.share(left), Self.share(right))
    }
  }

  private static func share(_ row: TopRow) -> String {
    row.row["share"].text ?? row.row["name"].text ?? ""
  }

  private func greater(_ left: Double?, _ right: Double?) -> Int {
    less(right ?? -1, left ?? -1)
  }

  private func less<Value: Comparable>(_ left: Value, _ right: Value) -> Int {
    left < right ? -1 : left > right ? 1 : 0
  }
}
