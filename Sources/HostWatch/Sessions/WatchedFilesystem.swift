import CFanotify
import CHostWatch
import Glibc

/// One superblock that is being watched: its group, its reconciler, and the
/// sessions and shares that look at it.
///
/// In: readiness of the group. Out: records in sessions' queues. One thread;
/// a batch is read, reconciled and routed before anything else happens.
final class WatchedFilesystem {
  /// The superblock's device number.
  let device: UInt64
  let magic: UInt32
  /// A detached clone of a mount of it, for what has to be looked up by handle.
  let mount: DetachedMount
  /// The mount table had it when it was attached, so it can be seen to go.
  let isInMountTable: Bool
  let router: Router
  private(set) var reconciler: Reconciler
  private(set) var group: FanotifyGroup
  private var source: (any LoopSource)?
  private var timer: (any LoopTimer)?
  private var deathTimer: (any LoopTimer)?
  private var removal: RegistrationRemoval?
  /// The st_dev of its objects; nil for btrfs, which has one per subvolume.
  private let knownDevice: UInt64?

  /// Sessions by slot.
  var sessions: [UInt32: Session] = [:]
  /// Shares of the configuration that are on it.
  var shareCount = 0

  /// Records read since the group was made.
  var recordsRead: UInt64 = 0
  var overflows: UInt64 = 0
  var batches: UInt64 = 0
  var largestBatch = 0
  private(set) var lag = Lag()
  /// When the loop found the group readable and nothing was read since; 0: not so.
  private var readableSince: UInt64 = 0
  /// The last moment at which the queue is known to have been empty.
  private(set) var lastEmpty: Timestamp
  /// The same, before what this turn has read.
  private var emptyBefore: Timestamp
  private var lastDrain: UInt64 = 0
  /// The smallest delay that a session allows, in microseconds.
  private(set) var delay: UInt64 = 0
  /// Sessions whose SYNC has not been answered.
  var syncing: [Session] = []
  private var isWaiting = false
  /// Something could not be told, for another reason than an overflow.
  private var hasLost = false
  /// Sessions have been told that they lost something, and that has not been sent.
  private var hasNotices = false
  /// After so many records the stream is whole again; nil: it is.
  ///
  /// The kernel tells of one overflow at a time. What it drops while that is still queued
  /// it does not tell again, though later records may be queued behind it: up to the end of
  /// what was queued when the overflow was read there may be holes.
  private(set) var gapEnd: UInt64?
  private(set) var hasFailed = false
  /// The group is in the descriptor store.
  var isStored = false

  private let report: (Diagnostic) -> Void
  /// Called when the group cannot be read any more.
  var failed: ((WatchedFilesystem, String) -> Void)?

  /// Bytes of a storm's records are kept at most up to here while their window is
  /// open; then it counts as an overflow.
  static let retainedLimit = 256 << 20
  /// Reads of the open window that ended with a RENAME and were followed by more.
  private var victimsAwaited = 0
  private static let victimsAwaitedAtMost = 8
  /// How long one turn of the loop may read, so that clients have theirs.
  private static let microsecondsPerTurn: UInt64 = 5000

  /// - Parameters:
  ///   - knownDevice: the st_dev of its objects; nil where it has several.
  ///   - mount: for what has to be looked up by handle.
  init(
    group: consuming FanotifyGroup, mount: consuming DetachedMount, magic: UInt32,
    knownDevice: UInt64?, isInMountTable: Bool, lastEmpty: Timestamp,
    report: @escaping (Diagnostic) -> Void
  ) {
    self.report = report
    device = group.device
    self.group = group
    (self.magic, self.knownDevice, self.isInMountTable) = (magic, knownDevice, isInMountTable)
    (self.lastEmpty, emptyBefore) = (lastEmpty, lastEmpty)
    self.mount = mount
    var generator = SystemRandomNumberGenerator()
    let seed = generator.next()
    let router = Router(seed: seed)
    self.router = router
    let lookup = MountNamespace(self.mount.descriptor)
    reconciler = Reconciler(
      seed: seed, namespace: lookup, emit: { _ in }, overflow: {}, report: { _ in })
    reconciler = Reconciler(
      seed: seed, namespace: lookup, emit: { router.route($0) },
      anticipate: { router.anticipate(removalOf: $0, from: $1) },
      prefetch: { router.prefetch($0, isNear: $1) },
      overflow: { [unowned self] in overflowed() },
      report: { [unowned self] in lookupFailed($0) })
    router.lives = { [unowned self] in sessions[$0]?.ownProcessLives ?? true }
  }

  /// Starts reading events in `loop`.
  func start(in loop: any EventLoop) throws(SystemError) {
    source = try loop.watch(group.descriptor.rawValue, for: .readable, priority: .normal) {
      [unowned self] _ in becameReadable()
    }
    timer = try loop.timer(priority: .normal) { [unowned self] in waitEnded() }
    deathTimer = try loop.timer(priority: .normal) { [unowned self] in drain() }
    removal = try RegistrationRemoval(router, in: loop)
  }

  /// Stops reading; the group is closed with the object.
  func stop() {
    source?.cancel()
    timer?.cancel()
    deathTimer?.cancel()
    removal?.cancel()
    (source, timer, deathTimer, removal) = (nil, nil, nil, nil)
  }

  var mask: EventMask { group.mask }
  /// Events that the kernel's queue holds; 0: not known.
  var queueLimit: UInt32 { group.queueLimit }
  var name: String { FilesystemName.name(magic: magic) }
  var isUnused: Bool { sessions.isEmpty && shareCount == 0 }
  /// Whether there are any; to count them takes the kernel longer.
  var hasEvents: Bool { Syscall.isReadable(group.descriptor.rawValue) }
  /// Events in the kernel's queue now; nil where it does not say, which is reported once.
  var queuedEvents: Int? {
    let bytes = hw_readable_bytes(group.descriptor.rawValue)
    if bytes >= 0 { return Int(bytes) / Int(hw_queued_event_size) }
    if !isCountUnknown {
      isCountUnknown = true
      report(
        Diagnostic(
          .filesystemFailed, .warning,
          "\(name) \(MountTable.text(device)): it is not known how many events wait: \(SystemError("ioctl(FIONREAD)", -bytes)); what waits for them waits until there are none.",
          errno: -bytes))
    }
    return nil
  }
  private var isCountUnknown = false

  // MARK: Sessions

  func add(_ session: Session, state: UnsafeMutablePointer<SessionState>, scope: TreeScope?)
    throws(SystemError) -> UInt32
  {
    let slot = unsafe router.add(state, scope: scope)
    sessions[slot] = session
    do {
      try adjustMask()
    } catch {
      sessions[slot] = nil
      router.remove(slot: slot)
      throw error
    }
    return slot
  }

  func remove(slot: UInt32) {
    let session = sessions[slot]
    sessions[slot] = nil
    syncing.removeAll { $0 === session }
    router.remove(slot: slot)
    do {
      try adjustMask()
    } catch {
      report(
        Diagnostic(
          .filesystemFailed, .warning, "\(name): the mark could not be made smaller: \(error)",
          errno: error.code))
    }
  }

  /// Takes what a session that has ended had registered out of the table.
  func removeRegistrations(_ identities: IdentityIndex, slot: UInt32) {
    removal?.add(identities, slot: slot)
  }

  /// The union of what sessions ask for, and what telling the truth takes.
  func adjustMask() throws(SystemError) {
    delay = UInt64(sessions.values.map(\.maxDelayMicroseconds).min() ?? 0)
    var wanted: EventMask = []
    for session in sessions.values { wanted.formUnion(session.wantedEvents) }
    if !wanted.isDisjoint(with: .namespace) || !router.scopes.isEmpty {
      wanted.formUnion(.reconciled)
    }
    try group.setMask(wanted, directory: mount.descriptor)
  }

  /// Whether the object behind a descriptor is on this superblock.
  func holds(device stDevice: UInt64, handle: FileHandle) throws(SystemError) -> Bool {
    if knownDevice == stDevice { return true }
    // Another st_dev may be a subvolume: then its handle opens here, too, and
    // gives the same device.
    // It is not remembered: the number of a deleted subvolume is given out again.
    guard magic == UInt32(hw_magic_btrfs) || magic == UInt32(hw_magic_overlay) else { return false }
    let object: OwnedDescriptor
    do throws(SystemError) {
      object = try Syscall.open(handle, on: mount)
    } catch {
      // Not this filesystem's; what else is wrong says nothing about that.
      guard [EMFILE, ENFILE, ENOMEM, EINTR].contains(error.code) else { return false }
      throw error
    }
    return try Syscall.status(of: object.rawValue).device == stDevice
  }

  /// Whether close(2) of such an object waits for nobody. A file of an overlay may be
  /// another filesystem's, and is flushed there; a device's driver may take its time. One
  /// that was opened with O_PATH has nothing to flush. With the last descriptor of what
  /// has no name its blocks are freed.
  ///
  /// What can be closed at once must be: as long as it is open here, the end of an object
  /// that is deleted meanwhile comes later than its DELETE.
  func closesAtOnce(_ status: Syscall.Status, isPath: Bool) -> Bool {
    guard status.links > 0 || status.blocks < Self.manyBlocks else { return false }
    return isPath
      || magic != UInt32(hw_magic_overlay) && (status.isRegular || status.isDirectory)
  }

  /// 64 MiB in blocks of 512 bytes.
  private static let manyBlocks: UInt64 = 131_072

  /// Second descriptors of the mounts that keep the filesystem in use, for whoever closes
  /// them: with the last its unmounting is finished, which writes back what is dirty.
  func mountCopies() -> [Int32] {
    ([mount.copy()] + router.scopes.map { $0.index.mount.copy() }).compactMap { $0 }
  }

  /// Whether this st_dev is known to be this superblock's.
  func knows(device stDevice: UInt64) -> Bool { knownDevice == stDevice }

  // MARK: Reading

  /// Reads at once on a quiet system. When a batch is followed by more at
  /// once, the next read waits a little: a wake-up for each event costs the
  /// daemon and the writers more than the events do.
  private func becameReadable() {
    let now = Syscall.monotonicMicroseconds()
    if readableSince == 0 { readableSince = now }
    if now - lastDrain < delay {
      isWaiting = true
      source?.pause()
      timer?.arm(afterMicroseconds: delay - (now - lastDrain))
      return
    }
    drain()
  }

  private func waitEnded() {
    guard isWaiting else { return }
    let before = recordsRead
    drain()
    if recordsRead > before && delay > 0 {
      timer?.arm(afterMicroseconds: delay)
      return
    }
    isWaiting = false
    source?.setReadiness(.readable)
  }

  /// Reads all there is and passes everything on: the last that is heard.
  func finish() {
    for _ in 0..<Self.turnsToFinish {
      drain()
      if hasFailed || !hasEvents { break }
    }
    reconciler.releaseDeaths()
    flush()
  }

  /// Somebody who never stops writing does not hold the end up.
  private static let turnsToFinish = 200

  /// Reads until the queue is empty, or for one turn of the loop, and sends what
  /// came of it.
  func drain() {
    router.now = UInt32(truncatingIfNeeded: Syscall.monotonicMicroseconds() / 1000)
    reconciler.now = router.now
    emptyBefore = lastEmpty
    let began = Syscall.monotonicMicroseconds()
    let batchesBefore = batches
    var isEmpty = false
    do {
      let end = began + Self.microsecondsPerTurn
      repeat {
        isEmpty = try readOnce()
      } while !isEmpty && Syscall.monotonicMicroseconds() < end
    } catch {
      return fail("\(error)")
    }
    lastDrain = Syscall.monotonicMicroseconds()
    if reconciler.isHoldingDeaths { holdDeaths() }
    for scope in router.scopes {
      if let failure = scope.index.takeFailure() { lookupFailed(failure) }
    }
    for slot in router.takeLosing() { sessions[slot]?.noteLoss(since: emptyBefore) }
    if hasLost {
      hasLost = false
      lose()
    }
    if isEmpty { passUnknownBarriers() }
    endGap()
    answerSyncs()
    if hasNotices {
      hasNotices = false
      for session in Array(sessions.values) { session.flush() }
    }
    if batches > batchesBefore {
      let since = readableSince == 0 ? began : readableSince
      for slot in router.takeReady() { sessions[slot]?.flush(since: since) }
      lag.add(Syscall.monotonicMicroseconds() - since)
    } else {
      flush()
    }
    readableSince = 0
  }

  /// Says once that nothing can be read any more.
  private func fail(_ reason: String) {
    guard !hasFailed else { return }
    hasFailed = true
    failed?(self, reason)
  }

  /// A SYNC is answered after all that was complete, so it does not let a
  /// death wait; otherwise a moment is enough for its DELETE to come.
  private func holdDeaths() {
    if syncing.isEmpty {
      deathTimer?.arm(afterMicroseconds: UInt64(Reconciler.deathMilliseconds) * 1000)
    } else {
      reconciler.releaseDeaths()
    }
  }

  private enum ReadFailure: Error, CustomStringConvertible {
    case call(SystemError)
    case record(RecordError)
    var description: String {
      switch self {
      case .call(let error): "\(error)"
      case .record(let error): "a record of the kernel's cannot be read: \(error)"
      }
    }
  }

  /// One read and all that follows from it. True when the queue was empty
  /// afterwards.
  private func readOnce() throws(ReadFailure) -> Bool {
    let segment = reconciler.nextSegment()
    let before = Syscall.coarseNow()
    let size: Int
    do { size = try segment.fill(from: group.descriptor.rawValue) } catch { throw .call(error) }
    guard size > 0 else {
      reconciler.recycle(segment)
      closeWindow(before)
      return true
    }
    let records = reconciler.counters.records
    do { try reconciler.absorb(segment) } catch { throw .record(error) }
    let count = Int(reconciler.counters.records - records)
    recordsRead += UInt64(count)
    batches += 1
    router.beginBatch()
    largestBatch = max(largestBatch, count)
    if segment.reachedEnd {
      // The queue was empty, so the window may be closed in any case: a storm of renames, whose
      // every read ends so, must not keep it open.
      if victimsAwaited < Self.victimsAwaitedAtMost, waitForVictim() {
        victimsAwaited += 1
        return false
      }
      closeWindow(before)
      return true
    }
    guard hasEvents else {
      closeWindow(before)
      return true
    }
    reconciler.keepOpen(remaining: queuedEvents, awaited: awaitedRecords)
    if reconciler.retainedBytes > Self.retainedLimit {
      report(
        Diagnostic(
          .filesystemFailed, .warning,
          "\(name) \(MountTable.text(device)): more records are waiting than can be told apart; they count as lost."
        ))
      hasLost = true
      closeWindow(lastEmpty)
    }
    return false
  }

  /// A RENAME at the end of the queue: its victim's record is queued while the rename still
  /// holds the directory's lock. Once that is free, it is there. True when
  /// there is something to read again.
  private func waitForVictim() -> Bool {
    guard let directory = reconciler.trailingRename else { return false }
    do throws(SystemError) {
      Syscall.waitForDirectoryLock(try Syscall.open(directory, on: mount))
    } catch {
      if error.code != ESTALE { lookupFailed(error) }
    }
    return hasEvents
  }

  private func closeWindow(_ emptyAt: Timestamp) {
    victimsAwaited = 0
    let renames = reconciler.directoryRenames
    reconciler.close()
    router.endWindow(directoryRenames: renames)
    lastEmpty = emptyAt
  }

  /// Sends what has gathered in the sessions' queues.
  func flush() {
    for slot in router.takeReady() { sessions[slot]?.flush() }
  }

  // MARK: SYNC

  /// The number of records after which everything complete by now has been
  /// read; `unknownBarrier` where it is not known how many are queued.
  var barrier: UInt64 { queuedEvents.map { recordsRead + UInt64($0) } ?? Self.unknownBarrier }
  /// It is passed once the queue has been empty.
  static let unknownBarrier = UInt64.max

  /// The queue is empty, so all that was complete when they were set has been read.
  private func passUnknownBarriers() {
    if gapEnd == Self.unknownBarrier { gapEnd = reconciler.closedRecords }
    for session in syncing { session.passUnknownBarriers(reconciler.closedRecords) }
  }

  /// The fewest closed records that a SYNC or the end of a gap waits for. A SYNC may wait for
  /// a resync alone.
  private var awaitedRecords: UInt64 {
    let closed = reconciler.closedRecords
    return syncing.reduce(gapEnd ?? .max) { least, session in
      guard let barrier = session.pendingSyncs.first?.barrier, barrier > closed else {
        return least
      }
      return min(least, barrier)
    }
  }

  /// Answers the session's SYNC as soon as that many have been read.
  func sync(_ session: Session) {
    syncing.append(session)
    drain()
  }

  private func answerSyncs() {
    guard !syncing.isEmpty else { return }
    let waiting = syncing
    syncing = []
    for session in waiting {
      session.answerSyncs(reconciler.closedRecords)
      session.flush()
      if session.hasPendingSync && !session.isEnded { syncing.append(session) }
    }
  }

  /// The kernel's queue overflowed here. Sessions are told before what comes behind it.
  private func overflowed() {
    overflows += 1
    report(
      Diagnostic(
        .kernelQueueOverflow, .warning,
        "\(name) \(MountTable.text(device)): the kernel's queue of events overflowed; sessions look again at what they hold. Raise fs.fanotify.max_queued_events or queue-events."
      ))
    lose()
  }

  private func lose() {
    openGap()
    for session in Array(sessions.values) {
      session.lose(UInt32(HW_LOST_KERNEL), since: emptyBefore)
    }
    hasNotices = true
  }

  /// Records were lost, and more may be missing among those in the queue.
  func openGap() {
    gapEnd = barrier
    forgetPlaces()
  }

  private func endGap() {
    guard let gapEnd, reconciler.closedRecords >= gapEnd else { return }
    self.gapEnd = nil
    router.forgetPassed()
    // The last move of a directory may have been among what is missing.
    forgetPlaces()
    for session in sessions.values { session.continueResync() }
  }

  private func forgetPlaces() {
    for scope in router.scopes { scope.index.forgetAll() }
  }

  private func lookupFailed(_ error: SystemError) {
    report(
      Diagnostic(
        .filesystemFailed, .warning,
        "\(name) \(MountTable.text(device)): a name or directory could not be looked up: \(error); sessions look again at what they hold.",
        errno: error.code))
    hasLost = true
  }
}
