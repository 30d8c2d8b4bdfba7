import CFanotify
import HostWatch
import Logging

/// Everything wired together on one loop, from the sockets to the end.
final class Daemon {
  private let source: ConfigurationSource
  private var configuration: Configuration
  /// Whether the configuration came from a file, which a reload then expects.
  private let hadFile: Bool
  let loop: SystemdLoop
  let hub: Hub
  private(set) var logger: Logger
  let store: SystemdStore?
  /// The next process goes on with the sessions and the socket.
  var hasHandedOver = false
  let diagnostics: DiagnosticLog
  private var status: StatusReporter?
  private var watchdog: Watchdog?
  private var isStopping = false
  private var readiness: (any LoopTimer)?
  /// How often READY=1 could not be sent.
  private var unready = 0

  /// Runs the daemon until a signal ends it.
  static func run(source: ConfigurationSource, configuration: Configuration, logger: Logger) throws
    -> Int32
  {
    var logger = logger
    logger.logLevel = configuration.logLevel
    try Requirements.check()
    let hidden = HiddenShares.find(configuration.shares) { [logger] in logger.warning("\($0)") }
    for finding in hidden { logger.error("\(finding.message)", metadata: finding.metadata) }
    if let first = hidden.first {
      var failure = StartFailure(.configuration, first.message)
      failure.messageID = .startFailed
      throw failure
    }
    let inherited = try InheritedSockets.take()
    let store = SystemdStore(inherited: inherited.stored) { [logger] id, text in
      logger.warning("\(text)", metadata: .of(id))
    }
    let sockets = try Sockets.open(configuration, inherited: inherited.listeners, store: store)
    do {
      let daemon = try Daemon(
        source: source, configuration: configuration, logger: logger, store: store)
      try Requirements.dropTheRest()
      logger.debug("of the capabilities CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH are left")
      let code = try daemon.serve(sockets.listeners, place: sockets.place)
      if daemon.hasHandedOver { sockets.leave() } else { sockets.remove() }
      return code
    } catch {
      sockets.remove()
      throw error
    }
  }

  private init(
    source: ConfigurationSource, configuration: Configuration, logger: Logger,
    store: SystemdStore?
  ) throws(SystemError) {
    self.source = source
    self.configuration = configuration
    self.logger = logger
    self.store = store
    hadFile = FileIdentity(path: source.path) != nil
    loop = try SystemdLoop()
    let diagnostics = DiagnosticLog(logger: logger)
    self.diagnostics = diagnostics
    let queue = QueueSize.ensure(configuration.queueEvents)
    if let shortfall = queue.shortfall {
      diagnostics.log(Diagnostic(.queueSizeLimited, .warning, shortfall))
    }
    hub = try Hub(loop: loop, limits: configuration.limits) {
      diagnostics.log($0)
    }
    try diagnostics.attach(to: loop)
  }

  private func serve(_ listeners: [Int32], place: String) throws(SystemError) -> Int32 {
    for number in [SIGTERM, SIGINT] {
      try loop.signal(number) { [unowned self] in stop(SystemError.signalName(number)) }
    }
    try loop.signal(SIGHUP) { [unowned self] in reload() }
    takeUp(then: configuration.shares)
    for listener in listeners { try hub.serve(OwnedDescriptor(listener)) }
    let hub = self.hub
    watchdog = try Watchdog(
      loop: loop, observe: { hub.queueObservations },
      stalled: { [unowned self] in logStalled($0) })
    let status = try StatusReporter(loop: loop) { hub.figures }
    self.status = status
    logger.notice(
      "hostwatchd \(daemonVersion) serves \(place), \(configuration.shareCount)",
      metadata: .of(.started))
    readiness = try loop.timer(priority: .normal) { [unowned self] in
      tellReady(ServiceManager.ready(status: self.status?.current() ?? ""))
    }
    tellReady(ServiceManager.started(status: status.current()))
    // However it ends: who is connected still is told by that at least.
    defer { if !hasHandedOver { hub.abandon() } }
    let code = try loop.run()
    diagnostics.finish()
    logger.notice("hostwatchd stopped", metadata: .of(.stopped))
    return code
  }

  /// Ends in order: what happened before is still sent. A second signal does
  /// not wait for that.
  private func stop(_ signal: String) {
    guard !isStopping else { return loop.exit(0) }
    isStopping = true
    status?.stop()
    ServiceManager.stopping()
    logger.info("\(signal): stopping", metadata: .of(.stopping))
    if isRestart && handOver() {
      hasHandedOver = true
      return loop.exit(0)
    }
    hub.shutDown { [loop] in loop.exit(0) }
  }

  private func logStalled(_ device: UInt64) {
    let number = "\(gnu_dev_major(dev_t(device))):\(gnu_dev_minor(dev_t(device)))"
    logger.error(
      "events of filesystem \(number) wait and are not read; the watchdog is not fed",
      metadata: .of(.notProgressing))
  }

  private func reload() {
    guard !isStopping else { return }
    ServiceManager.reloading()
    do {
      let new = try source.load(mayBeMissing: !hadFile)
      let hidden = HiddenShares.find(new.shares) { logger.warning("\($0)") }
      if let first = hidden.first {
        for finding in hidden { logger.error("\(finding.message)", metadata: finding.metadata) }
        return refuseReload(first.message)
      }
      adopt(new)
      finishReload(nil)
      logger.notice(
        "configuration reloaded\(hadFile ? " from \(source.path)" : ""), \(new.shareCount)",
        metadata: .of(.reloaded))
    } catch {
      error.log(to: logger, as: .reloadRefused)
      refuseReload(error.issues.first?.text(file: error.file) ?? "the configuration is wrong")
    }
  }

  private func refuseReload(_ reason: String) {
    logger.error(
      "reload refused: the configuration from before stays in force",
      metadata: .of(.reloadRefused))
    finishReload(reason)
  }

  private func finishReload(_ refusal: String?) {
    hub.reloads += 1
    hub.reloadError = refusal
    unready = 0
    tellReady(ServiceManager.ready(status: status?.current() ?? ""))
  }

  /// A manager that has not heard READY=1 waits for it, and ends the daemon at last:
  /// what could not be sent is sent again.
  private func tellReady(_ result: Int32) {
    guard result < 0, !isStopping else { return }
    if unready == 0 {
      logger.warning(
        "the service manager could not be told READY=1: \(SystemError("sendmsg", -result)); it is tried again for \(Self.readyAttempts) seconds"
      )
    }
    unready += 1
    guard unready <= Self.readyAttempts else { return }
    // At once first: most often a descriptor or memory was missing for a moment.
    readiness?.arm(afterMicroseconds: unready == 1 ? 50_000 : 1_000_000)
  }

  /// systemd's own patience, in seconds.
  private static let readyAttempts = 90

  private func adopt(_ new: Configuration) {
    let old = configuration
    configuration = new
    logger.logLevel = new.logLevel
    diagnostics.logger.logLevel = new.logLevel
    hub.limits = new.limits
    hub.setShares(new.shares)
    if new.queueEvents != old.queueEvents {
      // The sysctl can follow; queues that exist were sized when they were made.
      if let shortfall = QueueSize.ensure(new.queueEvents).shortfall {
        diagnostics.log(Diagnostic(.queueSizeLimited, .warning, shortfall))
      }
      logNeedsRestart(
        "daemon.queue-events",
        "filesystems watched already keep the queue they have, also over a restart that keeps sessions"
      )
    }
    if new.socketPath != old.socketPath || new.socketMode != old.socketMode {
      logNeedsRestart("daemon.socket, daemon.socket-mode", "the socket stays as it is until then")
    }
  }

  private func logNeedsRestart(_ key: String, _ consequence: String) {
    logger.warning(
      "\(source.path): \(key): changed, and takes effect at the next start; \(consequence)",
      metadata: .of(.needsRestart))
  }
}

extension Configuration {
  var shareCount: String { "\(shares.count) share\(shares.count == 1 ? "" : "s") configured" }
}

extension Logger.Metadata {
  static func of(_ id: MessageID) -> Logger.Metadata {
    var metadata: Logger.Metadata = [:]
    metadata[.messageID] = id.rawValue
    return metadata
  }
}

extension ConfigurationRefused {
  /// One entry for each issue, with its file, line and key as fields.
  func log(to logger: Logger, as id: MessageID) {
    for issue in issues {
      var metadata = Logger.Metadata.of(id)
      metadata[.configFile] = file
      metadata[.configLine] = issue.line.map { "\($0)" }
      metadata[.configKey] = issue.key
      logger.error("\(issue.text(file: file))", metadata: metadata)
    }
  }
}

extension HiddenShares.Finding {
  fileprivate var metadata: Logger.Metadata {
    var metadata = Logger.Metadata.of(.shareHidden)
    metadata[.share] = share
    return metadata
  }
}

extension SystemError {
  fileprivate static func signalName(_ number: Int32) -> String {
    number == SIGTERM ? "SIGTERM" : "SIGINT"
  }
}
