import CFanotify
import CHostWatch
import Glibc

/// The heart of the daemon: filesystems, shares and sessions on one loop.
///
/// In: listening sockets, a configuration, the mount table. Out: sessions that
/// get what happens on their filesystems. Everything runs on the loop's
/// thread; nothing here blocks for longer than lookups in a filesystem.
public final class Hub {
  /// May be changed at any time; sessions that exist keep what they have.
  public var limits: Limits

  /// Reloads of the configuration that are done, refused ones too; for STATUS.
  public var reloads: UInt64 = 0
  /// Why the last of them was refused; nil when it was not.
  public var reloadError: String?
  /// Where groups are kept beyond the process's end; nil: nowhere.
  public var store: (any DescriptorStore)?

  let loop: any EventLoop
  let report: (Diagnostic) -> Void
  let receiver = PacketReceiver()
  let closer: DescriptorCloser
  let started = Syscall.monotonicMicroseconds()
  var filesystems: [UInt64: WatchedFilesystem] = [:]
  var shares: [Share] = []
  var sessions: [UInt64: Session] = [:]
  var users: [UInt32: UserAccount] = [:]
  var listeners: [(descriptor: Int32, source: any LoopSource)] = []
  var mountTable: (descriptor: Int32, source: any LoopSource)?
  private var housekeeping: (any LoopTimer)?
  private var resyncTimer: (any LoopTimer)?
  private var turns = Turns()
  private var turnTimer: (any LoopTimer)?
  var nextSession: UInt64 = 1
  /// Kernel events that processes before this one have read.
  var eventsBefore: UInt64 = 0
  /// What sessions that ended have had.
  var pastLost: UInt64 = 0
  var pastEvents: UInt64 = 0
  var pastDelivered: UInt64 = 0
  var pastCorrected: UInt64 = 0
  /// Of filesystems that are not watched any more.
  var pastLag = Lag()
  private var shutDownCompletion: (() -> Void)?
  private(set) var isShuttingDown = false
  private var housekeepingIsArmed = false
  /// The mount table, or where a share's path leads, could not be read.
  var isMountTableUnknown = false
  private var listenersArePaused = false
  /// The session that did a slice of its resync last.
  private var lastResynced: UInt64 = 0

  /// What one turn may take.
  private static let connectionsPerTurn = 256
  private static let microsecondsPerAccept: UInt64 = 2000
  /// Connections that others cannot take from uid 0.
  private static let connectionsForRoot = 64
  private static let housekeepingMicroseconds: UInt64 = 250_000

  /// - Parameters:
  ///   - loop: on whose thread everything runs.
  ///   - limits: what clients may use.
  ///   - report: called for what an operator may want to know.
  /// - Throws: `SystemError` of what the loop makes a timer or a watch of the mount table with:
  ///   EMFILE, ENFILE, ENOMEM, ENOSPC.
  public init(
    loop: any EventLoop, limits: Limits, report: @escaping (Diagnostic) -> Void
  ) throws(SystemError) {
    self.loop = loop
    self.limits = limits
    self.report = report
    closer = try DescriptorCloser(loop: loop)
    closer.isLocal = { [unowned self] status, isPath in
      filesystems[status.device]?.closesAtOnce(status, isPath: isPath) ?? false
    }
    closer.nextSession = { [unowned self] in nextSession }
    closer.released = { [unowned self] uid in
      for session in Array(sessions.values) where session.peer.uid == uid { session.receiveAgain() }
    }
    housekeeping = try loop.timer(priority: .normal) { [unowned self] in keepHouse() }
    resyncTimer = try loop.timer(priority: .normal) { [unowned self] in stepResyncs() }
    turnTimer = try loop.timer(priority: .normal) { [unowned self] in giveTurn() }
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
  ///
  /// - Throws: `SystemError` of the loop's watch (ENOMEM, ENOSPC); the listener is closed then.
  public func serve(_ listener: consuming OwnedDescriptor) throws(SystemError) {
    let number = listener.take()
    do throws(SystemError) {
      let source = try loop.watch(number, for: .readable, priority: .normal) { [unowned self] _ in
        accept(number)
      }
      listeners.append((number, source))
    } catch {
      _ = close(number)
      throw error
    }
  }

  private func accept(_ listener: Int32) {
    let deadline = Syscall.monotonicMicroseconds() + Self.microsecondsPerAccept
    for _ in 0..<Self.connectionsPerTurn {
      guard Syscall.monotonicMicroseconds() < deadline else { return }
      guard !closer.isFull else {
        pauseListeners()
        return report(
          Diagnostic(
            .sessionRefused, .warning,
            "No connection is accepted: thousands of a user's have ended with descriptors in them, and wait for FUSE servers that do not answer."
          ))
      }
      let result = hw_accept(listener)
      if result == -EAGAIN { return }
      if result == -EINTR || result == -ECONNABORTED { continue }
      guard result >= 0 else {
        pauseListeners()
        return report(
          Diagnostic(
            .sessionRefused, .warning,
            "A connection could not be accepted: \(SystemError("accept4", -result)). The descriptor limit may be too low.",
            errno: -result))
      }
      open(OwnedDescriptor(result))
    }
  }

  /// Without descriptors or memory accept(2) would fail again at once, and go
  /// on failing: it is tried again with the next housekeeping.
  private func pauseListeners() {
    listenersArePaused = true
    for listener in listeners { listener.source.setReadiness([]) }
    armHousekeeping()
  }

  private func open(_ accepted: consuming OwnedDescriptor) {
    let peer: PeerIdentity
    do throws(SystemError) {
      peer = try Self.peer(of: accepted.rawValue)
    } catch {
      closer.closeConnection(accepted.take(), ofUser: .max)
      return report(
        Diagnostic(
          .sessionRefused, .warning,
          "A connection was closed, since it is not known whose it is: \(error).",
          errno: error.code))
    }
    let socket = ClientSocket(accepted, closer: closer, uid: peer.uid)
    // Nobody is there for an answer; and whoever connects and leaves again and again must
    // not keep others waiting behind that.
    guard !Syscall.hasHungUp(socket.rawValue) else { return }
    // Connections without INIT are bounded as sessions are: they are closed
    // without a word, since nothing has been asked yet.
    let reserve = peer.isPrivileged ? Self.connectionsForRoot : 0
    guard sessions.count < limits.sessions * 2 + reserve, !isShuttingDown else { return }
    let user = users[peer.uid] ?? UserAccount(uid: peer.uid, queueLimit: limits.queuePerUser)
    guard peer.isPrivileged || user.sessions < limits.sessionsPerUser * 2 else {
      return report(
        Diagnostic(
          .sessionRefused, .notice,
          "Uid \(peer.uid) has \(user.sessions) connections already, twice limits.sessions-per-user: one more was closed.",
          peer: peer))
    }
    users[peer.uid] = user
    let session = Session(id: nextSession, socket: socket, peer: peer, user: user, hub: self)
    nextSession += 1
    do throws(SystemError) {
      session.source = try loop.watch(session.socket.rawValue, for: .readable, priority: .normal) {
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

  /// Who is at the other end of a connection.
  static func peer(of socket: Int32) throws(SystemError) -> PeerIdentity {
    var raw = hw_peer()
    try checked(unsafe hw_peer_credentials(socket, &raw), "getsockopt(SO_PEERCRED)")
    return PeerIdentity(pid: raw.pid, uid: raw.uid, gid: raw.gid, groups: try groups(of: socket))
  }

  private static func groups(of socket: Int32) throws(SystemError) -> [UInt32] {
    var groups = [gid_t](repeating: 0, count: 64)
    while true {
      let count = unsafe groups.withUnsafeMutableBufferPointer {
        unsafe hw_peer_groups(socket, $0.baseAddress, UInt32($0.count))
      }
      if count == -ERANGE && groups.count < 65536 {
        groups = [gid_t](repeating: 0, count: groups.count * 4)
        continue
      }
      try checked(count, "getsockopt(SO_PEERGROUPS)")
      return Array(groups[0..<Int(count)])
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

  /// The kernel has fanotify groups for some 128 filesystems, and whoever may make a user
  /// namespace can mount as many.
  func checkFilesystemLimit(_ session: Session, device: UInt64) throws(Refusal) {
    guard !session.isPrivileged else { return }
    let own = sessions.values.filter { $0.peer.uid == session.peer.uid }.compactMap(\.filesystem)
      .filter { $0.shareCount == 0 }
    let known = filesystems.values.first { $0.knows(device: device) }
    if let known, known.shareCount > 0 || own.contains(where: { $0 === known }) { return }
    let count = Set(own.map(\.device)).count
    guard count < limits.filesystemsPerUser else {
      throw Refusal(
        EUSERS,
        "Uid \(session.peer.uid) has sessions on \(count) filesystems without a share already; raise limits.filesystems-per-user."
      )
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
    if let name = session.share { share(named: name)?.past.add(Traffic(session)) }
    sessions[session.id] = nil
    if session.user.sessions == 0 { users[session.peer.uid] = nil }
    if let filesystem = session.filesystem { releaseIfUnused(filesystem) }
    if isShuttingDown && sessions.isEmpty { finishShutDown() }
  }

  // MARK: Turns

  /// Whether others of the session's user wait for their turn.
  func mustWait(_ session: Session) -> Bool { turns.mustWait(session.turnTaker) }

  /// The session's requests have taken so long.
  func charge(_ session: Session, microseconds: UInt64) {
    turns.charge(session.turnTaker, microseconds: microseconds)
  }

  /// The session gets another turn when it is its user's.
  func queueTurn(_ session: Session) {
    if turns.isEmpty { turnTimer?.arm(afterMicroseconds: 0) }
    turns.add(session.id, of: session.turnTaker)
  }

  private func giveTurn() {
    turns.beginRound()
    while let id = turns.next() {
      guard let session = sessions[id] else { continue }
      session.takeTurn()
      break
    }
    if !turns.isEmpty { turnTimer?.arm(afterMicroseconds: 0) }
  }

  // MARK: Housekeeping

  func armHousekeeping() {
    guard !housekeepingIsArmed else { return }
    housekeepingIsArmed = true
    housekeeping?.arm(afterMicroseconds: Self.housekeepingMicroseconds)
  }

  /// Closes connections that have not said INIT in time, or that are stuck.
  private func keepHouse() {
    housekeepingIsArmed = false
    if listenersArePaused {
      listenersArePaused = false
      for listener in listeners { listener.source.setReadiness(.readable) }
    }
    if isMountTableUnknown && !isShuttingDown { mountTableChanged() }
    let now = Syscall.monotonicMicroseconds()
    let limit = UInt64(HW_INIT_TIMEOUT_SECONDS) * 1_000_000
    for session in Array(sessions.values)
    where !session.isAttached && now - session.created >= limit {
      session.end("it did not say INIT within \(HW_INIT_TIMEOUT_SECONDS) seconds")
    }
    endStalled(now)
    for session in Array(sessions.values) { session.receiveAgain() }
    if isShuttingDown && now - shutDownStarted >= limit {
      for session in Array(sessions.values) { session.end("it did not read what was left") }
      return finishShutDown()
    }
    if isShuttingDown || hasStalledSessions || isMountTableUnknown
      || sessions.values.contains(where: { !$0.isAttached || $0.waitsForCloser })
    {
      armHousekeeping()
    }
  }

  func scheduleResync() { resyncTimer?.arm(afterMicroseconds: 0) }

  /// Descriptors or memory may be there again after that.
  private static let lackingMicroseconds: UInt64 = 100_000

  private func stepResyncs() {
    // One slice of one session in a turn, so that the work of a turn does not
    // grow with the sessions.
    let waiting = sessions.values.filter(\.canStepResync).map(\.id).sorted()
    if let next = waiting.first(where: { $0 > lastResynced }) ?? waiting.first {
      lastResynced = next
      sessions[next]?.stepResync()
      if sessions[next]?.resync?.lacking != nil {
        resyncTimer?.arm(afterMicroseconds: Self.lackingMicroseconds)
        return
      }
    }
    if sessions.values.contains(where: { $0.canStepResync }) { scheduleResync() }
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
    for filesystem in Array(filesystems.values) { filesystem.finish() }
    for session in Array(sessions.values) {
      session.socket.isHandedOver = false  // where that was tried, it failed
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
