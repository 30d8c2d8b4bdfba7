import CHostWatch

/// Asks the filesystem what is so now.
protocol Namespace: AnyObject {
  /// What `name` in the directory is: an object, or nil where there is none,
  /// or where the directory itself is gone.
  func lookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError)
    -> (handle: FileHandle, isDirectory: Bool)?

  /// The same, of names that the kernel has in memory alone, and without waiting for whoever
  /// holds the directory's lock: nil for others, too.
  func cachedLookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError) -> FileHandle?

  /// Where a living directory is; nil when it is gone.
  func location(ofDirectory directory: FileHandle) throws(SystemError)
    -> (parent: FileHandle, name: [UInt8])?
}

/// Takes merged records apart and settles what they leave open.
///
/// In: the kernel's records, in the order of the queue. Out: `RemoteEvent`s
/// which, applied in order to a model of the namespace, end in the truth.
///
/// **What the kernel does.** An event is OR-ed into an older queued record when
/// process, ISDIR, RENAME, directories, names and object are equal. So a record
/// stands where its first occurrence was, and may stand for later ones, too.
/// What has been read merges with nothing. A *window* is a stretch of records
/// of which any two may have been in the queue together; it ends when the
/// queue is known to have been empty, or when as many records have been read
/// as were left in the queue at some moment: those before that moment are then
/// closed.
///
/// **Which histories are not ambiguous.** Look at the entries (directory, name) that one object's
/// records in a window set and leave.
/// 1. An object that was not hard-linked is in one place at a time; its
///    records are the steps of a walk. A record can stand for two steps only if
///    the walk comes back to an entry it had left. Then some entry is entered
///    twice, left twice, or entered after it was left, and this shows in the records themselves
///    (`revisited`). Otherwise each record is one step, at its own time.
/// 2. Linking, unlinking and displacing an object changes its link count, and
///    the kernel says so by a record ATTRIB of the object alone, between two
///    occurrences of one record as well (`linked`). Then an entry that was
///    touched more than once in the window is in doubt; one touched once is not.
/// 3. An object that died (DELETE_SELF) is nowhere: whatever its records say,
///    no entry holds it in the end, and no lookup is needed. Where its own
///    records do not take it away, because a rename displaced it whose record stands
///    earlier, a model would still hold it; that is looked for in memory.
/// So if an entry was touched only by objects that are none of these, its
/// records are single, in order, and true. If it holds a living object by such records in
/// the end, no other object's merged record can have displaced that one: it
/// would have died or had its link count changed.
///
/// **What is done about the others.** Their records are passed on as they stand.
/// Then, for each entry they touched, it is worked out what a model would hold
/// now, and the name is looked up. Where they differ, a CREATE, DELETE or RENAME
/// with CORRECTED makes the model right. The lookup shows the entry at a later
/// moment than the window's end. What happened in between is in the queue, and to
/// apply it once more to a state that has it already ends in the same state;
/// an object that came in between is left to its own record.
///
/// DELETE_SELF, and what is OR-ed with it, waits for the window's end, so that
/// it is an object's last record. The kernel queues it just before the DELETE
/// that goes with it; where that is not in the window, the death is held for a
/// moment longer.
///
/// It refuses nothing; it allocates only when a window is larger than any
/// before, or when something has to be looked up.
final class Reconciler {
  struct Counters: Equatable {
    var records: UInt64 = 0
    /// Records with several of CREATE, DELETE and the changes of the object.
    var merged: UInt64 = 0
    var lookups: UInt64 = 0
    var corrected: UInt64 = 0
  }

  var counters = Counters()
  private(set) var segments: [EventSegment] = []
  /// What is in `segments`.
  private(set) var views: [SegmentView] = []
  private(set) var events: [KernelEvent] = []
  private var spare: [EventSegment] = []
  var window = ReconcilerWindow()
  /// Events whose DELETE_SELF waits for the window's end.
  var deaths: [Int] = []
  /// Deaths whose DELETE may still come.
  var held: [HeldDeath] = []
  /// Milliseconds on CLOCK_MONOTONIC, set before each read.
  var now: UInt32 = 0
  /// Up to here the events have been passed on.
  private var emitted = 0
  /// (events up to here are closed, once so many have been read).
  private var barriers: [(upTo: Int, whenRead: Int)] = []
  /// Events before this can be closed.
  private var closable = 0
  /// Records of which everything has been said.
  private(set) var closedRecords: UInt64 = 0
  /// How often a record was noted: once when it was read, and again for each part of its
  /// window that was closed before it.
  private(set) var notes: UInt64 = 0
  /// Since `close`.
  private(set) var directoryRenames = 0
  /// Removals of directories among the records not passed on yet.
  private var removals: [Int] = []

  let seed: UInt64
  let namespace: any Namespace
  let emit: (RemoteEvent) -> Void
  private let anticipate: (HandleView, HandleView) -> Void
  private let prefetch: (HandleView, Bool) -> Void
  private let overflow: () -> Void
  let report: (SystemError) -> Void

  /// - Parameters:
  ///   - emit: gets each event; its views are valid during the call.
  ///   - anticipate: gets each directory that is removed and the one it was in,
  ///     before the records that came earlier are passed on.
  ///   - prefetch: gets the object of an event that will soon be passed on, twice; the
  ///     second time it is near (true).
  ///   - overflow: called between two events, where the kernel's queue overflowed.
  ///   - report: called when the filesystem cannot be asked.
  init(
    seed: UInt64, namespace: any Namespace, emit: @escaping (RemoteEvent) -> Void,
    anticipate: @escaping (HandleView, HandleView) -> Void = { _, _ in },
    prefetch: @escaping (HandleView, Bool) -> Void = { _, _ in },
    overflow: @escaping () -> Void, report: @escaping (SystemError) -> Void
  ) {
    self.seed = seed
    self.namespace = namespace
    self.emit = emit
    self.anticipate = anticipate
    self.prefetch = prefetch
    self.overflow = overflow
    self.report = report
  }

  /// A buffer to read the next records into.
  func nextSegment() -> EventSegment { spare.popLast() ?? EventSegment() }

  /// Takes back a buffer that nothing was read into.
  func recycle(_ segment: EventSegment) { spare.append(segment) }

  /// Bytes that are kept because a window is open: the records, and what is noted of them.
  var retainedBytes: Int {
    segments.count * EventSegment.capacity + events.capacity * MemoryLayout<KernelEvent>.stride
      + window.bytes
  }

  /// Takes the records of one read. They are passed on by `close` or
  /// `keepOpen`, so that what comes with the next read may say more about the
  /// last of them.
  func absorb(_ segment: EventSegment) throws(RecordError) {
    let first = events.count
    segments.append(segment)
    views.append(segment.view)
    try segment.parse(into: &events, segment: UInt32(segments.count - 1))
    counters.records += UInt64(events.count - first)
    for index in first..<events.count { note(index) }
  }

  /// The new directory of the last record if that is a RENAME that nothing
  /// follows yet.
  var trailingRename: FileHandle? {
    guard emitted < events.count, let last = events.last, last.events.contains(.rename),
      let directory = views[Int(last.segment)].handle(last.newDirectory)
    else { return nil }
    return FileHandle(directory)
  }

  /// Passes on what has been absorbed. First the removals of directories, from the last
  /// to the first, so from the top down.
  private func passOn() {
    for index in removals.reversed() {
      let event = events[index]
      let segment = views[Int(event.segment)]
      guard let object = segment.handle(event.object),
        let directory = segment.handle(event.directory)
      else { continue }
      anticipate(object, directory)
    }
    removals.removeAll(keepingCapacity: true)
    while emitted < events.count {
      prefetchObject(ofEvent: emitted + 16, isNear: false)
      prefetchObject(ofEvent: emitted + 8, isNear: true)
      emit(at: emitted)
      emitted += 1
    }
  }

  private func prefetchObject(ofEvent index: Int, isNear: Bool) {
    guard index < events.count else { return }
    let event = events[index]
    if let object = views[Int(event.segment)].handle(event.object) { prefetch(object, isNear) }
  }

  /// The queue was empty after the last read: everything is closed.
  func close() {
    closedRecords = counters.records
    passOn()
    settle()
    emitHeld()
    emitDeaths(before: events.count)
    reset()
  }

  /// The queue held `remaining` records after the last read, which is asked only where a
  /// barrier is due: to count them takes the kernel as long as there are many. What can be
  /// closed is closed when it is half of what is kept, so that a backlog costs in proportion
  /// to its length; and when somebody waits for so many records to be closed, `awaited`, as
  /// soon as they can. Where it is not known how many remain, nil, nothing is closed before the
  /// queue is empty.
  func keepOpen(remaining: @autoclosure () -> Int?, awaited: UInt64) {
    passOn()
    while let barrier = barriers.first, barrier.whenRead <= events.count {
      closable = barrier.upTo
      barriers.removeFirst()
    }
    let isAwaited = awaited > closedRecords
    if barriers.isEmpty
      || isAwaited && counters.records >= awaited
        && !barriers.contains(where: { count($0.upTo) >= awaited })
    {
      let whenRead = remaining().map { events.count + $0 } ?? .max
      barriers.append((upTo: events.count, whenRead: whenRead))
    }
    guard closable > 0, closable * 2 >= events.count || isAwaited && count(closable) >= awaited
    else { return }
    settle()
    drop(before: closable)
    closable = 0
  }

  /// Records that have been read before and with the first `end` of those that are kept.
  private func count(_ end: Int) -> UInt64 { counters.records - UInt64(events.count - end) }

  // MARK: Noting what a record touches

  private func note(_ index: Int) {
    notes += 1
    let event = events[index]
    let mask = event.events
    guard !mask.isDisjoint(with: .reconciled), !mask.contains(.queueOverflow) else { return }
    let segment = views[Int(event.segment)]
    guard let handle = segment.handle(event.object != 0 ? event.object : event.directory) else {
      return
    }
    let isSelf = isSelfEvent(event, segment)
    let namespaceBits = isSelf ? [] : mask.intersection(.namespace)
    guard isSelf || !namespaceBits.isEmpty else { return }
    let object = window.object(handle.hash(seed: seed), event: UInt32(index))
    if isSelf {
      if mask.contains(.deleteSelf) {
        window.flag(object, .dead)
      } else if mask.contains(.attrib) {
        // Of a directory it may be a change of mode as well: that cannot be told.
        window.flag(object, .linked)
      }
      return
    }
    touch(event, UInt32(index), object, segment, namespaceBits)
  }

  /// An event on the object alone, without its name: a link count, a death, or something
  /// that happened to a directory itself.
  func isSelfEvent(_ event: KernelEvent, _ segment: SegmentView) -> Bool {
    event.directory == 0 || segment.name(event.name, event.nameSize).isDot
  }

  private func touch(
    _ event: KernelEvent, _ index: UInt32, _ object: Int, _ segment: SegmentView,
    _ bits: EventMask
  ) {
    guard let directory = segment.handle(event.directory) else { return }
    let isDirectory = event.events.contains(.isDirectory)
    let entry = entryHash(directory, segment.name(event.name, event.nameSize))
    func add(_ entry: UInt64, sets: Bool, isNew: Bool) {
      window.add(
        .init(entry: entry, object: UInt32(object), event: index, sets: sets, isNew: isNew),
        isDirectory: isDirectory)
    }
    if bits.contains(.rename) {
      if isDirectory { directoryRenames += 1 }
      add(entry, sets: false, isNew: false)
      guard let newDirectory = segment.handle(event.newDirectory) else { return }
      add(
        entryHash(newDirectory, segment.name(event.newName, event.newNameSize)), sets: true,
        isNew: true)
      return
    }
    if bits.contains(.create) { add(entry, sets: true, isNew: false) }
    if bits.contains(.delete) {
      add(entry, sets: false, isNew: false)
      if isDirectory { removals.append(Int(index)) }
    }
  }

  func entryHash(_ directory: HandleView, _ name: NameView) -> UInt64 {
    name.hash(seed: directory.hash(seed: seed))
  }

  // MARK: Passing on

  private func emit(at index: Int) {
    let event = events[index]
    let mask = event.events
    if mask.contains(.queueOverflow) { return overflow() }
    let segment = views[Int(event.segment)]
    let directoryBit = mask.intersection(.isDirectory)
    var remote = RemoteEvent(
      mask: mask, pid: event.pid, object: segment.handle(event.object),
      directory: segment.handle(event.directory), name: segment.name(event.name, event.nameSize))
    if remote.name.isDot {
      remote.name = .none
      remote.object = remote.object ?? remote.directory
    }
    if mask.contains(.rename) {
      remote.mask = EventMask.rename.union(directoryBit)
      remote.newDirectory = segment.handle(event.newDirectory)
      remote.newName = segment.name(event.newName, event.newNameSize)
      if let victim = replaced(at: index) {
        remote.flags = UInt32(HW_REPLACED)
        remote.replaced = victim
      }
      return emit(remote)
    }
    let changes = mask.subtracting(EventMask.namespace.union(.isDirectory))
    if !mask.isDisjoint(with: .namespace)
      && !(mask.intersection(.namespace) == mask.subtracting(.isDirectory)
        && mask.intersection(.namespace) != [.create, .delete])
    {
      counters.merged += 1
    }
    if mask.contains(.create) {
      remote.mask = EventMask.create.union(directoryBit)
      emit(remote)
    }
    if mask.contains(.deleteSelf) {
      deaths.append(index)
    } else if !changes.isEmpty {
      emitChange(remote, changes.union(directoryBit))
    }
    if mask.contains(.delete) {
      remote.mask = EventMask.delete.union(directoryBit)
      emit(remote)
    }
  }

  /// A change of the object, without the name of an O_TMPFILE object.
  private func emitChange(_ event: RemoteEvent, _ mask: EventMask) {
    var event = event
    event.mask = mask
    if event.name.temporaryInode != nil, isTemporary(event) {
      event.name = .none
      event.isUnnamed = true
    }
    emit(event)
  }

  /// Whether the name, which looks like an O_TMPFILE object's, is not really there. A name that
  /// is there was used just now, so the kernel has it in memory; one that is not it would look
  /// for under the directory's lock.
  private func isTemporary(_ event: RemoteEvent) -> Bool {
    guard let directory = event.directory, let object = event.object else { return false }
    counters.lookups += 1
    do throws(SystemError) {
      let found = try namespace.cachedLookup(event.name.bytes, in: FileHandle(directory))
      return found != FileHandle(object)
    } catch {
      report(error)
      return true
    }
  }

  /// What a RENAME removed, if the record after it is about that: the same process,
  /// an object that lost a link, and nothing in the window about that object under
  /// another name, as it would be if the link count were a link's or unlink's.
  private func replaced(at index: Int) -> HandleView? {
    guard index + 1 < events.count else { return nil }
    let (rename, victim) = (events[index], events[index + 1])
    guard victim.pid == rename.pid, !victim.events.isDisjoint(with: [.attrib, .deleteSelf]),
      victim.events.isDisjoint(with: .namespace),
      isSelfEvent(victim, views[Int(victim.segment)]),
      let lost = object(victim), let moved = object(rename), moved != lost,
      let directory = views[Int(rename.segment)].handle(rename.newDirectory)
    else { return nil }
    let segment = views[Int(rename.segment)]
    let entry = entryHash(directory, segment.name(rename.newName, rename.newNameSize))
    var isElsewhere = false
    window.forEachTouch(of: window.object(lost.hash(seed: seed), event: UInt32(index + 1))) {
      if $0.entry != entry { isElsewhere = true }
    }
    guard !isElsewhere else { return nil }
    window.flag(
      window.object(lost.hash(seed: seed), event: UInt32(index + 1)), .displaced)
    return lost
  }

  func object(_ event: KernelEvent) -> HandleView? {
    views[Int(event.segment)].handle(event.object != 0 ? event.object : event.directory)
  }

  // MARK: Windows

  /// A window may keep room for so many events for the next one.
  private static let keptEvents = 1 << 17

  private func reset() {
    if events.capacity > Self.keptEvents {
      window = ReconcilerWindow()
      events = []
    } else {
      window.removeAll()
      events.removeAll(keepingCapacity: true)
    }
    deaths.removeAll(keepingCapacity: true)
    barriers.removeAll(keepingCapacity: true)
    for segment in segments where spare.count < 4 { spare.append(segment) }
    segments.removeAll(keepingCapacity: true)
    views.removeAll(keepingCapacity: true)
    (emitted, closable, directoryRenames) = (0, 0, 0)
  }

  /// Forgets the events before `end`, whose window is closed, and what was
  /// noted of them.
  private func drop(before end: Int) {
    emitHeld()
    emitDeaths(before: end)
    // A buffer goes only as a whole.
    let firstKept = end < events.count ? Int(events[end].segment) : segments.count
    let cut = events.firstIndex { Int($0.segment) >= firstKept } ?? events.count
    // Deaths before `end` have been said, and its events passed on and settled.
    closedRecords = counters.records - UInt64(events.count - end)
    guard cut > 0 else { return }
    events.removeFirst(cut)
    for index in events.indices { events[index].segment -= UInt32(firstKept) }
    for segment in segments[..<firstKept] where spare.count < 4 { spare.append(segment) }
    segments.removeFirst(firstKept)
    views.removeFirst(firstKept)
    emitted -= cut
    deaths = deaths.map { $0 - cut }
    barriers = barriers.map { ($0.upTo - cut, $0.whenRead == .max ? .max : $0.whenRead - cut) }
    window.removeAll()
    let renames = directoryRenames
    for index in events.indices { note(index) }
    directoryRenames = renames
    removals.removeAll(keepingCapacity: true)
    // All of these have been settled; only what comes from now on is new.
    window.markSettled()
  }
}
