import CFanotify
import Glibc

/// Closes what peers have sent, without ever waiting for it.
///
/// In: descriptors that nobody needs any more. Out: nothing. close(2) asks a FUSE or
/// network server to flush and sleeps until it has answered, where no signal wakes it;
/// that server may be a client that waits for this daemon. So what is not known to
/// close at once is closed by a helper: a process that shares memory and the table of
/// descriptors, and ends when it is done.
///
/// A helper that sleeps keeps its descriptors, and those that its session and its user
/// send meanwhile are counted with them: `admits` says when a session's next ones have to
/// wait. Who has none there waits last.
final class DescriptorCloser {
  /// Whose descriptors they are. A session that begins later has a larger number.
  struct Sender {
    let uid: UInt32
    let session: UInt64
  }

  /// Descriptors that helpers have or that wait for one; a packet may bring 253 more.
  static let descriptorsPerSession = 256
  static let descriptorsPerUser = 2048
  /// What sessions may bring that had none there when their user had too many.
  static let reservePerUser = 2048
  /// Helpers that run at the same time.
  static let helpersPerSession = 2
  static let helpersPerUser = 8
  static let helpersInAll = 64
  /// A process for each packet would cost more than the packet: what comes within this
  /// time goes to one, unless it is many.
  private static let gatherMicroseconds: UInt64 = 5000
  private static let many = 128
  private static let retryMicroseconds: UInt64 = 250_000

  private struct Helper {
    let pid: Int32
    let session: UInt64
    let count: Int
    /// Tells its end; nil where that could not be had.
    var pidfd: (list: DescriptorList, source: any LoopSource)?
  }

  private struct User {
    var helpers: [Helper] = []
    var waiting: [UInt64: [Int32]] = [:]
    /// The first session that did not exist when the user had too many; nil: it has not.
    var fullFrom: UInt64?

    var held: Int {
      waiting.values.reduce(helpers.reduce(0) { $0 + $1.count }) { $0 + $1.count }
    }

    func held(by session: UInt64) -> Int {
      helpers.reduce(waiting[session]?.count ?? 0) { $0 + ($1.session == session ? $1.count : 0) }
    }

    func admits(_ session: UInt64) -> Bool {
      let own = held(by: session)
      guard own < DescriptorCloser.descriptorsPerSession else { return false }
      guard let fullFrom else { return true }
      return own == 0 && session < fullFrom
        && held < DescriptorCloser.descriptorsPerUser + DescriptorCloser.reservePerUser
    }
  }

  private let loop: any EventLoop
  private let timer: any LoopTimer
  /// Monotonic microseconds; .max: it is not armed.
  private var armedFor = UInt64.max
  /// Whether close(2) of such an object is known to wait for nobody; whether it was opened
  /// with O_PATH.
  var isLocal: (Syscall.Status, Bool) -> Bool = { _, _ in false }
  /// The number of the next session.
  var nextSession: () -> UInt64 = { .max }
  /// Called when some of a user's have been closed, never from within a call.
  var released: (_ uid: UInt32) -> Void = { _ in }
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
      for var numbers in user.waiting.values {
        while !numbers.isEmpty { _ = start(Self.takePart(of: &numbers)) }
      }
    }
  }

  /// Whether descriptors of this sender are to be received now.
  func admits(_ sender: Sender) -> Bool {
    guard let user = users[sender.uid], !user.admits(sender.session) else { return true }
    reap(sender.uid)
    return users[sender.uid]?.admits(sender.session) ?? true
  }

  func close(_ numbers: [Int32], of sender: Sender) {
    let slow = numbers.filter { number in
      guard closesAtOnce(number) else { return true }
      _ = Glibc.close(number)
      return false
    }
    guard !slow.isEmpty else { return }
    var user = users[sender.uid] ?? User()
    user.waiting[sender.session, default: []] += slow
    if user.fullFrom == nil && user.held >= Self.descriptorsPerUser {
      user.fullFrom = nextSession()
    }
    users[sender.uid] = user
    if user.waiting[sender.session, default: []].count >= Self.many { reap(sender.uid) }
    if users[sender.uid]?.waiting.isEmpty == false {
      arm(afterMicroseconds: Self.gatherMicroseconds)
    }
  }

  /// Closes the daemon's own descriptors somewhat later: what is given here are copies,
  /// the originals have been closed by then.
  func closeLater(_ numbers: [Int32]) {
    guard !numbers.isEmpty else { return }
    users[.max, default: User()].waiting[0, default: []] += numbers
    arm(afterMicroseconds: Self.gatherMicroseconds)
  }

  /// Unless it is armed for an earlier moment.
  private func arm(afterMicroseconds microseconds: UInt64) {
    let moment = Syscall.monotonicMicroseconds() + microseconds
    guard moment < armedFor else { return }
    armedFor = moment
    timer.arm(afterMicroseconds: microseconds)
  }

  private func gathered() {
    armedFor = .max
    for uid in Array(users.keys) where reap(uid) { released(uid) }
  }

  private func closesAtOnce(_ number: Int32) -> Bool {
    guard let status = try? Syscall.status(of: number) else { return false }
    let flags = hw_status_flags(number)
    return isLocal(status, flags >= 0 && flags & O_PATH != 0)
  }

  /// Forgets the helpers that have ended, and gives what waits to new ones. Returns
  /// whether some had ended.
  @discardableResult
  private func reap(_ uid: UInt32) -> Bool {
    guard var user = users[uid] else { return false }
    let before = user.helpers.count
    user.helpers.removeAll { helper in
      var status: Int32 = 0
      let ended = unsafe waitpid(helper.pid, &status, WNOHANG)
      // ECHILD: whoever started the daemon has it ignore SIGCHLD.
      guard ended == helper.pid || (ended < 0 && errno == ECHILD) else { return false }
      hw_closed_elsewhere(helper.pid)
      helper.pidfd?.source.cancel()
      return true
    }
    let hasReleased = user.helpers.count < before
    let others = users.reduce(0) { $0 + ($1.key == uid ? 0 : $1.value.helpers.count) }
    for session in user.waiting.keys.sorted() {
      guard user.helpers.count < Self.helpersPerUser,
        others + user.helpers.count < Self.helpersInAll
      else { break }
      guard user.helpers.count(where: { $0.session == session }) < Self.helpersPerSession,
        var rest = user.waiting[session]
      else { continue }
      let numbers = Self.takePart(of: &rest)
      let pid = start(numbers)
      // There may be no process to be had now (EAGAIN, ENOMEM).
      guard pid > 0 else { break }
      user.helpers.append(
        Helper(pid: pid, session: session, count: numbers.count, pidfd: watch(pid, uid)))
      user.waiting[session] = rest.isEmpty ? nil : rest
    }
    // Another's helper may have to end first, or one whose end nobody tells.
    if !user.waiting.isEmpty || user.helpers.contains(where: { $0.pidfd == nil }) {
      arm(afterMicroseconds: Self.retryMicroseconds)
    }
    let held = user.held
    if held < Self.descriptorsPerUser { user.fullFrom = nil }
    users[uid] = held == 0 ? nil : user
    return hasReleased
  }

  /// As many as one helper takes.
  private static func takePart(of numbers: inout [Int32]) -> [Int32] {
    let part = Array(numbers.prefix(Int(hw_close_elsewhere_max)))
    numbers.removeFirst(part.count)
    return part
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
      guard let self, reap(uid) else { return }
      released(uid)
    }
    return source.map { (list, $0) }
  }
}
