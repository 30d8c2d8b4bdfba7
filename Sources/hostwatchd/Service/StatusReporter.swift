import HostWatch

/// Keeps the service manager's STATUS= up to date: at most once a second, and
/// not at all while nothing happens, so that an idle daemon sleeps.
final class StatusReporter {
  private static let intervalMicroseconds: UInt64 = 1_000_000

  private let figures: () -> Figures
  private var line = StatusLine()
  private var timer: (any LoopTimer)?
  private var afterWork: AfterWork?

  init(loop: SystemdLoop, figures: @escaping () -> Figures) throws(SystemError) {
    self.figures = figures
    timer = try loop.timer(priority: .idle) { [weak self] in self?.refresh() }
    afterWork = try loop.afterWork { [weak self] in self?.wait() }
  }

  /// The line as it is now.
  func current() -> String {
    _ = line.update(figures(), now: monotonicMicroseconds())
    return line.text
  }

  func stop() {
    timer?.cancel()
    afterWork?.cancel()
    timer = nil
    afterWork = nil
  }

  private func wait() {
    timer?.arm(afterMicroseconds: StatusReporter.intervalMicroseconds)
  }

  private func refresh() {
    if let text = line.update(figures(), now: monotonicMicroseconds()) {
      ServiceManager.status(text)
    }
    // A rate on display has to be seen falling; else the next work wakes us.
    if line.showsActivity { wait() } else { afterWork?.arm() }
  }
}
