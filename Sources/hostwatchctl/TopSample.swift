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
  /// `before` did not exceed, of the buckets that `bounds` parts: its upper bound in microseconds, infinite for the last
  /// bucket. Nil when there was no batch, or the daemon tells of no lag.
  static func lag(_ now: JSON, _ before: JSON?, bounds: JSON, share: Double) -> Double? {
    let bounds = bounds.elements.map { $0.double ?? .infinity } + [.infinity]
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

/// A session as `top` shows it.
struct TopSession {
  let row: JSON
  /// Records a second.
  let rate: Double?
  /// Of the queue's limit, 0 to 1.
  let fill: Double?
  /// Under which 99 of 100 batches stayed, in microseconds.
  let lag: Double?
  let corrected: Double?

  var id: Double { row["id"].double ?? 0 }

  /// The sessions of `now`, with what each had in `before`.
  static func all(_ now: TopSample, since before: TopSample?) -> [TopSession] {
    let seconds = before.map { Double(now.microseconds - $0.microseconds) / 1e6 } ?? 0
    let old = before?.status["sessions"].elements ?? []
    return now.status["sessions"].elements.map { row in
      let same = old.first { $0["id"] == row["id"] && $0["pid"] == row["pid"] }
      let limit = row["queue_limit"].double ?? 0
      let fill = limit > 0 ? row["queue_bytes"].double.map { $0 / limit } : nil
      return TopSession(
        row: row, rate: TopSample.rate("delivered", row, same, seconds: seconds), fill: fill,
        lag: TopSample.lag(row, same, bounds: now.status["lag_bounds_us"], share: 0.99),
        corrected: TopSample.rate("corrected", row, same, seconds: seconds))
    }
  }
}

/// What the sessions are sorted by. Figures begin with the greatest, names and
/// numbers of things with the least; equal ones are in the order of their ids.
enum TopOrder: String, CaseIterable {
  case rate, queue, lag, nodes, delivered, corrected, dropped, lost, id, pid, share

  /// The key that chooses it.
  var key: Character {
    switch self {
    case .rate: "r"
    case .queue: "u"  // "q" ends the program
    case .lag: "a"
    case .nodes: "n"
    case .delivered: "e"
    case .corrected: "c"
    case .dropped: "d"
    case .lost: "l"
    case .id: "i"
    case .pid: "p"
    case .share: "s"
    }
  }

  init?(key: Character) {
    guard let order = Self.allCases.first(where: { $0.key == key }) else { return nil }
    self = order
  }

  func sorted(_ sessions: [TopSession], reversed: Bool) -> [TopSession] {
    sessions.sorted { left, right in
      let order = compare(left, right)
      if order == 0 { return left.id < right.id }
      return (order < 0) != reversed
    }
  }

  private func compare(_ left: TopSession, _ right: TopSession) -> Int {
    switch self {
    case .rate: greater(left.rate, right.rate)
    case .queue: greater(left.fill, right.fill)
    case .lag: greater(left.lag, right.lag)
    case .nodes, .delivered, .corrected, .dropped, .lost:
      greater(left.row[rawValue].double, right.row[rawValue].double)
    case .id, .pid: -greater(left.row[rawValue].double, right.row[rawValue].double)
    case .share: less(left.row["share"].text ?? "", right.row["share"].text ?? "")
    }
  }

  private func greater(_ left: Double?, _ right: Double?) -> Int {
    less(right ?? -1, left ?? -1)
  }

  private func less<Value: Comparable>(_ left: Value, _ right: Value) -> Int {
    left < right ? -1 : left > right ? 1 : 0
  }
}
