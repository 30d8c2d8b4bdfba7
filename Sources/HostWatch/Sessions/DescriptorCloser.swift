import CFanotify
import Glibc

/// Closes what peers have sent, without ever waiting for it.
///
/// In: descriptors that nobody needs any more. Out: nothing. close(2) asks a FUSE or
/// network server to flush and sleeps until it has answered, where no signal wakes it;
/// that server may be a client that waits for this daemon. So what is not known to
/// close at once is closed by a helper: a process that shares the table of
/// descriptors and nothing else, and ends when it is done.
///
/// A helper that sleeps keeps its descriptors, and those that its user sends meanwhile
/// are counted with them: `isFull` says when no more may be received.
final class DescriptorCloser {
  /// Helpers of a uid that run at the same time.
  static let helpersPerUser = 8
  /// A process for each packet would cost more than the packet: what comes within this
  /// time goes to one, unless it is many.
  private static let gatherMicroseconds: UInt64 = 5000
  private static let many = 128
  private static let retryMicroseconds: UInt64 = 250_000
  /// Descriptors of a uid that helpers have or that wait for one; a packet may bring
  /// 253 more.
  static let descriptorsPerUser = 512

  private struct Helper {
    let pid: Int32
    let count: Int
    /// Tells its end; nil where that could not be had.
    var pidfd: (list: DescriptorList, source: any LoopSource)?
  }

  private struct User {
    var helpers: [Helper] = []
    var waiting: [Int32] = []
    var held: Int { helpers.reduce(waiting.count) { $0 + $1.count } }
  }

  private let loop: any EventLoop
  private let timer: any LoopTimer
  private var isArmed = false
  /// Whether close(2) of such an object is known to wait for nobody.
  var isLocal: (Syscall.Status) -> Bool = { _ in false }
  private var users: [UInt32: User] = [:]

  init(loop: any EventLoop) throws(SystemError) {
    self.loop = loop
    weak var owner: DescriptorCloser?
    timer = try loop.timer(priority: .normal) { owner?.gathered() }
    owner = self
  }

  /// Helpers that are still at work go on by themselves.
  deinit {
    timer.cancel()
    for user in users.values {
      for helper in user.helpers { helper.pidfd?.source.cancel() }
      _ = start(user.waiting)
    }
  }

  /// Whether this user's descriptors are to be left to the kernel, which drops those that
  /// there is no room for without asking anybody.
  func isFull(_ uid: UInt32) -> Bool {
    guard holdsMany(uid) else { return false }
    reap(uid)
    return holdsMany(uid)
  }

  private func holdsMany(_ uid: UInt32) -> Bool {
    users[uid].map { $0.held >= Self.descriptorsPerUser } ?? false
  }

  func close(_ numbers: [Int32], of uid: UInt32) {
    let slow = numbers.filter { number in
      guard closesAtOnce(number) else { return true }
      _ = Glibc.close(number)
      return false
    }
    guard !slow.isEmpty else { return }
    users[uid, default: User()].waiting += slow
    if users[uid].map({ $0.waiting.count >= Self.many }) == true { return reap(uid) }
    arm(afterMicroseconds: Self.gatherMicroseconds)
  }

  private func arm(afterMicroseconds microseconds: UInt64) {
    guard !isArmed else { return }
    isArmed = true
    timer.arm(afterMicroseconds: microseconds)
  }

  private func gathered() {
    isArmed = false
    for uid in Array(users.keys) { reap(uid) }
  }

  /// An O_PATH descriptor has nothing to flush.
  private func closesAtOnce(_ number: Int32) -> Bool {
    let flags = hw_status_flags(number)
    if flags >= 0 && flags & O_PATH != 0 { return true }
    guard let status = try? Syscall.status(of: number) else { return false }
    return isLocal(status)
  }

  /// Forgets the helpers that have ended, and gives what waits to a new one.
  private func reap(_ uid: UInt32) {
    guard var user = users[uid] else { return }
    user.helpers.removeAll { helper in
      var status: Int32 = 0
      let ended = unsafe waitpid(helper.pid, &status, WNOHANG)
      // ECHILD: whoever started the daemon has it ignore SIGCHLD.
      guard ended == helper.pid || (ended < 0 && errno == ECHILD) else { return false }
      helper.pidfd?.source.cancel()
      return true
    }
    if !user.waiting.isEmpty && user.helpers.count < Self.helpersPerUser {
      let pid = start(user.waiting)
      if pid > 0 {
        user.helpers.append(Helper(pid: pid, count: user.waiting.count, pidfd: watch(pid, uid)))
        user.waiting = []
      } else {
        // There is no process to be had now (EAGAIN, ENOMEM).
        arm(afterMicroseconds: Self.retryMicroseconds)
      }
    }
    users[uid] = user.held == 0 ? nil : user
  }

  /// A helper for these; its pid, or a negative errno.
  private func start(_ numbers: [Int32]) -> Int32 {
    guard !numbers.isEmpty else { return -EINVAL }
    return unsafe numbers.withUnsafeBufferPointer {
      // As many as it says; the helper has a copy of them.
      unsafe hw_close_elsewhere($0.baseAddress, UInt32($0.count))
    }
  }

  private func watch(_ pid: Int32, _ uid: UInt32) -> (DescriptorList, any LoopSource)? {
    let number = hw_pidfd_open(pid)
    guard number >= 0 else { return nil }
    let list = DescriptorList([number])
    let source = try? loop.watch(number, for: .readable, priority: .idle) { [weak self] _ in
      self?.reap(uid)
    }
    return source.map { (list, $0) }
  }
}
