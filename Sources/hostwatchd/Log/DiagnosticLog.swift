import HostWatch
import Logging

/// Logs what the library reports, at a bearable rate.
final class DiagnosticLog {
  var logger: Logger
  private var limiter = DiagnosticLimiter()
  private var timer: (any LoopTimer)?
  private var isTimerArmed = false

  init(logger: Logger) { self.logger = logger }

  /// Lets summaries be written when nothing more of a kind arrives.
  func attach(to loop: any EventLoop) throws(SystemError) {
    timer = try loop.timer(priority: .idle) { [weak self] in self?.windowsEnded() }
  }

  func log(_ diagnostic: Diagnostic) {
    guard logger.logLevel <= diagnostic.severity.level else { return }
    let key = DiagnosticLimiter.Key(kind: diagnostic.kind, uid: diagnostic.peer?.uid)
    let now = monotonicMicroseconds()
    let (isLogged, summary) = limiter.admit(key, now: now)
    if let summary { log(summary) }
    if isLogged {
      write(diagnostic)
    } else {
      armTimer(now: now)
    }
  }

  /// Says what is still kept back, and lets go of the loop.
  func finish() {
    for summary in limiter.endWindows(now: UInt64.max) { log(summary) }
    timer?.cancel()
    timer = nil
  }

  private func write(_ diagnostic: Diagnostic) {
    var metadata: Logger.Metadata = [:]
    metadata[.messageID] = MessageID(diagnostic.kind)?.rawValue
    metadata[.session] = diagnostic.session.map { "\($0)" }
    metadata[.share] = diagnostic.share
    metadata[.peerPID] = diagnostic.peer.map { "\($0.pid)" }
    metadata[.peerUID] = diagnostic.peer.map { "\($0.uid)" }
    metadata[.errno] = diagnostic.errno.map { "\($0)" }
    logger.log(level: diagnostic.severity.level, "\(diagnostic.message)", metadata: metadata)
  }

  private func log(_ summary: DiagnosticLimiter.Summary) {
    let seconds = DiagnosticLimiter.windowMicroseconds / 1_000_000
    let whose = summary.key.uid.map { " of uid \($0)" } ?? ""
    var metadata: Logger.Metadata = [:]
    metadata[.messageID] = MessageID.suppressed.rawValue
    metadata[.suppressedCount] = "\(summary.suppressed)"
    metadata[.peerUID] = summary.key.uid.map { "\($0)" }
    logger.log(
      level: .warning,
      "\(summary.suppressed) more messages of kind \(summary.key.kind.rawValue)\(whose) were left out: at most \(DiagnosticLimiter.burst) in \(seconds) s are logged",
      metadata: metadata)
  }

  private func windowsEnded() {
    isTimerArmed = false
    let now = monotonicMicroseconds()
    for summary in limiter.endWindows(now: now) { log(summary) }
    if limiter.nextEnd != nil { armTimer(now: now) }
  }

  private func armTimer(now: UInt64) {
    guard !isTimerArmed, let timer, let end = limiter.nextEnd else { return }
    isTimerArmed = true
    timer.arm(afterMicroseconds: end > now ? end - now : 1)
  }
}

extension Diagnostic.Severity {
  var level: Logger.Level {
    switch self {
    case .error: .error
    case .warning: .warning
    case .notice: .notice
    case .info: .info
    case .debug: .debug
    }
  }
}
