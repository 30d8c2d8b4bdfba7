import CHostWatch
import CHostWatchFS
import Glibc
import HostWatch

/// The thread that takes what the daemon says and hands it to an `Applier`, in
/// order; and the only place where the server gets in step with the daemon and
/// out of it.
///
/// Out of step, everything is told with the timeout 0 and everything cached has
/// been expired, so that nothing stale is served. In step again means: every
/// node in the view is registered, and every change before that has been told
/// (a SYNC was answered and what came before it is applied). A node that cannot be
/// opened to be registered is not cached until it has been.
@safe final class Follower: @unchecked Sendable {
  private let daemon: Daemon
  private let view: View
  private let backing: Backing
  private let applier: any Applier
  private let invalidator: Invalidator
  private let misplaced: Misplaced
  private let statistics: Statistics
  private let log: Log
  /// Posted when the thread ends.
  private let ended = ThreadSemaphore()
  private let stopping = Locked(false)
  private struct Progress: Sendable {
    /// Callers of `sync`, and up to which they have been served.
    var asked: UInt64 = 0
    var served: UInt64 = 0
    var busySince: UInt64?
  }
  private let progress = Locked(Progress())
  /// Ends the thread's wait.
  private let wake: Int32
  // Only the follower's thread uses these three.
  private nonisolated(unsafe) var hasGivenUp = false
  /// Nodes that were found gone when everything was registered again.
  private nonisolated(unsafe) var gone: [UInt64] = []
  private nonisolated(unsafe) var unopened = Unopened()

  /// Nodes that could not be registered for want of a descriptor, here or in the daemon, or
  /// that could not be opened, but are not gone.
  private struct Unopened {
    var nodes: [UInt64] = []
    /// Why, of the first.
    var failure = Failure(0)
    /// What was told of them before they were to be registered is up to then.
    var since = timespec()
    /// When they are tried again, microseconds.
    var due: UInt64 = 0
  }

  init(
    _ daemon: Daemon, _ view: View, _ backing: Backing, _ applier: any Applier,
    _ invalidator: Invalidator, _ misplaced: Misplaced, _ statistics: Statistics, _ log: Log
  ) throws(Failure) {
    wake = try check(hwfs_event_new())
    self.daemon = daemon
    self.view = view
    self.backing = backing
    self.applier = applier
    self.invalidator = invalidator
    self.misplaced = misplaced
    self.statistics = statistics
    self.log = log
  }

  deinit { close(wake) }

  /// Starts the thread, which `stop` waits for.
  func start() throws(Failure) {
    try startThread(named: "follower") {
      self.run()
      self.ended.post()
    }
  }

  func stop() {
    stopping.withLock { $0 = true }
    daemon.shutDown()
    hwfs_event_raise(wake)
    ended.wait()
  }

  /// Lets the thread look for work.
  func wakeUp() { hwfs_event_raise(wake) }

  /// Waits until every change on the host that was complete before is applied.
  /// False if that is not to be had: out of step, or at the end. Not for
  /// handlers, nor for the follower's thread.
  func sync() -> Bool {
    guard daemon.sync() == 0 else { return false }
    // Everything is in the handle now. The follower says when it has found that
    // empty after this.
    let wanted = progress.withLock { progress in
      progress.asked += 1
      return progress.asked
    }
    hwfs_event_raise(wake)
    while progress.withLock({ $0.served < wanted }) {
      if stopping.withLock({ $0 }) { return false }
      usleep(200)
    }
    applier.finishApplying()
    return view.isInStep
  }

  /// For how long records have been applied without a pause.
  var lagMicroseconds: UInt64 {
    progress.withLock { $0.busySince.map { Self.now() - $0 } ?? 0 }
  }

  private func run() {
    view.isInStep = true
    applier.start()
    daemon.setReregister { [unowned self] since in registerAll(since) }
    var event = unsafe hostwatch_event()
    while !stopping.withLock({ $0 }) {
      postponeRefused(misplaced.takeRefused())
      let retry = registerUnopened()
      let asked = progress.withLock { $0.asked }
      let result = unsafe daemon.next(&event, timeoutMilliseconds: 0)
      if result == 1 {
        progress.withLock { $0.busySince = $0.busySince ?? Self.now() }
        unsafe handle(event)
      } else if result == 0 {
        let pause = earlier(invalidator.settle(), applier.settle())
        progress.withLock { progress in
          progress.busySince = nil
          if pause < 0 { progress.served = asked }
        }
        wait(earlier(pause, retry))
      } else if !stopping.withLock({ $0 }) {
        // It has given up: what is wrong does not go away by itself, but an
        // administrator may put it right.
        giveUp("the session with hostwatchd is over: \(Daemon.errorText)")
        progress.withLock { progress in
          progress.busySince = nil
          progress.served = asked
        }
        waitToRetry()
        _ = daemon.reconnect()
      }
    }
    applier.stop()
  }

  private static let retryMilliseconds: Int32 = 5000

  /// What handlers leave to be done is done meanwhile.
  private func waitToRetry() {
    let due = Self.now() + UInt64(Self.retryMilliseconds) * 1000
    while !stopping.withLock({ $0 }), case let now = Self.now(), now < due {
      let pause = earlier(invalidator.settle(), applier.settle())
      hwfs_event_wait(wake, earlier(pause, Int32((due - now) / 1000) + 1))
    }
  }

  private func wait(_ milliseconds: Int32) {
    let isAsked = progress.withLock { $0.served < $0.asked }
    guard !isAsked || milliseconds > 0 else { return }
    let descriptor = daemon.pollDescriptor
    // Without a descriptor to wait for (EMFILE) it looks every now and then.
    hwfs_wait(descriptor, wake, descriptor < 0 ? 10 : milliseconds)
    hwfs_event_wait(wake, 0)
  }

  private func earlier(_ first: Int32, _ second: Int32) -> Int32 {
    first < 0 ? second : second < 0 ? first : min(first, second)
  }

  /// Microseconds.
  private static func now() -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000 + UInt64(time.tv_nsec) / 1000
  }

  private func handle(_ event: hostwatch_event) {
    tellGone()
    switch unsafe hostwatch_kind(rawValue: event.kind) {
    case HOSTWATCH_EVENT:
      let change = unsafe Change(event)
      statistics.count { $0.records += 1 }
      applier.apply(change)
    case HOSTWATCH_OUT_OF_STEP:
      let why = unsafe event.error == 0 ? "hostwatchd lost events" : String(cString: event.text)
      leaveStep(why)
    case HOSTWATCH_IN_STEP: enterStep()
    case HOSTWATCH_REGISTER_FAILED:
      let node = unsafe event.node.nodeid
      unsafe view.setFollowing(node, .refused(-event.error))
      if unsafe event.error == -EMFILE { postponeRefused([node]) }
      invalidator.invalidate(node, attributesOnly: false)
    case HOSTWATCH_DETACHED:
      log.warning(unsafe "hostwatchd ended the session: \(Self.reason(event.reason))")
    default: break  // OUT_OF_STEP and IN_STEP say what matters.
    }
  }

  private static func reason(_ number: UInt32) -> String {
    switch Int(number) {
    case Int(HW_DETACHED_UNMOUNTED): "SOURCE's filesystem was unmounted"
    case Int(HW_DETACHED_REMOVED): "the share was removed"
    case Int(HW_DETACHED_SHUTDOWN): "it shuts down"
    default: "reason \(number)"
    }
  }

  private func leaveStep(_ why: String) {
    guard view.isInStep else { return }
    view.isInStep = false
    statistics.count { $0.outOfStep += 1 }
    log.warning("\(why); nothing is cached until it is made up for")
    invalidator.expireAll()
    applier.outOfStep()
  }

  /// Said once, and not at each attempt.
  private func giveUp(_ why: String) {
    if view.isInStep {
      leaveStep(why)
    } else if unsafe !hasGivenUp {
      log.warning("\(why); it is tried again every few seconds")
    }
    unsafe hasGivenUp = true
  }

  private func enterStep() {
    unsafe hasGivenUp = false
    guard !view.isInStep else { return }
    view.isInStep = true
    log.notice("in step with hostwatchd again")
    applier.inStep()
  }

  // MARK: - Registering anew

  /// Registers every node in a new session; 0, or a negative errno if the
  /// connection was lost meanwhile.
  private func registerAll(_ since: timespec) -> Int32 {
    unsafe unopened = Unopened(since: since)
    let result = register(view.allIDs.filter { $0 != View.root }, since)
    if result == 0, case let count = unsafe unopened.nodes.count, count > 0 {
      let why = unsafe Hostwatchfs.text(unopened.failure.code)
      log.warning("\(count) objects cannot be opened: \(why); they are not cached until they can")
    }
    return result
  }

  /// Tries again every few seconds what could not be opened. Returns after how many
  /// milliseconds it is to be called again, -1 for never.
  private func registerUnopened() -> Int32 {
    guard unsafe !unopened.nodes.isEmpty else { return -1 }
    let (now, due) = unsafe (Self.now(), unopened.due)
    guard now >= due else { return Int32((due - now) / 1000) + 1 }
    let (nodes, since) = unsafe (unopened.nodes, unopened.since)
    unsafe unopened.nodes = []
    if register(nodes, since) < 0 {
      // To register twice does no harm.
      unsafe unopened.nodes = nodes
    }
    tellGone()
    guard unsafe unopened.nodes.isEmpty else { return Self.retryMilliseconds }
    log.notice("the objects that could not be opened are followed again")
    return -1
  }

  /// Registers nodes with `since`; 0, or a negative errno if it was not done. Those
  /// that are gone are put into `gone`; those that cannot be opened are put into
  /// `unopened`, and are not cached: the daemon does not tell of them.
  private func register(_ ids: [UInt64], _ since: timespec) -> Int32 {
    var batch: [Daemon.Registration] = []
    unsafe unopened.due = Self.now() + UInt64(Self.retryMilliseconds) * 1000
    for id in ids {
      // Held until it is sent: an object that is forgotten and looked up again meanwhile would be
      // registered as another node, which this would take the registration from.
      guard view.hold(id), let node = view.node(id) else { continue }
      let open = { () throws(Failure) in try self.backing.open(node) }
      var opened = Result(catching: open)
      if case .failure(let failure) = opened, failure.isShortage, !batch.isEmpty {
        // It may be what waits to be sent that takes the last ones.
        let result = send(&batch)
        if result < 0 {
          release(id)
          return result
        }
        opened = Result(catching: open)
      }
      switch opened {
      case .success(let descriptor):
        batch.append(.init(descriptor: descriptor, node: id, since: since))
      case .failure(let failure):
        view.setFollowing(id, .refused(failure.code))
        if failure.isGone {
          unsafe gone.append(id)
        } else {
          postpone(id, failure)
        }
        release(id)
      }
      if batch.count == Int(HW_REGISTER_MAX) {
        let result = send(&batch)
        if result < 0 { return result }
      }
    }
    return send(&batch)
  }

  /// It is tried again in a few seconds.
  private func postpone(_ node: UInt64, _ failure: Failure) {
    if unsafe unopened.nodes.isEmpty { unsafe unopened.failure = failure }
    unsafe unopened.nodes.append(node)
  }

  /// Sends what is in `batch`, and empties it.
  private func send(_ batch: inout [Daemon.Registration]) -> Int32 {
    defer {
      for registration in batch { release(registration.node) }
      batch = []
    }
    for (status, registration) in zip(daemon.register(batch), batch) {
      if [-ECONNRESET, -EPROTO, -ESHUTDOWN, -ENOMEM].contains(status) { return status }
      view.setFollowing(registration.node, status == 0 ? .yes : .refused(-status))
      if status == -EMFILE { postpone(registration.node, Failure(EMFILE)) }
    }
    return 0
  }

  private func release(_ id: UInt64) {
    guard view.release(id) else { return }
    backing.drop(id)
    daemon.forget([id])
  }

  /// hostwatchd had no free descriptor for these. The kernel is told to ask for them again after
  /// this; what changes later is made up for when they are registered.
  private func postponeRefused(_ nodes: [UInt64]) {
    guard !nodes.isEmpty else { return }
    if unsafe unopened.nodes.isEmpty {
      log.warning(
        "hostwatchd has no free descriptors; what it cannot take is not cached until it can")
      let now = HostWatchClient.Moment.now()
      unsafe unopened.since = timespec(
        tv_sec: Int(now.seconds), tv_nsec: Int(now.nanoseconds))
      unsafe unopened.due = Self.now() + UInt64(Self.retryMilliseconds) * 1000
    }
    for node in nodes { postpone(node, Failure(EMFILE)) }
  }

  private func tellGone() {
    for id in unsafe gone {
      var change = Change()
      change.mask = UInt64(HW_DELETE_SELF)
      change.node = id
      applier.apply(change)
    }
    unsafe gone = []
  }
}
