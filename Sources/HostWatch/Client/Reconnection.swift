import CFanotify
import CHostWatch
import Glibc

extension HostWatchClient {
  /// That the client keeps the session up by itself, so that a server has two
  /// states only.
  ///
  /// A session begins in step: what happens is told. `.outOfStep` says that
  /// from here on something may be missing, because the connection was lost or
  /// the daemon lost events. `.inStep` says that it has been made up for: what
  /// had changed at registered nodes stands before it, as `.recheck` or
  /// DELETE_SELF records, so a NODES server has a true cache again and need not
  /// drop what did not change; a TREE client reads its tree then. The two
  /// alternate. The other events come, too, and may be ignored.
  ///
  /// When the connection is lost the client connects again, at once and then
  /// after 50 ms to 2 seconds, for as long as there is no daemon. It gives up,
  /// and `events` ends, when the filesystem was unmounted or the share removed,
  /// or when the daemon refuses the session for a reason that does not go away
  /// by itself; `reconnect` tries again then.
  ///
  /// `since` is kept by SYNCs: the client sends its own after records and
  /// registrations, at most one in `syncIntervalMilliseconds`. When one is
  /// answered, or one of `sync()`, `since` becomes the time just before it was
  /// sent (CLOCK_REALTIME_COARSE) less 10 ms. Every change at a node registered
  /// before, whose ctime is `since` or earlier, then stands in `events` before
  /// `.disconnected`. Not covered is a system call that had set the ctime more
  /// than 10 ms before that SYNC, was still under way then (a write(2) of very
  /// many bytes), and ended while there was no daemon.
  public struct Reconnection: Sendable {
    /// Registers what the server holds in a session that knows none of it yet,
    /// each with the `since` given, or with its own if that is later. What
    /// cannot be opened any more is gone, as after a DELETE_SELF; what the
    /// daemon refuses is not followed.
    ///
    /// Other tasks register and forget meanwhile. One enters a node into the
    /// server's table before it registers it, and lets it be there when that
    /// throws `.disconnected`; one takes a node out of the table before it
    /// forgets it. A node that this function has opened stays in the table until
    /// its registration has been answered. Else an object that is forgotten and looked
    /// up again meanwhile is registered as a new node, and this takes the
    /// registration back to the old one.
    ///
    /// The root is registered from the start. If it may have changed, the client
    /// makes a `.recheck` record for it (sequence 0).
    ///
    /// If it throws, whatever that is, or the connection is lost, everything begins
    /// anew with the same `since`.
    public var register: @Sendable (HostWatchClient, Moment) async throws -> Void
    /// The shortest time between two of the client's own SYNCs, in milliseconds.
    public var syncIntervalMilliseconds: UInt32

    /// `register` is called for each new session.
    public init(
      syncIntervalMilliseconds: UInt32 = 1000,
      register: @escaping @Sendable (HostWatchClient, Moment) async throws -> Void
    ) {
      self.syncIntervalMilliseconds = syncIntervalMilliseconds
      self.register = register
    }
  }
}

/// What `ClientCore` knows about being in step. The marks have the stream's
/// order: they are put into the buffer when that is received which they are
/// about.
struct StepState: Sendable {
  weak var client: HostWatchClient?
  /// The last mark that was put into the buffer.
  var inStep = true
  /// All nodes are registered in this session.
  var isJoined = false
  /// From LOST to RESYNCED. A SYNC would hold up requests until then.
  var isLost = false
  /// There is nothing to come back to.
  var hasEnded = false
  /// A task connects and registers.
  var isRejoining = false
  /// Before the next attempt, in microseconds.
  var delay: UInt64 = 0
  var joinedAt: UInt64 = 0
  var since = HostWatchClient.Moment.none
  /// There was something since the last SYNC of the client's own.
  var wantsSync = false
  var sync: (unique: UInt64, moment: HostWatchClient.Moment)?
  /// Not before, in monotonic microseconds.
  var syncAt: UInt64 = 0

  /// A connection begins.
  mutating func begin(isFirst: Bool) {
    if isFirst { since = .now() }
    (isJoined, isLost, hasEnded, wantsSync, sync) = (isFirst, false, false, false, nil)
  }
}

/// Staying in step by itself.
extension ClientCore {
  private static let firstDelay: UInt64 = 50_000
  private static let longestDelay: UInt64 = 2_000_000
  static let syncRetryMicroseconds: UInt64 = 10_000

  /// Begins to reconnect after a connection was lost; the phase says so.
  func startRejoining() {
    Task { await rejoin() }
  }

  /// Connects and registers until that succeeds, or there is no use in it.
  private func rejoin() async {
    while let delay = nextDelay() {
      if delay > 0 {
        // Not when every other client does. Closing does not wait for it.
        let spread = UInt64.random(in: delay * 3 / 4...delay * 5 / 4)
        try? await Task.sleep(nanoseconds: spread * 1000)
      }
      do throws(Failure) {
        _ = try await connect(from: .reconnecting)
        try await join()
        return
      } catch {
        if Self.isFinal(error) { return giveUp() }
      }
    }
  }

  /// How long to wait for the next attempt, in microseconds: nothing after a
  /// session that was in step for a while, then longer and longer. Nil when
  /// there is nothing to be done; whoever loses a connection then begins anew.
  private func nextDelay() -> UInt64? {
    state.withLock { state in
      guard state.phase == .reconnecting else {
        state.step.isRejoining = false
        return nil
      }
      let now = Syscall.monotonicMicroseconds()
      if state.step.isJoined, now > state.step.joinedAt + Self.longestDelay {
        state.step.delay = 0
      }
      state.step.isJoined = false
      defer {
        state.step.delay = min(max(state.step.delay * 2, Self.firstDelay), Self.longestDelay)
      }
      return state.step.delay
    }
  }

  /// Registers the nodes in a new session; `.inStep` follows what the daemon
  /// has to say about them.
  func join() async throws(Failure) {
    let (client, since, connection, isTree) = state.withLock {
      ($0.step.client, $0.step.since, $0.connection, attachment.mode == .tree)
    }
    guard let client, let connection, let reconnection else { throw .disconnected }
    if isTree { return joined(connection) }
    let moment = HostWatchClient.Moment.now()
    do {
      try await reconnection.register(client, since)
    } catch {
      connection.shutDown()
      throw .disconnected
    }
    guard state.withLock({ $0.connection === connection }) else { throw .disconnected }
    if rootMayHaveChanged(since) { recheckRoot(connection) }
    guard case .synced = try await perform(.sync, joining: moment) else {
      throw .unexpectedReply
    }
  }

  /// Nobody registers the root, so nobody else asks whether it has changed. Who
  /// named a share has no descriptor of it: then it may have.
  private func rootMayHaveChanged(_ since: HostWatchClient.Moment) -> Bool {
    guard case .directory(let descriptor) = attachment.root,
      let status = try? Syscall.status(of: descriptor)
    else { return true }
    return status.ctime.isLater(
      than: Timestamp(seconds: since.seconds, nanoseconds: since.nanoseconds))
  }

  /// A RECHECK of the root, as the daemon would make it.
  private func recheckRoot(_ connection: Client.Connection) {
    let size = MemoryLayout<hw_events>.size + MemoryLayout<hw_record>.size
    let events = hw_events(
      header: hw_header(size: UInt32(size), type: UInt16(HW_EVENTS), flags: 0, unique: 0),
      count: 1, reserved: 0)
    let root = hw_node(nodeid: NodeID.root.nodeid, generation: NodeID.root.generation)
    var record = hw_record()
    record.size = UInt32(MemoryLayout<hw_record>.size)
    record.flags = UInt32(HW_RECHECK)
    record.mask = EventMask.isDirectory.rawValue
    record.node = root
    var packet: [UInt8] = []
    unsafe withUnsafeBytes(of: events) { unsafe packet.append(contentsOf: $0) }
    unsafe withUnsafeBytes(of: record) { unsafe packet.append(contentsOf: $0) }
    let ready = state.withLock { state -> [Ready] in
      guard state.connection === connection else { return [] }
      state.buffer.push(HostWatchClient.RecordBatch(checked: packet))
      return serve(&state)
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
  }

  /// Everything is registered, or needs not be: `.inStep` is next.
  private func joined(_ connection: Client.Connection) {
    let ready = state.withLock { state -> [Ready] in
      guard state.connection === connection else { return [] }
      markJoined(nil, &state)
      return serve(&state)
    }
    for (waiter, event) in ready { waiter.continuation.resume(returning: event) }
  }

  func markJoined(_ moment: HostWatchClient.Moment?, _ state: inout State) {
    state.step.isJoined = true
    state.step.joinedAt = Syscall.monotonicMicroseconds()
    // From here on another task begins when the connection is lost.
    state.step.isRejoining = false
    if let moment { state.step.since = moment }
    markInStep(&state)
  }

  func markInStep(_ state: inout State) {
    guard reconnection != nil, !state.step.inStep else { return }
    state.step.inStep = true
    state.buffer.push(.inStep)
  }

  func markOutOfStep(_ state: inout State) {
    guard reconnection != nil, state.step.inStep else { return }
    state.step.inStep = false
    state.buffer.push(.outOfStep)
  }

  private func giveUp() {
    let waiters = state.withLock { state -> [Waiter] in
      state.step.isRejoining = false
      guard state.phase == .reconnecting else { return [] }
      state.phase = .disconnected
      defer { state.waiters = [] }
      return state.waiters
    }
    for waiter in waiters { waiter.continuation.resume(returning: nil) }
  }

  /// Whether the daemon will say the same tomorrow.
  private static func isFinal(_ failure: Failure) -> Bool {
    guard case .refused(let refusal) = failure else { return false }
    return [
      EACCES, EINVAL, ENOENT, ENOTDIR, EOPNOTSUPP, EPERM, EPROTONOSUPPORT, ESRCH, EXDEV,
    ].contains(refusal.code)
  }

  // MARK: Own SYNCs

  func wantSync(_ state: inout State) {
    if reconnection != nil, attachment.mode == .nodes { state.step.wantsSync = true }
  }

  /// For how long the reader may wait, in milliseconds: -1 for ever, 0 when a
  /// SYNC is due.
  func timeUntilSync(_ epoch: UInt64) -> Int32 {
    state.withLock { state in
      let step = state.step
      guard state.epoch == epoch, state.phase == .connected, step.isJoined, step.wantsSync,
        step.sync == nil, !step.isLost
      else { return -1 }
      let now = Syscall.monotonicMicroseconds()
      return now >= step.syncAt ? 0 : Int32(clamping: (step.syncAt - now + 999) / 1000)
    }
  }

  /// Sends a SYNC if the socket takes it at once: the reader must not wait.
  func sendOwnSync(_ connection: Client.Connection, _ epoch: UInt64) {
    let unique = connection.nextUnique()
    let moment = HostWatchClient.Moment.now()
    let interval = UInt64(reconnection?.syncIntervalMilliseconds ?? 1000) * 1000
    let now = Syscall.monotonicMicroseconds()
    let isSent = connection.trySend(.sync, unique: unique)
    state.withLock { state in
      guard state.epoch == epoch else { return }
      state.step.syncAt = now + (isSent ? interval : Self.syncRetryMicroseconds)
      guard isSent else { return }
      state.step.wantsSync = false
      state.step.sync = (unique, moment)
    }
  }
}
