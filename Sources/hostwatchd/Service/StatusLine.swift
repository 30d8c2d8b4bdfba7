import HostWatch

/// The line of figures that `systemctl status` shows. Pure: the caller says
/// what time it is.
struct StatusLine {
  private var lastFigures: Figures?
  private var lastTime: UInt64 = 0
  private(set) var text = ""
  /// Whether the line shows a rate, which has to fall to 0 when all is quiet.
  private(set) var showsActivity = false

  /// - Returns: the line if it differs from the one before.
  mutating func update(_ figures: Figures, now: UInt64) -> String? {
    let rate = StatusLine.rate(from: lastFigures, to: figures, microseconds: now &- lastTime)
    lastFigures = figures
    lastTime = now
    showsActivity = rate != 0
    let line =
      "\(StatusLine.count(figures.sessions, "session")), \(StatusLine.count(figures.nodes, "node"))"
      + ", \(StatusLine.count(rate, "event"))/s, \(figures.lost) lost"
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

  private static func count(_ number: Int, _ noun: String) -> String {
    "\(number) \(noun)\(number == 1 ? "" : "s")"
  }
}
