import CHostWatchFS
import Glibc
import HostWatch

/// Locks that clients hold on files, taken on the host's files so that they
/// meet those of the host's programs and of other mounts.
///
/// A POSIX lock belongs to its owner, whatever descriptor it was set through;
/// on the host it is a lock of an open file description (F_OFD_SETLK), one for
/// each owner and node. That is the description of the file which the owner
/// locked through first, or a new one if another owner has that.
///
/// A request that has to wait keeps no thread: it is tried again until it
/// succeeds or is interrupted.
final class LockTable: Sendable {
  private struct Owner: Hashable, Sendable {
    let node: UInt64
    let owner: UInt64
  }
  private struct Holder: Sendable {
    let descriptor: Descriptor
    /// The open file whose description it is; nil for one of its own.
    let file: UInt64?
  }
  private struct Waiter: Sendable {
    let request: Request
    let attempt: @Sendable () -> Int32
  }
  private struct State: Sendable {
    var holders: [Owner: Holder] = [:]
    /// Which owner has an open file's description.
    var claimed: [UInt64: Owner] = [:]
    var waiters: [Waiter] = []
    var isWaiting = false
    /// `stop` waits for the thread.
    var isEnding = false
  }
  private let state = Locked(State())
  private let ended = ThreadSemaphore()
  private let freed: Int32

  init() throws(Failure) { freed = try check(hwfs_event_new()) }

  deinit { close(freed) }

  /// The description through which an owner's locks on a node are taken.
  func descriptor(node: UInt64, owner: UInt64, file: UInt64, _ open: Descriptor)
    throws(Failure) -> Descriptor
  {
    let key = Owner(node: node, owner: owner)
    return try state.withLock { state throws(Failure) in
      if let holder = state.holders[key] { return holder.descriptor }
      let holder: Holder
      if state.claimed[file] == nil {
        state.claimed[file] = key
        holder = Holder(descriptor: open, file: file)
      } else {
        let flags = open.use { fcntl($0, F_GETFL) } & O_ACCMODE
        holder = Holder(
          descriptor: try Descriptor(checking: open.use { fd in hwfs_reopen(fd, flags) }), file: nil
        )
      }
      state.holders[key] = holder
      return holder.descriptor
    }
  }

  /// An owner has closed a descriptor of a node: all its locks there end.
  func release(node: UInt64, owner: UInt64) {
    let key = Owner(node: node, owner: owner)
    let holder = state.withLock { state -> Holder? in
      guard let holder = state.holders.removeValue(forKey: key) else { return nil }
      if let file = holder.file { state.claimed[file] = nil }
      return holder
    }
    guard let holder else { return }
    var all = flock()
    all.l_type = Int16(F_UNLCK)
    all.l_whence = Int16(SEEK_SET)
    _ = holder.descriptor.use { fd in unsafe hwfs_setlk(fd, &all) }
    retry()
  }

  /// An open file is gone, and with its description what was locked through it.
  func released(file: UInt64) {
    state.withLock { state in
      if let owner = state.claimed.removeValue(forKey: file) { state.holders[owner] = nil }
    }
    retry()
  }

  /// Answers `request` with what `attempt` returns, 0 or -errno; while that is
  /// EAGAIN and `waits`, later.
  func lock(_ request: Request, waits: Bool, _ attempt: @escaping @Sendable () -> Int32) {
    let result = attempt()
    guard waits, result == -EAGAIN else {
      request.fail(-result)
      if result == 0 { retry() }
      return
    }
    let starts = state.withLock { state in
      state.waiters.append(Waiter(request: request, attempt: attempt))
      defer { state.isWaiting = true }
      return !state.isWaiting
    }
    guard starts else { return }
    do throws(Failure) {
      try startThread(named: "locks") { self.wait() }
    } catch {
      // Nobody would try them again.
      let waiters = state.withLock { state in
        defer {
          state.waiters = []
          state.isWaiting = false
        }
        return state.waiters
      }
      for waiter in waiters { waiter.request.fail(ENOLCK) }
    }
  }

  /// Fails those that wait, when no handler runs any more and before the session goes.
  func stop() {
    let isWaiting = state.withLock { state in
      state.isEnding = true
      return state.isWaiting
    }
    guard isWaiting else { return }
    retry()
    ended.wait()
  }

  /// Locks may be free now.
  private func retry() { hwfs_event_raise(freed) }

  /// The thread that tries waiters while there are some: when a client has let
  /// go of a lock, and every now and then, since nobody tells of the locks of
  /// the host's programs and of interrupts.
  private func wait() {
    while true {
      hwfs_event_wait(freed, 10)
      let (tried, isEnding) = state.withLock { state in
        defer { state.waiters = [] }
        return (state.waiters, state.isEnding)
      }
      if isEnding {
        // As the kernel does with those that nobody has read.
        for waiter in tried { waiter.request.fail(ECONNABORTED) }
      }
      let left = isEnding ? [] : tried.filter { !isAnswered($0) }
      let (isDone, isAwaited) = state.withLock { state in
        state.waiters = left + state.waiters
        state.isWaiting = !state.waiters.isEmpty
        return (!state.isWaiting, state.isEnding)
      }
      if isDone {
        if isAwaited { ended.post() }
        return
      }
    }
  }

  private func isAnswered(_ waiter: Waiter) -> Bool {
    if waiter.request.isInterrupted {
      waiter.request.fail(EINTR)
      return true
    }
    let result = waiter.attempt()
    guard result != -EAGAIN else { return false }
    waiter.request.fail(-result)
    return true
  }
}
