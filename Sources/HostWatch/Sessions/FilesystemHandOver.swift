import CFanotify
import CHostWatch
import Glibc

extension WatchedFilesystem {
  /// The name of a filesystem's group in the descriptor store. No colon may be
  /// in it.
  static func storeName(_ device: UInt64) -> String {
    "group.\(gnu_dev_major(dev_t(device))).\(gnu_dev_minor(dev_t(device)))"
  }

  /// Reads until nothing that was read is open, so that the next process may begin
  /// with the queue as it then is. When that cannot be had in time,
  /// sessions are told that they lost something.
  func finishForHandOver(deadline: UInt64) {
    drain()
    while reconciler.isOpen, !hasFailed, Syscall.monotonicMicroseconds() < deadline { drain() }
    if reconciler.isOpen || hasFailed {
      for session in Array(sessions.values) {
        session.lose(UInt32(HW_LOST_RESTART), since: lastEmpty)
      }
    }
    flush()
  }

  /// What the next process needs to know of it.
  func handOver(_ descriptors: inout [Int32]) -> HandOverState.Filesystem {
    var state = HandOverState.Filesystem()
    state.device = device
    state.magic = magic
    state.group = isStored ? -1 : descriptors.index(of: group.descriptor.rawValue)
    state.queueLimit = group.queueLimit
    state.mount = descriptors.indices(of: mount)
    state.isInMountTable = isInMountTable
    state.lastEmpty = lastEmpty
    state.isInGap = gapEnd != nil || reconciler.isOpen || hasFailed
    state.counters = HandOverState.Counters(
      records: recordsRead, overflows: overflows, batches: batches,
      largestBatch: UInt64(largestBatch), delivered: router.delivered,
      merged: reconciler.counters.merged, lookups: reconciler.counters.lookups,
      corrected: reconciler.counters.corrected)
    state.deaths = reconciler.held.map {
      HandOverState.Death(
        handle: $0.object, mask: $0.mask.rawValue, pid: $0.pid, since: $0.since)
    }
    for scope in router.scopes {
      var one = HandOverState.Scope(root: scope.root)
      one.mount = descriptors.indices(of: scope.index.mount)
      one.directories = scope.index.handOver()
      one.doubtful = scope.doubtful.map { HandOverState.Doubt(handle: $0.0, since: $0.1) }
      state.scopes.append(one)
    }
    return state
  }

  /// Goes on with a filesystem that an earlier process has watched.
  ///
  /// - Parameter group: the group that was watching it, or nil: then it is marked
  ///   anew, and what happened meanwhile is not known.
  convenience init(
    takingUp state: HandOverState.Filesystem, group: consuming OwnedDescriptor?,
    _ descriptors: HandedDescriptors, report: @escaping (Diagnostic) -> Void
  ) throws {
    let mount = try DetachedMount(takingUp: state.mount, descriptors)
    let magic = try Syscall.filesystemMagic(of: mount.descriptor)
    let used: FanotifyGroup
    if let group {
      used = try FanotifyGroup(
        adopting: group, device: state.device, queueLimit: state.queueLimit)
    } else {
      used = try FanotifyGroup(marking: mount.descriptor)
    }
    guard magic == state.magic, used.device == state.device else {
      throw HandOverError("the mount that was handed over is of another filesystem")
    }
    let knownDevice = try Self.knownDevice(of: mount.descriptor, magic: magic)
    self.init(
      group: used, mount: mount, magic: magic, knownDevice: knownDevice,
      isInMountTable: state.isInMountTable, lastEmpty: state.lastEmpty, report: report)
    let counters = state.counters
    (recordsRead, overflows, batches) = (counters.records, counters.overflows, counters.batches)
    largestBatch = Int(counters.largestBatch)
    router.delivered = counters.delivered
    reconciler.counters = Reconciler.Counters(
      records: counters.records, merged: counters.merged, lookups: counters.lookups,
      corrected: counters.corrected)
    reconciler.held = state.deaths.map {
      Reconciler.HeldDeath(
        object: $0.handle, mask: EventMask(rawValue: $0.mask), pid: $0.pid, since: $0.since)
    }
  }

  /// Adds a session that an earlier process had. The mark stays as it is until all
  /// are there: each that is missing would make it smaller.
  func takeUp(
    _ session: Session, state: UnsafeMutablePointer<SessionState>, scope: TreeScope?
  ) -> UInt32 {
    let slot = unsafe router.add(state, scope: scope)
    sessions[slot] = session
    return slot
  }
}

extension Reconciler {
  /// Records have been read of which not everything has been said.
  var isOpen: Bool { !events.isEmpty }
}

extension DetachedMount {
  init(takingUp mount: HandOverState.Mount, _ descriptors: HandedDescriptors) throws {
    guard let root = descriptors.take(mount.root) else {
      throw HandOverError("a mount's descriptor is missing")
    }
    self.init(tree: descriptors.take(mount.tree), root: root)
  }
}

extension [Int32] {
  /// Adds a descriptor; its index.
  mutating func index(of descriptor: Int32) -> Int32 {
    append(descriptor)
    return Int32(count - 1)
  }

  fileprivate mutating func indices(of mount: borrowing DetachedMount) -> HandOverState.Mount {
    let tree: Int32
    switch mount.tree {
    case .some(let descriptor): tree = index(of: descriptor.rawValue)
    case .none: tree = -1
    }
    return HandOverState.Mount(tree: tree, root: index(of: mount.root.rawValue))
  }
}
