import CFanotify
import CHostWatch
import Glibc

extension Session {
  /// What the next process needs to know of the session, and its descriptors.
  func handOver(
    _ descriptors: inout [Int32], filesystem index: UInt32?, scope scopeIndex: UInt32?
  ) -> HandOverState.Session {
    var value = HandOverState.Session()
    value.id = id
    value.socket = descriptors.index(of: socket.rawValue)
    socket.isHandedOver = true
    (value.pid, value.uid, value.gid) = (peer.pid, peer.uid, peer.gid)
    for packet in early {
      value.packets.append(contentsOf: packet)
      value.packets.append(contentsOf: [UInt8](repeating: 0, count: -packet.count & 7))
    }
    value.packets.append(contentsOf: unsafe state.pointee.queue.contents())
    value.stage = isClosing ? .closing : .connected
    if !isClosing, let filesystem, let index {
      value.stage = .attached
      value.attachment = attachment(filesystem, index, scopeIndex, &descriptors)
    }
    return value
  }

  private func attachment(
    _ filesystem: WatchedFilesystem, _ index: UInt32, _ scopeIndex: UInt32?,
    _ descriptors: inout [Int32]
  ) -> HandOverState.Attachment {
    let memory = unsafe state.pointee
    var value = HandOverState.Attachment()
    (value.filesystem, value.scope) = (index, scopeIndex)
    (value.share, value.path) = (share, path)
    (value.events, value.options) = (memory.events.rawValue, memory.options)
    value.ownPID = max(0, memory.ownPID)
    if let pidfd = ownProcess?.pidfd.numbers.first {
      value.ownProcess = descriptors.index(of: pidfd)
    }
    value.queueLimit = UInt64(memory.queue.limit)
    value.maxPacket = UInt32(memory.queue.maxPacket)
    value.maxNodes = UInt32(clamping: maxNodes)
    value.maxDelayMicroseconds = maxDelayMicroseconds
    (value.sequence, value.dropped, value.bytes) = (
      memory.sequence, memory.dropped, memory.bytes
    )
    value.lostCount = lostCount
    (value.isLosing, value.losingSince) = (memory.isLosing, losingSince)
    if let resync {
      value.resync = HandOverState.ResyncState(
        since: resync.since, checked: resync.checked, reported: resync.reported)
    }
    value.syncs = pendingSyncs.map(\.unique)
    if scope == nil { value.registrations = registrations(filesystem) }
    return value
  }

  private func registrations(_ filesystem: WatchedFilesystem) -> PackedRegistrations {
    let unchecked = Set(resync?.unchecked ?? [])
    var packed = PackedRegistrations()
    packed.reserve(identities.count)
    identities.visit { index in
      let entry = filesystem.router.nodes.registration(index)
      var flags: UInt8 = entry.isDead ? PackedRegistrations.dead : 0
      if unchecked.contains(index) { flags |= PackedRegistrations.unchecked }
      if entry.owesRecheck { flags |= PackedRegistrations.owesRecheck }
      filesystem.router.nodes.handle(of: index).withView {
        packed.append(
          entry.id.value, interest: entry.interest & ~NodeTable.stateBits, flags: flags, $0)
      }
    }
    return packed
  }

  /// Goes on with a session that an earlier process had, but for its place in the
  /// loop. Throws when the state contradicts itself; then the session has to end.
  func takeUp(
    _ value: HandOverState.Session, _ filesystem: WatchedFilesystem?, _ scope: TreeScope?,
    _ descriptors: HandedDescriptors
  ) throws(HandOverError) {
    guard let attachment = value.attachment else {
      early = Self.packets(in: value.packets)
      isClosing = value.stage == .closing
      return
    }
    guard let filesystem, attachment.scope == nil || scope != nil else {
      throw HandOverError("its filesystem could not be taken up")
    }
    unsafe state.pointee = memory(attachment, isTree: scope != nil)
    for packet in Self.packets(in: value.packets) {
      let fits = unsafe packet.withUnsafeBytes { unsafe state.pointee.queue.append($0) }
      guard fits else { throw HandOverError("its queue does not fit") }
    }
    (share, path, self.scope) = (attachment.share, attachment.path, scope)
    maxNodes = Int(attachment.maxNodes)
    maxDelayMicroseconds = attachment.maxDelayMicroseconds
    (lostCount, losingSince) = (attachment.lostCount, attachment.losingSince)
    slot = unsafe filesystem.takeUp(self, state: state, scope: scope)
    self.filesystem = filesystem
    let unchecked = scope == nil ? try takeUp(attachment.registrations, in: filesystem) : []
    if let resync = attachment.resync { self.resync = Resync(unchecked, takingUp: resync) }
    // All that had been read has been said: they wait for a resync alone.
    pendingSyncs = attachment.syncs.map { ($0, 0) }
    if !pendingSyncs.isEmpty { filesystem.syncing.append(self) }
    hasLostProcess = attachment.ownPID == 0
    if let pidfd = descriptors.take(attachment.ownProcess) { watchOwnProcess(pidfd) }
  }

  private func memory(_ value: HandOverState.Attachment, isTree: Bool) -> SessionState {
    var memory = unsafe SessionState(
      id: id, isTree: isTree, events: EventMask(rawValue: value.events), options: value.options,
      ownPID: value.ownPID,
      queue: PacketQueue(
        limit: Int(value.queueLimit), maxPacket: Int(value.maxPacket), userQueued: user.queued,
        userLimit: isPrivileged ? Int.max : user.queueLimit))
    (memory.sequence, memory.dropped, memory.bytes) = (value.sequence, value.dropped, value.bytes)
    memory.isLosing = value.isLosing
    return memory
  }

  /// Enters the registrations; those that the resync has not come to yet.
  private func takeUp(_ packed: PackedRegistrations, in filesystem: WatchedFilesystem)
    throws(HandOverError) -> [UInt32]
  {
    let router = filesystem.router
    identities = IdentityIndex(seed: router.nodes.seed)
    var unchecked: [UInt32] = []
    try packed.visit { header, handle throws(HandOverError) in
      let id = NodeID(nodeid: header.nodeid, generation: header.generation)
      let isKnown = handle.withView { router.nodes.registration(of: $0, session: slot) } != 0
      guard !isKnown, identities.find(id, in: router.nodes) == 0 else {
        throw HandOverError("it has an object or an identity twice")
      }
      let index = router.nodes.insert(
        handle, id: id, session: slot, interest: EventMask(rawValue: UInt64(header.interest)))
      identities.insert(id, index)
      if header.flags & PackedRegistrations.dead != 0 { router.nodes.markDead(index) }
      if header.flags & PackedRegistrations.unchecked != 0 { unchecked.append(index) }
      if header.flags & PackedRegistrations.owesRecheck != 0 {
        router.nodes.setOwesRecheck(index, true)
      }
    }
    rootRegistration = identities.find(.root, in: router.nodes)
    guard rootRegistration != 0 else { throw HandOverError("its root is not registered") }
    return unchecked
  }

  /// Whole packets; the decoder has checked that they are.
  private static func packets(in bytes: [UInt8]) -> [[UInt8]] {
    var packets: [[UInt8]] = []
    var offset = 0
    while offset + 4 <= bytes.count {
      let size = Int(
        unsafe bytes.withUnsafeBytes {
          unsafe $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self)
        })
      packets.append(Array(bytes[offset..<(offset + size)]))
      offset += (size + 7) & ~7
    }
    return packets
  }
}
