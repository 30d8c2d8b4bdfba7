import HostWatch

/// Keeps one peer from filling the log: of each kind of diagnostic, each uid
/// gets a burst per window, and the rest becomes one line with their number.
///
/// Pure: the caller says what time it is.
struct DiagnosticLimiter {
  static let burst = 20
  static let windowMicroseconds: UInt64 = 10_000_000

  /// Whose diagnostics are counted together; nil is the daemon itself.
  struct Key: Hashable {
    var kind: Diagnostic.Kind
    var uid: UInt32?
  }

  struct Summary: Equatable {
    var key: Key
    var suppressed: Int
  }

  private struct Window {
    var end: UInt64
    var count = 0
  }

  private var windows: [Key: Window] = [:]

  /// Whether to log one more now, and the summary of a window that ended.
  mutating func admit(_ key: Key, now: UInt64) -> (isLogged: Bool, summary: Summary?) {
    var summary: Summary?
    var window = windows[key] ?? Window(end: now + DiagnosticLimiter.windowMicroseconds)
    if now >= window.end {
      summary = DiagnosticLimiter.summary(of: window, key)
      window = Window(end: now + DiagnosticLimiter.windowMicroseconds)
    }
    window.count += 1
    windows[key] = window
    return (window.count <= DiagnosticLimiter.burst, summary)
  }

  /// Forgets the windows that ended by `now` and says what they kept back.
  mutating func endWindows(now: UInt64) -> [Summary] {
    let ended = windows.filter { now >= $0.value.end }
    for key in ended.keys { windows[key] = nil }
    return ended.compactMap { DiagnosticLimiter.summary(of: $0.value, $0.key) }
      .sorted { ($0.key.kind.rawValue, $0.key.uid ?? 0) < ($1.key.kind.rawValue, $1.key.uid ?? 0) }
  }

  /// When the next window ends; nil when there is none.
  var nextEnd: UInt64? { windows.values.map(\.end).min() }

  private static func summary(of window: Window, _ key: Key) -> Summary? {
    window.count > burst ? Summary(key: key, suppressed: window.count - burst) : nil
  }
}
