import CFanotify
import CHostWatch
import Glibc

/// A refused INIT: the errno and the sentence that goes with it.
struct Refusal: Error {
  let code: Int32
  let text: String
  init(_ code: Int32, _ text: String) {
    self.code = code
    self.text = text
  }
}

extension Session {
  /// Grants or refuses INIT. A refused one may be repeated.
  func initialize(_ value: Request.Initialize, unique: UInt64, _ descriptors: DescriptorList) {
    do throws(Refusal) {
      guard !isAttached else {
        throw Refusal(EINVAL, "This session has been started already; open another connection.")
      }
      try hub.checkSessionLimits(self)
      let ownPID = try echoPID(value)
      let target = try findRoot(value, descriptors)
      try attach(value, target, ownPID, unique: unique)
    } catch {
      refuse(error, share: value.share, unique: unique)
    }
  }

  /// Answers INIT with an error.
  func refuse(_ refusal: Refusal, share: String?, unique: UInt64) {
    hub.report(
      Diagnostic(
        .sessionRefused, .notice, "A client was refused: \(refusal.text)", session: id,
        share: share, peer: peer, errno: refusal.code))
    reply(ReplyBuilder.error(refusal.code, refusal.text, type: UInt16(HW_INIT), unique: unique))
  }

  /// Where a session's root is, found and allowed.
  struct Target {
    var filesystem: WatchedFilesystem
    var handle: FileHandle
    var path: String
    var share: ShareConfiguration?
    /// A descriptor of the root, open during INIT.
    var descriptor: Int32
    /// Owns `descriptor` when it was opened here.
    var opened: DescriptorList?
  }

  private func findRoot(_ value: Request.Initialize, _ descriptors: DescriptorList)
    throws(Refusal) -> Target
  {
    if let name = value.share { return try findShare(name) }
    guard let descriptor = descriptors.numbers.first else {
      throw Refusal(EINVAL, "INIT names no share and carries no descriptor.")
    }
    if UInt32(value.mode) == HW_MODE_TREE && !isPrivileged {
      throw Refusal(
        EPERM,
        "TREE by descriptor is for uid 0; ask for a share that the configuration allows you.")
    }
    let status: Syscall.Status
    do throws(SystemError) {
      if !isPrivileged { try Self.checkReadAccess(descriptor) }
      status = try Syscall.status(of: descriptor)
      guard status.isDirectory else { throw SystemError("INIT", ENOTDIR) }
    } catch {
      throw Refusal(error.code, rootAdvice(error))
    }
    try hub.checkFilesystemLimit(self, device: status.device)
    let filesystem = try hub.filesystem(for: descriptor)
    do throws(SystemError) {
      let handle = try Syscall.handle(of: descriptor)
      return Target(
        filesystem: filesystem, handle: handle, path: hub.path(of: descriptor), share: nil,
        descriptor: descriptor, opened: nil)
    } catch {
      hub.releaseIfUnused(filesystem)
      throw Refusal(error.code, "The root has no file handle: \(error).")
    }
  }

  private func rootAdvice(_ error: SystemError) -> String {
    switch error.code {
    case EACCES: "The root's descriptor must be open for reading; only uid 0 may pass another."
    case ENOTDIR: "The descriptor is not of a directory."
    default: "The root cannot be looked at: \(error)."
    }
  }

  private func findShare(_ name: String) throws(Refusal) -> Target {
    guard let share = hub.share(named: name) else {
      throw Refusal(
        ENOENT, "No share of that name is configured; see [[share]] in the configuration.")
    }
    guard isAllowed(share.configuration) else {
      throw Refusal(
        EACCES,
        "The share does not allow uid \(peer.uid); add it to allow-users or a group of it to allow-groups."
      )
    }
    return try hub.open(share)
  }

  func isAllowed(_ share: ShareConfiguration) -> Bool {
    if isPrivileged || share.allowedUsers.contains(peer.uid) { return true }
    return share.allowedGroups.contains(peer.gid)
      || peer.groups.contains { share.allowedGroups.contains($0) }
  }

  private func echoPID(_ value: Request.Initialize) throws(Refusal) -> Int32 {
    guard value.echoPID != 0 else { return peer.pid }
    let none = Refusal(ESRCH, "echo_pid names no process.")
    guard let pid = Int32(exactly: value.echoPID) else { throw none }
    let owner: UInt32
    do throws(SystemError) {
      owner = try Syscall.owner(ofProcess: pid)
    } catch {
      if error.code == ENOENT || error.code == ESRCH { throw none }
      throw Refusal(error.code, "It is not known whose process echo_pid is: \(error).")
    }
    guard isPrivileged || owner == peer.uid else {
      throw Refusal(EPERM, "echo_pid names a process of another user.")
    }
    return pid
  }

  private func attach(
    _ value: Request.Initialize, _ target: Target, _ ownPID: Int32, unique: UInt64
  ) throws(Refusal) {
    let filesystem = target.filesystem
    do throws(Refusal) {
      let process = try openOwnProcess(ownPID)
      let scope = try makeScope(value, target)
      try enter(value, target, ownPID, scope)
      if let process { watchOwnProcess(process) }
      if hasLostProcess { filesystem.router.forgetOwnProcess(slot: slot) }
    } catch {
      hub.releaseIfUnused(filesystem)
      throw error
    }
    hub.started(self)
    reply(ReplyBuilder.initialized(grant(), unique: unique))
    // Among the records that it is told there may be holes until then.
    if filesystem.gapEnd != nil { lose(UInt32(HW_LOST_KERNEL), since: filesystem.lastEmpty) }
  }

  private func makeScope(_ value: Request.Initialize, _ target: Target) throws(Refusal)
    -> TreeScope?
  {
    guard UInt32(value.mode) == HW_MODE_TREE else { return nil }
    guard let layout = InodeLayout(magic: target.filesystem.magic),
      target.handle.withView({ layout.identity(in: $0) }) != nil
    else {
      throw Refusal(
        EOPNOTSUPP,
        "TREE needs inode numbers from file handles, which are not known for \(target.filesystem.name); NODES works there."
      )
    }
    if let existing = target.filesystem.router.scopes.first(where: { $0.root == target.handle }) {
      return existing
    }
    do throws(SystemError) {
      return TreeScope(
        root: target.handle, layout: layout, mount: try DetachedMount(cloning: target.descriptor),
        seed: target.filesystem.router.nodes.seed)
    } catch {
      throw Refusal(
        error.code,
        "The root's mount cannot be cloned: \(error); TREE needs a directory in the daemon's mount namespace."
      )
    }
  }

  private func enter(
    _ value: Request.Initialize, _ target: Target, _ ownPID: Int32, _ scope: TreeScope?
  ) throws(Refusal) {
    let limits = hub.limits
    var options = value.options
    if !isPrivileged { options &= ~UInt32(HW_WANT_PID) }
    if scope == nil {
      options &= ~UInt32(HW_WANT_PATH)
    } else {
      options &= ~UInt32(HW_EXPLICIT_INTEREST)
    }
    let events = value.events.intersection(.allEvents)
      .intersection(target.share?.events ?? .allEvents)
    let smallest = options & UInt32(HW_WANT_PATH) != 0 ? HW_PACKET_MIN_WITH_PATH : HW_PACKET_MIN
    let wanted = value.maxPacket == 0 ? HW_PACKET_DEFAULT : value.maxPacket
    let maxPacket = min(max(wanted, smallest), HW_PACKET_MAX)
    let queueWanted = value.queueLimit == 0 ? limits.queuePerSession : Int(value.queueLimit)
    let queueLimit = min(
      max(queueWanted, Int(HW_QUEUE_MIN)), max(limits.queuePerSession, Int(HW_QUEUE_MIN)))
    unsafe state.pointee = SessionState(
      id: id, isTree: scope != nil, events: events, options: options, ownPID: ownPID,
      queue: PacketQueue(
        limit: queueLimit, maxPacket: Int(maxPacket), userQueued: user.queued,
        userLimit: isPrivileged ? Int.max : limits.queuePerUser))
    maxDelayMicroseconds = min(value.maxDelayMicroseconds, limits.maxDelayMicroseconds)
    maxNodes = isPrivileged ? limits.nodesPerSession : limits.nodesPerSessionUnprivileged
    (share, path, self.scope) = (target.share?.name, target.path, scope)
    do throws(SystemError) {
      slot = try unsafe target.filesystem.add(self, state: state, scope: scope)
    } catch {
      self.scope = nil
      throw Refusal(error.code, "The filesystem's mark could not be widened: \(error).")
    }
    filesystem = target.filesystem
    if scope == nil { registerRoot(target) }
  }

  /// The root is registered from the start.
  private func registerRoot(_ target: Target) {
    let nodes = target.filesystem.router.nodes.seed
    identities = IdentityIndex(seed: nodes)
    let interest: EventMask =
      unsafe state.pointee.has(UInt32(HW_EXPLICIT_INTEREST)) ? [] : state.pointee.events
    rootRegistration = target.filesystem.router.nodes.insert(
      target.handle, id: .root, session: slot, interest: interest)
    identities.insert(.root, rootRegistration)
  }

  private func grant() -> hw_init_reply {
    var body = hw_init_reply()
    body.major = UInt16(HW_PROTOCOL_MAJOR)
    body.minor = UInt16(HW_PROTOCOL_MINOR)
    unsafe body.options = state.pointee.options
    unsafe body.events = state.pointee.events.rawValue
    body.session = id
    body.root_nodeid = NodeID.root.nodeid
    body.root_generation = NodeID.root.generation
    unsafe body.max_packet = UInt32(state.pointee.queue.maxPacket)
    unsafe body.queue_limit = UInt32(state.pointee.queue.limit)
    body.max_nodes = isTree ? 0 : UInt32(clamping: maxNodes)
    return body
  }
}
