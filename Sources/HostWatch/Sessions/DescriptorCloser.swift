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
/// wait. Who has none there waits last. Connections that end cannot be kept waiting: their
/// sockets are put away in the queue of another socket, where they need no number.
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
    /// Pairs of sockets in whose queues there are others, and how many.
    var lots: [Lot] = []
    var putAway = 0
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

  private struct Lot {
    let sending: Int32
    let receiving: Int32
  }

  /// Where the sockets of connections that have ended wait, as if one session had sent them.
  private static let ended = UInt64.max
  /// So many of them are put away at once: what one packet carries.
  private static let lotSize = Int(hw_descriptors_max)
  /// And so many at most: they count as root's descriptors in flight, and a process of root's
  /// without capabilities may send none while there are more than its RLIMIT_NOFILE.
  private static let putAwayPerUser = 16_384
  private static let endedPerUser = 4096
  /// Some user's ended connections are very many and cannot be put away: no other is to be
  /// accepted, or they would leave no numbers.
  private(set) var isFull = false

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
      for var numbers in user.waiting.values + [Self.numbers(of: user.lots)] {
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
    if !slow.isEmpty { closeElsewhere(slow, of: sender) }
  }

  /// Closes a connection whose queue has descriptors that nobody has received: what releases
  /// the last of a file may have to wait for a server.
  func closeConnection(_ number: Int32, ofUser uid: UInt32) {
    closeElsewhere([number], of: Sender(uid: uid, session: Self.ended))
  }

  private func closeElsewhere(_ numbers: [Int32], of sender: Sender) {
    let waiting = Self.add(numbers, of: sender.session, to: &users[sender.uid, default: User()])
    if let user = users[sender.uid], user.fullFrom == nil, user.held >= Self.descriptorsPerUser {
      users[sender.uid]?.fullFrom = nextSession()
    }
    if waiting >= Self.many { reap(sender.uid) }
    if users[sender.uid]?.waiting.isEmpty == false {
      arm(afterMicroseconds: Self.gatherMicroseconds)
    }
  }

  /// How many of that session wait then.
  private static func add(_ numbers: [Int32], of session: UInt64, to user: inout User) -> Int {
    user.waiting[session, default: []] += numbers
    return user.waiting[session]?.count ?? 0
  }

  /// No helper is free for them. Who ends connections cannot be asked to wait, and a number
  /// for each would in the end leave none for anybody.
  private static func putAway(_ user: inout User) {
    while let waiting = user.waiting[ended], waiting.count >= lotSize,
      user.putAway < putAwayPerUser
    {
      let numbers = Array(waiting.suffix(lotSize))
      if !send(numbers, to: user.lots.last) {
        // Its queue is full. For want of memory or of numbers a new one may not do either.
        guard let lot = newLot() else { break }
        guard send(numbers, to: lot) else {
          for number in Self.numbers(of: [lot]) { _ = Glibc.close(number) }
          break
        }
        user.lots.append(lot)
      }
      // A copy is in the queue: this is not the last, and a socket asks nobody.
      for number in numbers { _ = Glibc.close(number) }
      user.waiting[ended]?.removeLast(lotSize)
      user.putAway += lotSize
    }
  }

  private static func newLot() -> Lot? {
    var ends: [Int32] = [-1, -1]
    // The array has two places.
    let result = unsafe ends.withUnsafeMutableBufferPointer {
      unsafe hw_socket_pair($0.baseAddress)
    }
    return result == 0 ? Lot(sending: ends[0], receiving: ends[1]) : nil
  }

  private static func send(_ numbers: [Int32], to lot: Lot?) -> Bool {
    guard let lot else { return false }
    // One byte, and as many descriptors as it says.
    let result = unsafe numbers.withUnsafeBufferPointer {
      unsafe hw_send_with_descriptors(lot.sending, "S", 1, $0.baseAddress, UInt32($0.count), 0)
    }
    return result == 0
  }

  private static func numbers(of lots: [Lot]) -> [Int32] {
    lots.flatMap { [$0.sending, $0.receiving] }
  }

  /// Closes the daemon's own descriptors somewhat later: copies whose originals have been
  /// closed by then, or what an earlier process has left and nobody needs.
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
    for session in Set(user.waiting.keys).union(user.lots.isEmpty ? [] : [Self.ended]).sorted() {
      // Each user has one, whatever the others have; and what sessions have sent that waits for
      // ever does not keep connections from being closed.
      let isEnded = session == Self.ended
      guard isEnded || user.helpers.count < Self.helpersPerUser,
        user.helpers.isEmpty || others + user.helpers.count < Self.helpersInAll
      else { continue }
      guard user.helpers.count(where: { $0.session == session }) < Self.helpersPerSession
      else { continue }
      var rest = user.waiting[session, default: []]
      if isEnded {
        rest += Self.numbers(of: user.lots)
        (user.lots, user.putAway) = ([], 0)
        user.waiting[session] = rest
      }
      let numbers = Self.takePart(of: &rest)
      let pid = start(numbers)
      // There may be no process to be had now (EAGAIN, ENOMEM).
      guard pid > 0 else { break }
      user.helpers.append(
        Helper(pid: pid, session: session, count: numbers.count, pidfd: watch(pid, uid)))
      user.waiting[session] = rest.isEmpty ? nil : rest
    }
    // Another's helper may have to end first, or one whose end nobody tells.
    if !user.waiting.isEmpty || !user.lots.isEmpty
      || user.helpers.contains(where: { $0.pidfd == nil })
    {
      arm(afterMicroseconds: Self.retryMicroseconds)
    }
    Self.putAway(&user)
    let held = user.held
    if held < Self.descriptorsPerUser { user.fullFrom = nil }
    users[uid] = held == 0 && user.lots.isEmpty ? nil : user
    isFull = users.values.contains { user in
      user.waiting[Self.ended, default: []].count >= Self.endedPerUser
    }
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
