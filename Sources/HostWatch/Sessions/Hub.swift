import CFanotify
import CHostWatch
import Glibc

/// The heart of the daemon: filesystems, shares and sessions on one loop.
///
/// In: listening sockets, a configuration, the mount table. Out: sessions that
/// get what happens on their filesystems. Everything runs on the loop's
/// thread; nothing here blocks for longer than a lookup in a filesystem.
public final class Hub {
  public static let version = "0.1.0"

  /// May be changed at any time; sessions that exist keep what they have.
  public var limits: Limits

  let loop: any EventLoop
  let report: (Diagnostic) -> Void
  let receiver = PacketReceiver()
  let started = Syscall.monotonicMicroseconds()
  private(set) var filesystems: [UInt64: WatchedFilesystem] = [:]
  private(set) var shares: [Share] = []
  private(set) var sessions: [UInt64: Session] = [:]
  private var users: [UInt32: UserAccount] = [:]
  private var listeners: [(descriptor: Int32, source: any LoopSource)] = []
  private var mountTable: (descriptor: Int32, source: any LoopSource)?
  private var housekeeping: (any LoopTimer)?
  private var resyncTimer: (any LoopTimer)?
  private var nextSession: UInt64 = 1
  /// What sessions that ended have had.
  private(set) var pastLost: UInt64 = 0
  private(set) var pastEvents: UInt64 = 0
  private(set) var pastDelivered: UInt64 = 0
  private(set) var pastCorrected: UInt64 = 0
  private var shutDownCompletion: (() -> Void)?
  private var isShuttingDown = false
  private var housekeepingIsArmed = false

  private static let housekeepingMicroseconds: UInt64 = 250_000

  /// - Parameters:
  ///   - report: called for what an operator may want to know.
  public init(
    loop: any EventLoop, limits: Limits, report: @escaping (Diagnostic) -> Void
  ) throws(SystemError) {
    self.loop = loop
    self.limits = limits
    self.report = report
    housekeeping = try loop.timer(priority: .housekeeping) { [unowned self] in keepHouse() }
    resyncTimer = try loop.timer(priority: .housekeeping) { [unowned self] in stepResyncs() }
    try watchMountTable()
  }

  deinit {
    for listener in listeners {
      listener.source.cancel()
      _ = close(listener.descriptor)
    }
    mountTable?.source.cancel()
    if let mountTable { _ = close(mountTable.descriptor) }
  }

  // MARK: Connections

  /// Accepts connections from a listening SOCK_SEQPACKET socket.
  public func serve(_ listener: consuming OwnedDescriptor) throws(SystemError) {
    let number = listener.take()
    do throws(SystemError) {
      let source = try loop.watch(number, for: .readable, priority: .client) { [unowned self] _ in
        accept(number)
      }
      listeners.append((number, source))
    } catch {
      _ = close(number)
      throw error
    }
  }

  private func accept(_ listener: Int32) {
    for _ in 0..<16 {
      let result = hw_accept(listener)
      if result == -EAGAIN { return }
      if result == -EINTR || result == -ECONNABORTED { continue }
      guard result >= 0 else {
        return report(
          Diagnostic(
            .sessionRefused, .warning,
            "A connection could not be accepted: \(SystemError("accept4", -result)). The descriptor limit may be too low.",
            errno: -result))
      }
      open(OwnedDescriptor(result))
    }
  }

  private func open(_ socket: consuming OwnedDescriptor) {
    var raw = hw_peer()
    guard unsafe hw_peer_credentials(socket.rawValue, &raw) == 0 else { return }
    let peer = PeerIdentity(
      pid: raw.pid, uid: raw.uid, gid: raw.gid, groups: Self.groups(of: socket.rawValue))
    // Connections without INIT are bounded as sessions are: they are closed
    // without a word, since nothing has been asked yet.
    guard sessions.count < limits.sessions * 2, !isShuttingDown else { return }
    let user = users[peer.uid] ?? UserAccount(uid: peer.uid, queueLimit: limits.queuePerUser)
    guard peer.isPrivileged || user.sessions < limits.sessionsPerUser * 2 else { return }
    users[peer.uid] = user
    let session = Session(id: nextSession, socket: socket, peer: peer, user: user, hub: self)
    nextSession += 1
    do throws(SystemError) {
      session.source = try loop.watch(session.socket.rawValue, for: .readable, priority: .client) {
        [unowned session] in session.becameReady($0)
      }
      sessions[session.id] = session
      armHousekeeping()
    } catch {
      user.sessions -= 1
      report(
        Diagnostic(
          .sessionRefused, .warning, "A connection could not be watched: \(error).",
          peer: peer, errno: error.code))
    }
  }

  private static func groups(of socket: Int32) -> [UInt32] {
    var groups = [gid_t](repeating: 0, count: 64)
    while true {
      let count = unsafe groups.withUnsafeMutableBufferPointer {
        unsafe hw_peer_groups(socket, $0.baseAddress, UInt32($0.count))
      }
      if count == -ERANGE && groups.count < 65536 {
        groups = [gid_t](repeating: 0, count: groups.count * 4)
        continue
      }
      return count < 0 ? [] : Array(groups[0..<Int(count)])
    }
  }

  func checkSessionLimits(_ session: Session) throws(Refusal) {
    let attached = sessions.values.filter(\.isAttached)
    guard attached.count < limits.sessions else {
      throw Refusal(EUSERS, "There are \(limits.sessions) sessions already; raise limits.sessions.")
    }
    guard !session.isPrivileged else { return }
    let own = attached.filter { $0.peer.uid == session.peer.uid }.count
    guard own < limits.sessionsPerUser else {
      throw Refusal(
        EUSERS,
        "Uid \(session.peer.uid) has \(own) sessions already; raise limits.sessions-per-user.")
    }
  }

  func started(_ session: Session) {
    report(
      Diagnostic(
        .sessionStarted, .info,
        "A \(session.isTree ? "TREE" : "NODES") session on \(session.share ?? session.path) started.",
        session: session.id, share: session.share, peer: session.peer))
  }

  func ended(_ session: Session, _ reason: String) {
    if session.isAttached {
      report(
        Diagnostic(
          .sessionEnded, .info, "A session ended: \(reason).", session: session.id,
          share: session.share, peer: session.peer))
    }
    pastLost += session.lostCount
    sessions[session.id] = nil
    if session.user.sessions == 0 { users[session.peer.uid] = nil }
    if let filesystem = session.filesystem { releaseIfUnused(filesystem) }
    if isShuttingDown && sessions.isEmpty { finishShutDown() }
  }

  // MARK: Filesystems

  /// The filesystem that a descriptor's object is on, watched from now on.
  func filesystem(for descriptor: Int32) throws(Refusal) -> WatchedFilesystem {
    if let status = try? Syscall.status(of: descriptor),
      let known = filesystems.values.first(where: { $0.knows(device: status.device) })
    {
      return known
    }
    do {
      let made = try WatchedFilesystem(directory: descriptor, report: report)
      if let known = filesystems[made.device] { return known }
      try made.start(in: loop)
      made.failed = { [unowned self] in filesystemFailed($0, $1) }
      filesystems[made.device] = made
      report(
        Diagnostic(
          .filesystemAttached, .info,
          "Watching \(made.name) \(MountTable.text(made.device))."))
      return made
    } catch let error as WatchError {
      throw Refusal(error.cause.code, error.description)
    } catch let error as SystemError {
      throw Refusal(error.code, "\(error).")
    } catch {
      throw Refusal(EIO, "\(error)")
    }
  }

  func releaseIfUnused(_ filesystem: WatchedFilesystem) {
    guard filesystem.isUnused, filesystems[filesystem.device] === filesystem else { return }
    forget(filesystem)
  }

  private func forget(_ filesystem: WatchedFilesystem) {
    filesystem.stop()
    filesystems[filesystem.device] = nil
    pastEvents += filesystem.recordsRead
    pastDelivered += filesystem.router.delivered
    pastCorrected += filesystem.reconciler.counters.corrected
  }

  private func filesystemFailed(_ filesystem: WatchedFilesystem, _ reason: String) {
    report(
      Diagnostic(
        .filesystemFailed, .error,
        "\(filesystem.name) \(MountTable.text(filesystem.device)) cannot be watched any more: \(reason)"
      ))
    detach(filesystem)
    retryShares()
  }

  /// Ends all that depends on a filesystem that has gone.
  private func detach(_ filesystem: WatchedFilesystem) {
    filesystem.drain()
    for share in shares where share.filesystem === filesystem { share.lose("unmounted") }
    for session in Array(filesystem.sessions.values) {
      session.detach(UInt32(HW_DETACHED_UNMOUNTED))
    }
    forget(filesystem)
    report(
      Diagnostic(
        .filesystemDetached, .notice,
        "\(filesystem.name) \(MountTable.text(filesystem.device)) was unmounted."))
  }

  // MARK: Mount table

  private func watchMountTable() throws(SystemError) {
    let fd = unsafe MountTable.path.withCString { unsafe hw_openat(AT_FDCWD, $0, O_RDONLY, 0) }
    let table = OwnedDescriptor(try checked(fd, "open(\(MountTable.path))"))
    let source = try loop.watch(table.rawValue, for: .exceptional, priority: .housekeeping) {
      [unowned self] _ in mountTableChanged()
    }
    mountTable = (table.take(), source)
  }

  private func mountTableChanged() {
    do throws(SystemError) {
      let mounted = try MountTable.devices()
      for filesystem in Array(filesystems.values)
      where filesystem.isInMountTable && !mounted.contains(filesystem.device) {
        detach(filesystem)
      }
    } catch {
      report(
        Diagnostic(.other, .error, "The mount table cannot be read: \(error).", errno: error.code))
    }
    checkShares()
  }

  // MARK: Housekeeping

  private func armHousekeeping() {
    guard !housekeepingIsArmed else { return }
    housekeepingIsArmed = true
    housekeeping?.arm(afterMicroseconds: Self.housekeepingMicroseconds)
  }

  /// Closes connections that have not said INIT in time.
  private func keepHouse() {
    housekeepingIsArmed = false
    let now = Syscall.monotonicMicroseconds()
    let limit = UInt64(HW_INIT_TIMEOUT_SECONDS) * 1_000_000
    for session in Array(sessions.values)
    where !session.isAttached && now - session.created >= limit {
      session.end("it did not say INIT within \(HW_INIT_TIMEOUT_SECONDS) seconds")
    }
    if isShuttingDown && now - shutDownStarted >= limit {
      for session in Array(sessions.values) { session.end("it did not read what was left") }
      return finishShutDown()
    }
    if isShuttingDown || sessions.values.contains(where: { !$0.isAttached }) { armHousekeeping() }
  }

  func scheduleResync() { resyncTimer?.arm(afterMicroseconds: 0) }

  private func stepResyncs() {
    for session in Array(sessions.values) where session.canStepResync { session.stepResync() }
    if sessions.values.contains(where: { $0.canStepResync }) { scheduleResync() }
  }

  // MARK: Shares

  /// Replaces the configured shares: new ones are attached, those that are
  /// gone detached (DETACHED reason 2). What cannot be attached is reported
  /// and tried again when the mount table changes.
  public func setShares(_ wanted: [ShareConfiguration]) {
    var kept: [Share] = []
    for share in shares {
      if let same = wanted.first(where: {
        $0.name == share.configuration.name && $0.path == share.configuration.path
      }) {
        share.configuration = same
        kept.append(share)
      } else {
        remove(share)
      }
    }
    for configuration in wanted
    where !kept.contains(where: { $0.configuration.name == configuration.name }) {
      kept.append(Share(configuration))
    }
    shares = kept
    retryShares()
  }

  private func remove(_ share: Share) {
    for session in Array(sessions.values) where session.share == share.configuration.name {
      session.filesystem?.drain()
      session.detach(UInt32(HW_DETACHED_REMOVED))
    }
    release(share)
    report(
      Diagnostic(
        .shareRemoved, .notice, "The share left the configuration.",
        share: share.configuration.name))
  }

  private func release(_ share: Share) {
    guard let filesystem = share.filesystem else { return }
    share.filesystem = nil
    filesystem.shareCount -= 1
    releaseIfUnused(filesystem)
  }

  private func retryShares() {
    for share in shares where share.filesystem == nil { attach(share) }
  }

  private func attach(_ share: Share) {
    let name = share.configuration.name
    do throws(Refusal) {
      let target = try resolve(share.configuration)
      share.filesystem = target.filesystem
      share.root = target.handle
      share.error = nil
      target.filesystem.shareCount += 1
      report(
        Diagnostic(
          .shareReady, .info, "The share \(share.configuration.path) is ready.", share: name))
    } catch {
      if share.error != error.text {
        report(
          Diagnostic(
            .shareUnavailable, .error,
            "The share \(share.configuration.path) is not available: \(error.text)", share: name,
            errno: error.code))
      }
      share.error = error.text
    }
  }

  /// Opens a share's path as it is now. The descriptor is closed with the
  /// target, so that it keeps no mount busy.
  private func resolve(_ share: ShareConfiguration) throws(Refusal) -> Session.Target {
    let directory: OwnedDescriptor
    do throws(SystemError) {
      directory = try Syscall.openDirectory(share.path)
    } catch {
      throw Refusal(error.code, "\(error).")
    }
    let list = DescriptorList([directory.take()])
    let descriptor = list.numbers[0]
    let filesystem = try filesystem(for: descriptor)
    do throws(SystemError) {
      return Session.Target(
        filesystem: filesystem, handle: try Syscall.handle(of: descriptor), path: share.path,
        share: share, descriptor: descriptor, opened: list)
    } catch {
      releaseIfUnused(filesystem)
      throw Refusal(error.code, "The share's root has no file handle: \(error).")
    }
  }

  func share(named name: String) -> Share? {
    shares.first { $0.configuration.name == name }
  }

  /// A share's root, for a new session.
  func open(_ share: Share) throws(Refusal) -> Session.Target {
    check(share)
    guard share.filesystem != nil else {
      throw Refusal(ENODEV, "The share is not available now: \(share.error ?? "not attached").")
    }
    return try resolve(share.configuration)
  }

  private func checkShares() {
    for share in shares { check(share) }
  }

  /// Compares what a share's path leads to with what is attached: another
  /// filesystem may have been mounted there, or that one may be back.
  private func check(_ share: Share) {
    if let filesystem = share.filesystem {
      let target = try? resolve(share.configuration)
      if let target, target.filesystem === filesystem, target.handle == share.root { return }
      let name = share.configuration.name
      share.lose("its path leads elsewhere now")
      for session in Array(sessions.values) where session.share == name {
        session.filesystem?.drain()
        session.detach(UInt32(HW_DETACHED_UNMOUNTED))
      }
      filesystem.shareCount -= 1
      releaseIfUnused(filesystem)
      report(
        Diagnostic(
          .shareDetached, .notice,
          "The share's filesystem is gone from \(share.configuration.path); it is watched again when it is back.",
          share: name))
    }
    attach(share)
  }

  /// For messages: where a descriptor is.
  func path(of descriptor: Int32) -> String {
    guard let copy = try? OwnedDescriptor(checked(hw_duplicate(descriptor), "dup")),
      let bytes = try? Syscall.path(of: copy)
    else { return "?" }
    return String(decoding: bytes, as: UTF8.self)
  }

  // MARK: The end

  private var shutDownStarted: UInt64 = 0

  /// Sends all that happened before this call, then DETACHED (reason 3), and
  /// calls `completion` when the packets have gone or after five seconds.
  public func shutDown(completion: @escaping () -> Void) {
    guard !isShuttingDown else { return }
    isShuttingDown = true
    shutDownCompletion = completion
    shutDownStarted = Syscall.monotonicMicroseconds()
    for listener in listeners {
      listener.source.cancel()
      _ = close(listener.descriptor)
    }
    listeners = []
    for filesystem in filesystems.values { filesystem.drain() }
    for session in Array(sessions.values) {
      if session.isAttached {
        session.detach(UInt32(HW_DETACHED_SHUTDOWN))
      } else {
        session.end("the daemon shuts down")
      }
    }
    if sessions.isEmpty { finishShutDown() } else { armHousekeeping() }
  }

  private func finishShutDown() {
    guard let completion = shutDownCompletion else { return }
    shutDownCompletion = nil
    for filesystem in Array(filesystems.values) { forget(filesystem) }
    completion()
  }
}

/// A share of the configuration, and what it is attached to.
final class Share {
  var configuration: ShareConfiguration
  /// nil while it is not available.
  var filesystem: WatchedFilesystem?
  var root: FileHandle?
  /// Why it is not available.
  var error: String?

  init(_ configuration: ShareConfiguration) { self.configuration = configuration }

  func lose(_ reason: String) {
    filesystem = nil
    root = nil
    error = reason
  }
}
