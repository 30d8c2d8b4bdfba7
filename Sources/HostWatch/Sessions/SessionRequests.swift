import CFanotify
import CHostWatch
import Glibc

extension Session {
  /// Does what a well-formed request asks for and answers it.
  func handle(_ request: Request, type: UInt16, unique: UInt64, _ descriptors: DescriptorList)
    throws(RequestError)
  {
    if case .status(let what) = request {
      guard what == 0 else { throw .invalid("STATUS knows only `what` 0, everything.") }
      return reply(ReplyBuilder.status(hub.statusJSON(for: self), unique: unique))
    }
    if case .initialize(let value) = request {
      return initialize(value, unique: unique, descriptors)
    }
    if case .initializeOther(let major) = request {
      let text = "This daemon speaks version 1 of the protocol, not \(major)."
      return refuse(Refusal(EPROTONOSUPPORT, text), share: nil, unique: unique)
    }
    guard isAttached else {
      throw .malformed("The first message must be INIT; only STATUS may come without it.")
    }
    switch request {
    case .register, .forget, .interest:
      guard !isTree else { throw .invalid("REGISTER, FORGET and INTEREST belong to NODES mode.") }
    default: break
    }
    switch request {
    case .register(let entries): register(entries, unique: unique, descriptors)
    case .forget(let nodes): forget(nodes)
    case .interest(let entries): setInterest(entries, unique: unique)
    case .sync: addSync(unique)
    case .initialize, .initializeOther, .status: break
    }
  }

  // MARK: REGISTER

  private func register(
    _ entries: [Request.Registration], unique: UInt64, _ descriptors: DescriptorList
  ) {
    guard let filesystem else { return }
    var statuses: [Int32] = []
    statuses.reserveCapacity(entries.count)
    var closeAtOnce = true
    var recheck: [(index: UInt32, isDirectory: Bool)] = []
    let now = UInt32(truncatingIfNeeded: Syscall.monotonicMicroseconds() / 1000)
    var group: [Result<(Syscall.Status, FileHandle), SystemError>] = []
    group.reserveCapacity(Self.registeredTogether)
    while statuses.count < entries.count {
      let start = statuses.count
      let end = min(start + Self.registeredTogether, entries.count)
      for index in start..<end {
        group.append(lookAt(entries[index], descriptors.numbers[index], in: filesystem))
      }
      for (entry, look) in zip(entries[start..<end], group) {
        do throws(SystemError) {
          let (status, handle) = try look.get()
          if !filesystem.closesAtOnce(status, isPath: false) { closeAtOnce = false }
          let index = try register(entry, handle, in: filesystem)
          let changed = entry.since != .zero && status.ctime.isLater(than: entry.since)
          let passed = handle.withView { filesystem.router.hasPassed($0, now: now) }
          if changed || passed {
            recheck.append((index, status.isDirectory))
          }
          statuses.append(0)
        } catch {
          closeAtOnce = false
          statuses.append(-error.code)
        }
      }
      group.removeAll(keepingCapacity: true)
    }
    descriptors.closeAtOnce = closeAtOnce
    reply(ReplyBuilder.statuses(statuses, type: HW_REGISTER, unique: unique))
    for (index, isDirectory) in recheck {
      let told = filesystem.router.tell(
        isDirectory ? .isDirectory : [], flags: UInt32(HW_RECHECK), registration: index,
        slot: slot)
      // The resync that follows a full queue says it then, whatever the ctime.
      if !told { noteLoss(since: filesystem.lastEmpty) }
    }
    filesystem.flush()
  }

  /// So many objects are looked at before the first of them is entered: meanwhile
  /// the places in the tables are fetched from memory, which entering would wait for.
  private static let registeredTogether = 16

  /// Looks at one object. The daemon takes the handle from the descriptor
  /// itself; events since then are still in the queue, so nothing is missed
  /// between the look at the object and its registration.
  private func lookAt(
    _ entry: Request.Registration, _ descriptor: Int32, in filesystem: WatchedFilesystem
  ) -> Result<(Syscall.Status, FileHandle), SystemError> {
    do throws(SystemError) {
      guard entry.id.nodeid != 0, entry.hasValidSince else { throw SystemError("REGISTER", EINVAL) }
      identities.prefetch(entry.id)
      if !isPrivileged { try Self.checkReadAccess(descriptor) }
      let status = try Syscall.status(of: descriptor)
      let handle = try Self.handle(of: descriptor, on: filesystem, status)
      handle.withView { filesystem.router.prefetchRegistering($0) }
      return .success((status, handle))
    } catch {
      return .failure(error)
    }
  }

  /// Enters one object; its registration.
  private func register(
    _ entry: Request.Registration, _ handle: FileHandle, in filesystem: WatchedFilesystem
  ) throws(SystemError) -> UInt32 {
    let router = filesystem.router
    let existing = handle.withView { router.nodes.registration(of: $0, session: slot) }
    if existing != 0 && existing == rootRegistration { throw SystemError("REGISTER", EEXIST) }
    guard entry.id.nodeid != NodeID.root.nodeid else { throw SystemError("REGISTER", EINVAL) }
    let named = identities.find(entry.id, in: router.nodes)
    if named != 0 && named != existing { throw SystemError("REGISTER", EEXIST) }
    let interest =
      entry.interest.isEmpty ? defaultInterest : entry.interest.intersection(.allEvents)
    if existing != 0 {
      if named == 0 {
        identities.remove(router.nodes.registration(existing).id.value, existing)
        router.nodes.setID(existing, entry.id)
        identities.insert(entry.id, existing)
      }
      router.nodes.setInterest(existing, interest)
      return existing
    }
    // The root is among the identities and does not count.
    guard identities.count - 1 < maxNodes else { throw SystemError("REGISTER", ENOSPC) }
    let index = router.nodes.insert(handle, id: entry.id, session: slot, interest: interest)
    identities.insert(entry.id, index)
    resync?.add(index, live: identities.count) { [slot] in
      router.nodes.registration($0).session == slot
    }
    return index
  }

  /// What inotify would let a user watch, it may register: what it could open
  /// for reading.
  static func checkReadAccess(_ descriptor: Int32) throws(SystemError) {
    let flags = try checked(hw_status_flags(descriptor), "fcntl(F_GETFL)")
    let access = flags & O_ACCMODE
    guard flags & O_PATH == 0, access == O_RDONLY || access == O_RDWR else {
      throw SystemError("REGISTER", EACCES)
    }
  }

  private static func handle(
    of descriptor: Int32, on filesystem: WatchedFilesystem, _ status: Syscall.Status
  ) throws(SystemError) -> FileHandle {
    do throws(SystemError) {
      let handle = try Syscall.handle(of: descriptor)
      guard try filesystem.holds(device: status.device, handle: handle) else {
        throw SystemError("REGISTER", EXDEV)
      }
      guard handle.raw.type >= 0, handle.raw.type <= 0xffff else {
        throw SystemError("REGISTER", EOPNOTSUPP)
      }
      return handle
    } catch {
      if error.code == EOVERFLOW { throw SystemError("REGISTER", EOPNOTSUPP) }
      if error.code == EOPNOTSUPP && !filesystem.knows(device: status.device) {
        throw SystemError("REGISTER", EXDEV)
      }
      throw error
    }
  }

  /// The mask of a node that did not ask for one.
  private var defaultInterest: EventMask {
    unsafe state.pointee.has(UInt32(HW_EXPLICIT_INTEREST)) ? [] : state.pointee.events
  }

  // MARK: FORGET and INTEREST

  private func forget(_ nodes: [NodeID]) {
    guard let filesystem else { return }
    for id in nodes {
      let index = identities.find(id, in: filesystem.router.nodes)
      guard index != 0, index != rootRegistration else { continue }
      identities.remove(id, index)
      filesystem.router.nodes.remove(index)
    }
  }

  private func setInterest(_ entries: [Request.Interest], unique: UInt64) {
    guard let filesystem else { return }
    let statuses = entries.map { entry -> Int32 in
      let index = identities.find(entry.id, in: filesystem.router.nodes)
      guard index != 0 else { return -ENOENT }
      filesystem.router.nodes.setInterest(index, entry.mask.intersection(.allEvents))
      return 0
    }
    reply(ReplyBuilder.statuses(statuses, type: HW_INTEREST, unique: unique))
  }
}
