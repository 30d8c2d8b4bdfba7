import HostWatch

/// The line of figures that `systemctl status` shows. Pure: the caller says
/// what time it is.
struct StatusLine {
  private var lastFigures: Figures?
  private var lastTime: UInt64 = 0
  private(set) var text = ""
  /// Whether the line shows a rate or a lag, which have to go when all is quiet.
  private(set) var showsActivity = false

  /// - Returns: the line if it differs from the one before.
  mutating func update(_ figures: Figures, now: UInt64) -> String? {
    let rate = StatusLine.rate(from: lastFigures, to: figures, microseconds: now &- lastTime)
    let lag = StatusLine.lag(from: lastFigures, to: figures)
    lastFigures = figures
    lastTime = now
    showsActivity = rate != 0 || lag != nil
    let line =
      "\(StatusLine.count(figures.sessions, "session")), \(StatusLine.count(figures.nodes, "node"))"
      + ", \(StatusLine.count(rate, "event"))/s, \(figures.lost) lost"
      + (lag.map { ", lag \($0)" } ?? "")
    guard line != text else { return nil }
    text = line
    return line
  }

  /// Events per second, rounded up, so that a single one shows.
  private static func rate(from old: Figures?, to new: Figures, microseconds: UInt64) -> Int {
    guard let old, microseconds > 0, new.kernelEvents > old.kernelEvents else { return 0 }
    let events = Double(new.kernelEvents - old.kernelEvents)
    return Int((events * 1_000_000 / Double(microseconds)).rounded(.up))
  }

  /// The bound that 99 of 100 batches since `old` did not exceed; nil when there was none.
  private static func lag(from old: Figures?, to new: Figures) -> String? {
    guard let old else { return nil }
    let batches = zip(new.lag, old.lag).map { $0 &- min($0, $1) }
    let total = batches.reduce(0, &+)
    guard total > 0 else { return nil }
    var seen: UInt64 = 0
    for (bound, count) in zip(Figures.lagBoundsMicroseconds, batches) {
      seen += count
      if seen * 100 >= total * 99 { return "up to \(milliseconds(bound)) ms" }
    }
    return "over \(milliseconds(Figures.lagBoundsMicroseconds.last ?? 0)) ms"
  }

  private static func milliseconds(_ microseconds: UInt64) -> String {
    let text = "\(Double(microseconds) / 1000)"
    return text.hasSuffix(".0") ? String(text.dropLast(2)) : text
  }

  private static func count(_ number: Int, _ noun: String) -> String {
    "\(number) \(noun)\(number == 1 ? "" : "s")"
  }
}
