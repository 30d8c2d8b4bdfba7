import CReplay
import Glibc
import HostWatch

/// CREATE and DELETE.
extension Worker {
  /// The node that a record about a name is about; to be released. The name's
  /// further fate says which object it was, if the session did not know it.
  func subject(
    of record: Record, at place: Place, kind: UInt32
  ) throws(SystemError) -> NodeID {
    if record.node != .none, mount.retain(record.node) { return record.node }
    switch engine.queue.withLock({ $0.fate(of: place) }) {
    case .known(let node):
      if mount.retain(node) { return node }
    case .stays(let last):
      if let node = try mount.find(last) {
        var isKept = false
        defer { if !isKept { mount.release(node) } }
        // An object that is told to be elsewhere came here later, by a record
        // that is still to come.
        let places = mount.places(of: node)
        isKept = places.isEmpty || places.contains(last) || places.contains(place)
        if !isKept { isKept = try mount.status(of: node)?.links ?? 0 > 1 }
        if isKept { return node }
      }
    case .gone:
      break
    }
    engine.count(\.phantoms)
    return mount.makePhantom(kind: kind)
  }

  func kind(_ record: Record) -> UInt32 {
    record.mask.contains(.isDirectory) ? S_IFDIR : S_IFREG
  }

  func create(_ record: Record) throws(SystemError) {
    guard let place = record.source, mount.isKnown(place.directory) else {
      return skip(record)
    }
    engine.touch(place, before: nil)
    let child = try subject(of: record, at: place, kind: kind(record))
    defer { mount.release(child) }
    let outcome = ghostCreate(place, child)
    book(outcome == .failed(EEXIST) ? .refused : outcome, "create", place, child)
  }

  /// Not about anything that the kernel has.
  func skip(_ record: Record) {
    engine.count(\.skipped)
    if record.node != .none, mount.isKnown(record.node) {
      mount.invalidateNode(record.node, contents: false)
    }
  }

  func ghostCreate(_ place: Place, _ child: NodeID) -> Outcome {
    let status: ObjectStatus?
    do throws(SystemError) {
      status = try mount.status(of: child)
    } catch {
      return .failed(error.code)
    }
    let kind = mount.kind(of: child) ?? S_IFREG
    let ticket = Ticket(operation: .create, place: place, child: child)
    if kind != S_IFDIR, place.directory != engine.orphanage, mount.isKnown(child),
      mount.places(of: child).contains(where: {
        $0 != place && $0.directory != engine.orphanage
      })
    {
      let outcome = perform(ticket, request(REPLAY_LINK, place, object: child))
      // The kernel has no dentry to link; then nobody watches it either. Or it takes the object
      // for dead (vfs_link), as a client's unlink was answered before it knew of another name.
      if outcome != .failed(ESTALE), outcome != .failed(ENOENT) { return outcome }
    }
    var request = request(REPLAY_CREATE, place, object: child)
    request.mode = kind | 0o600
    if let status, kind == S_IFCHR || kind == S_IFBLK {
      request.device_major = status.deviceMajor
      request.device_minor = status.deviceMinor
    }
    return perform(ticket, request)
  }

  func delete(_ record: Record) throws(SystemError) {
    guard let place = record.source, mount.isKnown(place.directory) else {
      return try lost(record.node, record)
    }
    let present = mount.entry(place)
    var child = record.node
    if child == .none || !mount.retain(child) {
      if let present, mount.retain(present) {
        child = present
      } else {
        engine.count(\.phantoms)
        child = mount.makePhantom(kind: kind(record))
      }
    }
    defer { mount.release(child) }
    // Registered after the record: what is there now is another object.
    if record.node == .none, child == present, try engine.isOnHost(child, place) {
      engine.count(\.superseded)
      // What was removed had a name until then; nobody knows which object.
      return engine.touch(place, before: nil)
    }
    engine.touch(place, before: child)
    guard present == nil || present == child else {
      // Another object has the name by now, and the kernel knows it.
      engine.count(\.superseded)
      return try lost(child, nil)
    }
    if record.node == child { try awaitEnd(of: child) }
    let outcome = ghostRemove(place, child)
    if !book(outcome == .failed(EEXIST) ? .refused : outcome, "delete", place, child) {
      try lost(child, nil)
    }
  }

  /// The object is gone from the host. Whether this was its last name is told by
  /// what comes next of it: its end, or the removal of another name.
  private func awaitEnd(of node: NodeID) throws(SystemError) {
    guard mount.kind(of: node) != S_IFDIR, mount.isKnown(node), try mount.status(of: node) == nil
    else { return }
    // The daemon holds a DELETE_SELF for so long, for the DELETE to come first.
    let deadline = monotonicNanoseconds() + 10 * Self.pairingNanoseconds
    _ = engine.queue.wait(until: deadline) { queue -> Bool? in
      let found = queue.first(within: 8) {
        $0.node == node && !$0.mask.isDisjoint(with: [.delete, .deleteSelf])
      }
      return found != nil || queue.isClosed || queue.count >= 8 ? true : nil
    }
  }

  /// A name of the object went where the kernel knows nothing of it.
  func lost(_ node: NodeID, _ record: Record?) throws(SystemError) {
    if let record { skip(record) }
    guard node != .none, mount.isKnown(node) else { return }
    if try mount.status(of: node)?.links ?? 0 == 0, !hasPendingEnd(node) { bury(node) }
  }

  /// Whether records that end the object are still to be replayed.
  private func hasPendingEnd(_ node: NodeID) -> Bool {
    engine.queue.withLock { $0.pendingDeletions(of: node) > 0 }
  }

  func ghostRemove(_ place: Place, _ child: NodeID) -> Outcome {
    let isDirectory = mount.kind(of: child) == S_IFDIR
    mount.closeCached(child)
    let status: ObjectStatus?
    do throws(SystemError) {
      status = try mount.status(of: child)
    } catch {
      return .failed(error.code)
    }
    var ticket = Ticket(operation: .remove, place: place, child: child)
    var flags: UInt32 = isDirectory ? REPLAY_ISDIR : 0
    var remaining = 0
    if isDirectory {
      // The kernel would take it for dead for ever.
      if status?.links ?? 0 > 0, place.directory != engine.orphanage { return .failed(EEXIST) }
    } else {
      remaining = remainingNames(child, without: place, status)
      // The kernel asks for the count only if it may have another.
      if remaining > 0 || mount.toldLinks(of: child) > 1 { flags |= REPLAY_COUNT }
      ticket.bias[child.nodeid] = remaining + 1 - Int(status?.links ?? 0)
    }
    // Somebody on the host has it open: it is to end when that does.
    if let status, status.links == 0, remaining == 0, place.directory != engine.orphanage {
      flags |= REPLAY_HOLD
    }
    let request = request(REPLAY_UNLINK, place, flags: flags, object: child)
    var outcome = perform(ticket, request)
    if case .failed(let number) = outcome, [ENOENT, ENOTDIR, EISDIR, ESTALE].contains(number) {
      // The kernel had cached something else, or nothing, under the name.
      mount.invalidateEntry(place)
      outcome = perform(ticket, request)
    }
    guard outcome == .done else { return outcome }
    if flags & REPLAY_HOLD != 0 {
      held[child] = monotonicNanoseconds()
    } else if remaining == 0 {
      note(ended: child)
    } else {
      mount.invalidateNode(child, contents: false)
    }
    return .done
  }

  /// How many names watchers are to see the object keep: those the host has,
  /// those they have been told of, and those whose removal is still to be told.
  func remainingNames(_ child: NodeID, without place: Place, _ status: ObjectStatus?) -> Int {
    let told = mount.places(of: child).count {
      $0 != place && $0.directory != engine.orphanage
    }
    let pending = engine.queue.withLock { $0.pendingDeletions(of: child) }
    return max(Int(status?.links ?? 0), told, pending)
  }

  func note(ended node: NodeID) {
    if ended.count >= 65_536 { ended = [] }
    ended.insert(node)
  }

  func orphan(_ node: NodeID) -> Place {
    Place(engine.orphanage, Array("o\(node.nodeid).\(node.generation)".utf8))
  }

  /// Raises IN_ATTRIB and IN_DELETE_SELF of an object whose names watchers
  /// cannot be told of: it is removed from the orphanage.
  func bury(_ node: NodeID) {
    guard !ended.contains(node), held[node] == nil else { return }
    let place = orphan(node)
    if mount.kind(of: node) == S_IFDIR, mount.entry(place) != node {
      guard ghostCreate(place, node) == .done else { return invalidate(nil, node) }
    }
    book(ghostRemove(place, node), "delete-self", nil, node)
  }

  /// Raises IN_ATTRIB of the object alone: its link count has changed, under a
  /// name that the kernel does not know.
  func tellLinkCount(_ node: NodeID) throws(SystemError) {
    guard mount.kind(of: node) != S_IFDIR else { return }
    let place = orphan(node)
    guard let status = try mount.status(of: node), status.links > 0 else {
      return try lost(node, nil)
    }
    var ticket = Ticket(operation: .remove, place: place, child: node)
    ticket.bias[node.nodeid] = 1
    let request = request(
      REPLAY_UNLINK, place, flags: REPLAY_COUNT, object: node)
    book(perform(ticket, request), "attrib", nil, node)
    mount.invalidateNode(node, contents: false)
  }
}
