import CFanotify
import CHostWatch

/// From one change on the host to records in each session's terms.
///
/// In: a `RemoteEvent`. Out: records in the queues of the sessions it
/// concerns: for NODES those that registered the directory, the object or the
/// new directory; for TREE those whose share holds a directory. It holds that a session is
/// told nothing about what it does not know: no name without its registered
/// directory, nothing from outside a share, never an identity of another
/// object. Cost: one table lookup per handle for all NODES sessions together,
/// and one per directory and share for all TREE sessions of that share.
@safe final class Router {
  var nodes: NodeTable
  /// Where each session's state is, by slot.
  private(set) var states: [UnsafeMutablePointer<SessionState>?]
  private(set) var scopes: [TreeScope] = []
  private var nodeSessions = 0
  /// Slots whose session has ended and whose registrations are still in the table.
  var leaving: Set<UInt32> = []
  /// Slots whose queue was empty before this batch.
  private(set) var ready: [UInt32] = []
  private var taken: [UInt32] = []
  /// Slots that have a part in the record that is being routed, each once.
  private var touched: UnsafeMutablePointer<UInt32>
  private var touchedCount = 0
  private var losing: [UInt32] = []
  private var stamp: UInt64 = 0
  /// A process that is some sessions' own.
  private struct Origin {
    /// The oldest first.
    var sessions: [(id: UInt64, slot: UInt32)] = []
    /// It lived after that batch was read: then all of that with its id is its own.
    var livedAfter: UInt64 = 0
  }

  private var origins: [Int32: Origin] = [:]
  /// Whether the process of the session in a slot lives.
  var lives: (UInt32) -> Bool = { _ in true }
  private var batch: UInt64 = 1
  private var lastPID: Int32 = 0
  private var lastOrigin: UInt64 = 0
  /// When a record about an object was routed, in milliseconds, by the object's
  /// hash: who registers it afterwards was not told. Several objects may share a place:
  /// then one is looked at again without need.
  private var passed: UnsafeMutablePointer<UInt32>?
  /// Milliseconds on CLOCK_MONOTONIC, as of this batch.
  var now: UInt32 = 0
  var delivered: UInt64 = 0
  /// When an earlier process handed over, or the last gap ended, on the same clock: what
  /// passed within a second before that is not known, so it may have been any object.
  var unknownUntil: UInt32?

  static let passedMemoryMilliseconds: UInt32 = 1000
  private static var passedCount: Int { 1 << 16 }

  init(seed: UInt64) {
    nodes = NodeTable(seed: seed)
    unsafe states = []
    unsafe passed = nil
    unsafe touched = .allocate(capacity: 1)
  }

  deinit {
    unsafe touched.deallocate()
    if let passed = unsafe passed { unsafe passed.deallocate() }
  }

  // MARK: Sessions

  func add(_ state: UnsafeMutablePointer<SessionState>, scope: TreeScope?) -> UInt32 {
    let free = unsafe states.indices.first { index in
      unsafe states[index] == nil && !leaving.contains(UInt32(index))
    }
    let slot = unsafe UInt32(free ?? states.count)
    if free == nil {
      unsafe states.append(state)
      // Nothing is being routed: there is room for every slot.
      unsafe touched.deallocate()
      unsafe touched = .allocate(capacity: states.capacity)
    } else {
      unsafe states[Int(slot)] = state
    }
    if let scope {
      scope.sessions.append(slot)
      if !scopes.contains(where: { $0 === scope }) { scopes.append(scope) }
    } else {
      nodeSessions += 1
      if unsafe passed == nil {
        let memory = UnsafeMutablePointer<UInt32>.allocate(capacity: Self.passedCount)
        unsafe memory.initialize(repeating: 0, count: Self.passedCount)
        unsafe passed = memory
      }
    }
    unsafe origins[state.pointee.ownPID, default: Origin()].sessions.append(
      (state.pointee.id, slot))
    (lastPID, lastOrigin) = (0, 0)
    return slot
  }

  func remove(slot: UInt32) {
    guard let state = unsafe states[Int(slot)] else { return }
    forgetOwnProcess(slot: slot)
    if unsafe !state.pointee.isTree { nodeSessions -= 1 }
    for scope in scopes { scope.sessions.removeAll { $0 == slot } }
    scopes.removeAll { $0.sessions.isEmpty }
    unsafe states[Int(slot)] = nil
    ready.removeAll { $0 == slot }
    losing.removeAll { $0 == slot }
  }

  /// The process whose changes were a session's own has ended.
  func forgetOwnProcess(slot: UInt32) {
    guard let state = unsafe states[Int(slot)] else { return }
    let pid = unsafe state.pointee.ownPID
    (lastPID, lastOrigin) = (0, 0)
    origins[pid]?.sessions.removeAll { $0.slot == slot }
    if origins[pid]?.sessions.isEmpty == true { origins[pid] = nil }
    unsafe state.pointee.ownPID = 0
  }

  /// The slots that have something to send since the last call.
  func takeReady() -> [UInt32] {
    // The two arrays take turns, so that neither is allocated anew.
    swap(&ready, &taken)
    ready.removeAll(keepingCapacity: true)
    return taken
  }

  /// The slots that have begun to lose records since the last call.
  func takeLosing() -> [UInt32] {
    guard !losing.isEmpty else { return [] }
    defer { losing.removeAll() }
    return losing
  }

  /// Whether a record about the object passed within the last second, before
  /// it was registered.
  func hasPassed(_ handle: HandleView, now: UInt32) -> Bool {
    guard let passed = unsafe passed else { return false }
    if let unknownUntil {
      if now &- unknownUntil <= Self.passedMemoryMilliseconds { return true }
      self.unknownUntil = nil
    }
    let seen = unsafe passed[place(handle.hash(seed: nodes.seed))]
    return seen != 0 && now &- seen <= Self.passedMemoryMilliseconds
  }

  /// Records up to now were lost: any object may have been in them.
  func forgetPassed() { unknownUntil = now }

  /// Begins to fetch what registering an object will look at.
  func prefetchRegistering(_ handle: HandleView) {
    nodes.prefetchIndex(handle)
    if let passed = unsafe passed {
      unsafe hw_prefetch(passed + place(handle.hash(seed: nodes.seed)))
    }
  }

  /// A place in `passed`, always within it.
  private func place(_ hash: UInt64) -> Int { Int(hash & UInt64(Self.passedCount - 1)) }

  // MARK: Routing

  /// Begins to fetch what routing an event about the object will look at: first when
  /// the event is far ahead, then when it is near.
  func prefetch(_ object: HandleView, isNear: Bool) {
    if isNear { nodes.prefetchObject(object) } else { nodes.prefetchIndex(object) }
  }

  func route(_ event: RemoteEvent) {
    let origin = originSession(event.pid)
    if nodeSessions > 0 { routeNodes(event, origin) }
    for scope in scopes { routeTree(event, scope, origin) }
  }

  @inline(__always)
  private func originSession(_ pid: Int32) -> UInt64 {
    if pid == lastPID { return lastOrigin }
    let origin = pid == 0 ? 0 : sessionOfProcess(pid)
    (lastPID, lastOrigin) = (pid, origin)
    return origin
  }

  /// Records have been read.
  func beginBatch() {
    batch += 1
    (lastPID, lastOrigin) = (0, 0)
  }

  /// A process that has ended by now may have done so before these records were queued,
  /// and its id may be another's since.
  private func sessionOfProcess(_ pid: Int32) -> UInt64 {
    guard let origin = origins[pid] else { return 0 }
    if origin.livedAfter != batch {
      for session in origin.sessions where !lives(session.slot) {
        forgetOwnProcess(slot: session.slot)
      }
      origins[pid]?.livedAfter = batch
    }
    return origins[pid]?.sessions.first?.id ?? 0
  }

  private enum Role { case directory, object, newDirectory }

  private func routeNodes(_ event: RemoteEvent, _ origin: UInt64) {
    stamp += 1
    touchedCount = 0
    if let directory = event.directory, !event.isUnnamed { mark(directory, .directory) }
    if let object = event.object { mark(object, .object) }
    if let directory = event.newDirectory { mark(directory, .newDirectory) }
    for index in 0..<touchedCount {
      let slot = unsafe touched[index]
      guard let state = unsafe states[Int(slot)] else { continue }
      unsafe deliver(event, origin, to: state, slot)
    }
  }

  /// Notes, in each session that has registered the object, which part it has.
  @inline(__always)
  private func mark(_ handle: HandleView, _ role: Role) {
    let hash = handle.hash(seed: nodes.seed)
    var index = nodes.firstRegistration(of: handle, hash: hash)
    if role == .object, let passed = unsafe passed { unsafe passed[place(hash)] = max(1, now) }
    while index != 0 {
      let entry = nodes.registration(index)
      if !entry.isDead, let state = unsafe states[Int(entry.session)] {
        if unsafe state.pointee.stamp != stamp {
          unsafe state.pointee.stamp = stamp
          unsafe (state.pointee.directory, state.pointee.object) = (0, 0)
          unsafe state.pointee.newDirectory = 0
          // The stamp lets each slot in once, and there is room for all.
          unsafe touched[touchedCount] = entry.session
          touchedCount += 1
        }
        switch role {
        case .directory: unsafe state.pointee.directory = index
        case .object: unsafe state.pointee.object = index
        case .newDirectory: unsafe state.pointee.newDirectory = index
        }
      }
      index = entry.next
    }
  }

  private func deliver(
    _ event: RemoteEvent, _ origin: UInt64, to state: UnsafeMutablePointer<SessionState>,
    _ slot: UInt32
  ) {
    let (directory, object) = unsafe (state.pointee.directory, state.pointee.object)
    let newDirectory = unsafe state.pointee.newDirectory
    var record = OutgoingRecord(mask: event.mask, flags: event.flags)
    var interest: UInt32 = 0
    if directory != 0 {
      let entry = nodes.registration(directory)
      interest |= entry.interest
      record.directory = entry.id.value
      record.name = event.name
    }
    if object != 0 {
      let entry = nodes.registration(object)
      interest |= entry.interest
      record.node = entry.id.value
    }
    if newDirectory != 0 {
      let entry = nodes.registration(newDirectory)
      interest |= entry.interest
      record.newDirectory = entry.id.value
      record.newName = event.newName
    }
    if event.mask.contains(.rename) {
      if directory == 0 { record.flags |= UInt32(HW_MOVED_IN) }
      if newDirectory == 0 { record.flags |= UInt32(HW_MOVED_OUT) }
    }
    let sent = unsafe send(
      &record, event, origin, EventMask(rawValue: UInt64(interest)), to: state, slot)
    if sent.contains(.deleteSelf) && object != 0 { nodes.markDead(object) }
  }

  /// Cuts the mask, leaves out echoes, queues what is left, and returns what was queued.
  @inline(__always)
  @discardableResult
  private func send(
    _ record: inout OutgoingRecord, _ event: RemoteEvent, _ origin: UInt64, _ interest: EventMask,
    path: [UInt8]? = nil, newPath: [UInt8]? = nil,
    to state: UnsafeMutablePointer<SessionState>, _ slot: UInt32
  ) -> EventMask {
    if record.flags & UInt32(HW_RECHECK) == 0 {
      let wanted = unsafe event.mask.intersection(interest).intersection(state.pointee.events)
      guard !wanted.isEmpty else { return [] }
      record.mask = wanted.union(event.mask.intersection(.isDirectory))
    }
    if unsafe state.pointee.has(UInt32(HW_SUPPRESS_ECHO)), event.pid != 0,
      unsafe event.pid == state.pointee.ownPID
    {
      return []
    }
    record.origin = origin
    record.pid = unsafe state.pointee.has(UInt32(HW_WANT_PID)) ? event.pid : 0
    if unsafe state.pointee.queue.isEmpty { ready.append(slot) }
    let wasLosing = unsafe state.pointee.isLosing
    guard unsafe RecordEncoder.write(record, path: path, newPath: newPath, to: &state.pointee)
    else {
      if !wasLosing { losing.append(slot) }
      return []
    }
    delivered += 1
    return record.mask
  }

  /// Tells one NODES session to look at one of its nodes again, or that it is
  /// gone.
  func tell(
    _ mask: EventMask, flags: UInt32, registration index: UInt32, slot: UInt32
  ) -> Bool {
    guard let state = unsafe states[Int(slot)] else { return false }
    let entry = nodes.registration(index)
    if flags & UInt32(HW_RECHECK) == 0 {
      let interest = EventMask(rawValue: UInt64(entry.interest))
      guard unsafe !mask.intersection(interest).intersection(state.pointee.events).isEmpty else {
        return true
      }
    }
    if unsafe state.pointee.queue.isEmpty { ready.append(slot) }
    let wasLosing = unsafe state.pointee.isLosing
    let written = unsafe RecordEncoder.write(
      OutgoingRecord(mask: mask, flags: flags, node: entry.id.value), to: &state.pointee)
    if written { delivered += 1 } else if !wasLosing { losing.append(slot) }
    if written && mask.contains(.deleteSelf) { nodes.markDead(index) }
    if entry.owesRecheck == written && flags & UInt32(HW_RECHECK) != 0 {
      nodes.setOwesRecheck(index, !written)
    }
    return written
  }

  // MARK: TREE

  private func routeTree(_ event: RemoteEvent, _ scope: TreeScope, _ origin: UInt64) {
    if event.flags & UInt32(HW_RECHECK) != 0 { return recheckTree(event, scope) }
    // It may move places in the index, so not while one of this event's is known.
    if scope.doubtful.count >= Self.doubtfulLimit { settleDoubts(scope) }
    guard let directory = event.directory else { return }
    let from = scope.index.locate(directory)
    var to: UInt32 = 0
    if let newDirectory = event.newDirectory { to = scope.index.locate(newDirectory) }
    follow(event, scope, from, to)
    guard from != 0 || to != 0, let object = event.object, let node = scope.identity(object) else {
      return
    }
    var record = OutgoingRecord(mask: event.mask, flags: event.flags, node: node)
    // Of a directory that has no identity nothing can be told, as of such an object.
    if from != 0 {
      guard let identity = scope.identity(directory) else { return }
      record.directory = identity
      record.name = event.name
    }
    if to != 0, let newDirectory = event.newDirectory {
      guard let identity = scope.identity(newDirectory) else { return }
      record.newDirectory = identity
      record.newName = event.newName
    }
    if event.mask.contains(.rename) {
      if from == 0 { record.flags |= UInt32(HW_MOVED_IN) }
      if to == 0 { record.flags |= UInt32(HW_MOVED_OUT) }
    }
    var hasPaths = false
    for slot in scope.sessions {
      guard let state = unsafe states[Int(slot)] else { continue }
      if unsafe state.pointee.has(UInt32(HW_WANT_PATH)) {
        if !hasPaths {
          putPath(of: from, &scope.index, into: &scope.path)
          putPath(of: to, &scope.index, into: &scope.newPath)
          hasPaths = true
        }
        unsafe send(
          &record, event, origin, .allEvents, path: scope.path, newPath: scope.newPath, to: state,
          slot)
      } else {
        unsafe send(&record, event, origin, .allEvents, to: state, slot)
      }
    }
    if event.isDirectory && event.mask.contains(.deleteSelf) { scope.index.forget(object) }
  }

  /// Longest path that is sent (PATH_MAX less its NUL).
  static let maximalPath = 4095

  /// The path of a directory, or nothing where it is too long or not known.
  private func putPath(
    of directory: UInt32, _ index: inout DirectoryIndex, into path: inout [UInt8]
  ) {
    path.removeAll(keepingCapacity: true)
    guard directory != 0 else { return }
    if !index.appendPath(of: directory, to: &path) || path.count > Self.maximalPath {
      path.removeAll(keepingCapacity: true)
    }
  }

  /// Keeps the directory index up with what happened to a directory.
  private func follow(_ event: RemoteEvent, _ scope: TreeScope, _ from: UInt32, _ to: UInt32) {
    guard event.isDirectory, let object = event.object else { return }
    let corrected = event.flags & UInt32(HW_CORRECTED) != 0
    if event.mask.contains(.rename) {
      if from != 0 && scope.index.isFresh(from) {
        scope.doubtful.append((FileHandle(object), now))
      }
      if to != 0 {
        scope.index.place(object, in: to, name: event.newName, movedIn: from == 0 || corrected)
      } else {
        scope.index.placeOutside(object)
      }
      if to != 0, let victim = event.replaced { scope.index.note(victim, in: to) }
    } else if event.mask.contains(.create) {
      if from != 0 {
        scope.index.place(object, in: from, name: event.name, movedIn: corrected)
      } else if corrected {
        // Its last record may have been another move, into the share.
        scope.index.placeOutside(object)
      }
    } else if event.mask.contains(.delete) {
      if corrected {
        scope.index.forget(object)
      } else if from != 0 {
        scope.index.note(object, in: from)
      }
    }
  }

  /// Ends a window of the kernel's queue in which `directoryRenames`
  /// directories were renamed.
  ///
  /// A directory may have been moved from one that only now is inside, which
  /// the record could not say if the filesystem was asked about that one
  /// after the fact. Where another move can have been the reason, the
  /// sessions are told to read the moved directory.
  func endWindow(directoryRenames: Int) {
    for scope in scopes {
      defer { scope.index.window += 1 }
      guard !scope.doubtful.isEmpty else { continue }
      let doubtful = scope.doubtful
      scope.doubtful.removeAll()
      for (handle, since) in doubtful {
        let inThisWindow = since == now
        if directoryRenames > (inThisWindow ? 1 : 0) {
          recheck(handle, scope)
        } else if now &- since < Self.doubtMilliseconds {
          scope.doubtful.append((handle, since))
        }
      }
    }
  }

  /// So many directories in doubt wait for a window's end; then they are told at once.
  private static let doubtfulLimit = 1024

  private func settleDoubts(_ scope: TreeScope) {
    for (handle, _) in scope.doubtful { recheck(handle, scope) }
    scope.doubtful.removeAll(keepingCapacity: true)
  }

  private func recheck(_ handle: FileHandle, _ scope: TreeScope) {
    handle.withView { view in
      recheckTree(
        RemoteEvent(mask: .isDirectory, flags: UInt32(HW_RECHECK), object: view), scope)
    }
  }

  /// A rename can be seen that much before its record is queued, at most.
  private static let doubtMilliseconds: UInt32 = 10

  /// A directory's removal, seen before the records are routed: what was below
  /// it cannot be asked of the filesystem any more, so it is entered from the
  /// record of its end.
  func anticipate(removalOf object: HandleView, from directory: HandleView) {
    for scope in scopes where scope.index.known(object) == 0 {
      let parent = scope.index.locate(directory)
      if parent != 0 { scope.index.note(object, in: parent) }
    }
  }

  private func recheckTree(_ event: RemoteEvent, _ scope: TreeScope) {
    guard event.isDirectory, let object = event.object, scope.index.locate(object) != 0,
      let node = scope.identity(object)
    else { return }
    var record = OutgoingRecord(mask: event.mask, flags: event.flags, node: node)
    for slot in scope.sessions {
      guard let state = unsafe states[Int(slot)] else { continue }
      unsafe send(&record, event, 0, .allEvents, to: state, slot)
    }
  }
}
