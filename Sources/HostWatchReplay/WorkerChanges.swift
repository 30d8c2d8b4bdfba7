import CReplay
import Glibc
import HostWatch

/// What happens to an object under its names: MODIFY, ATTRIB, CLOSE_WRITE, ACCESS
/// and its end.
extension Worker {
  func change(_ record: Record) throws(SystemError) {
    if record.isOfObjectAlone { return try changeAlone(record) }
    if record.name.isEmpty { return try changeDirectory(record) }
    guard let place = record.source, mount.isKnown(place.directory) else {
      skip(record)
      return mount.invalidateNode(record.node, contents: true)
    }
    let present = mount.entry(place)
    let child: NodeID
    if record.node == .none, let present, mount.retain(present) {
      // What watchers were told has the name is what they are told of.
      child = present
    } else {
      child = try subject(of: record, at: place, kind: kind(record))
    }
    defer { mount.release(child) }
    if held[child] != nil {
      try touch(child, place, fold(record), held: true)
    } else if present == nil || present == child {
      try touch(child, place, fold(record), held: false)
    } else {
      // The name is another object's by now.
      engine.count(\.superseded)
      mount.invalidateNode(child, contents: true)
    }
  }

  /// Without a directory: a link count, an end, or what was opened by handle.
  private func changeAlone(_ record: Record) throws(SystemError) {
    let node = record.node
    guard mount.isKnown(node) else { return skip(record) }
    mount.invalidateNode(node, contents: !record.mask.isDisjoint(with: [.modify, .closeWrite]))
    if record.mask.contains(.deleteSelf) {
      end(node)
    } else if record.mask.contains(.attrib), !isToldByNext(node) {
      try tellLinkCount(node)
    }
  }

  /// Whether the link count is that of a CREATE or DELETE which follows: to do
  /// that raises IN_ATTRIB, too.
  private func isToldByNext(_ node: NodeID) -> Bool {
    let deadline = monotonicNanoseconds() + Self.pairingNanoseconds
    let next: Record? =
      engine.queue.wait(until: deadline) { queue -> Record?? in
        let found = queue.first(within: 3) {
          $0.node == node && !$0.mask.isDisjoint(with: [.create, .delete])
        }
        if let found { return .some(found) }
        return queue.isClosed || queue.count >= 3 ? .some(nil) : nil
      } ?? nil
    guard let place = next?.source else { return false }
    return mount.isKnown(place.directory)
  }

  /// DELETE_SELF: nobody on the host has the object any more.
  func end(_ node: NodeID) {
    mount.closeCached(node)
    if held.removeValue(forKey: node) != nil {
      let request = request(REPLAY_RELEASE, Place(.none, []), object: node)
      _ = call(request, Place(.none, []), Place(.none, []))
      engine.count(\.replayed)
    } else if ended.remove(node) == nil,
      engine.queue.withLock({ $0.pendingDeletions(of: node) }) == 0
    {
      bury(node)
    }
  }

  /// On a directory itself: told to its watchers and to its parent's.
  private func changeDirectory(_ record: Record) throws(SystemError) {
    let node = record.node
    guard mount.isKnown(node), mount.retain(node) else { return skip(record) }
    defer { mount.release(node) }
    if record.mask.contains(.deleteSelf) { return end(node) }
    let place = mount.places(of: node).first {
      mount.isKnown($0.directory) && $0.directory != engine.orphanage
    }
    try touch(node, place, record.mask, held: false)
  }

  /// A CLOSE_WRITE that follows a MODIFY at once is the same writer's; natively
  /// its OPEN came before both.
  private func fold(_ record: Record) -> EventMask {
    var mask = record.mask
    guard mask.contains(.modify), !mask.contains(.closeWrite), !mask.contains(.isDirectory) else {
      return mask
    }
    let deadline = monotonicNanoseconds() + Self.pairingNanoseconds
    func isSameName(_ other: Record) -> Bool {
      other.source == record.source && (other.node == record.node || record.node == .none)
        && other.mask.contains(.closeWrite)
        && other.mask.isDisjoint(with: [.create, .delete, .rename])
    }
    let closing: Record? =
      engine.queue.wait(until: deadline) { queue -> Record?? in
        if let found = queue.take(within: 1, where: isSameName) { return .some(found) }
        return queue.isClosed || queue.first != nil ? .some(nil) : nil
      } ?? nil
    if let closing { mask.formUnion(closing.mask) }
    return mask
  }

  /// Raises what the mask says under the name; without a name, of a directory
  /// itself.
  private func touch(
    _ child: NodeID, _ place: Place?, _ mask: EventMask, held: Bool
  ) throws(SystemError) {
    let writes: EventMask = [.modify, .closeWrite]
    var mask = mask
    if let kind = mount.kind(of: child), ![S_IFREG, S_IFDIR, S_IFLNK].contains(kind) {
      // What flows through a fifo of the host's does not flow through the mount's;
      // its times change all the same.
      mask.formIntersection(.attrib)
      if mask.isEmpty {
        mount.invalidateNode(child, contents: false)
        return engine.count(\.skipped)
      }
    }
    mount.invalidateNode(child, contents: !mask.isDisjoint(with: writes))
    let status = try mount.status(of: child)
    var outcome = Outcome.done
    func raise(_ operation: replay_operation, _ flags: UInt32) {
      guard outcome == .done else { return }
      outcome = self.raise(operation, flags, child, place, status, held)
    }
    if mask.contains(.attrib) { raise(REPLAY_TOUCH, REPLAY_MTIME | REPLAY_ATIME) }
    if mask.contains(.closeWrite), mayBeOpened(child, status) {
      raise(REPLAY_CLOSE_WRITE, mask.contains(.modify) ? REPLAY_MTIME : 0)
    } else if mask.contains(.modify) {
      raise(REPLAY_TOUCH, REPLAY_MTIME)
    }
    if mask.contains(.access) { raise(REPLAY_TOUCH, REPLAY_ATIME) }
    switch outcome {
    case .done:
      engine.count(\.replayed)
    case .refused:
      engine.count(\.superseded)
    case .failed(let number):
      engine.count(\.invalidated)
      mount.replayFailed("change", place, errno: number)
    }
  }

  private func raise(
    _ operation: replay_operation, _ flags: UInt32, _ child: NodeID, _ place: Place?,
    _ status: ObjectStatus?, _ held: Bool
  ) -> Outcome {
    let at = place ?? Place(child, [])
    var flags = flags
    if held { flags |= REPLAY_HELD }
    if place == nil { flags |= REPLAY_SELF }
    var request = request(operation, at, flags: flags, object: child)
    if let status {
      request.atime_seconds = status.accessed.seconds
      request.atime_nanoseconds = status.accessed.nanoseconds
      request.mtime_seconds = status.modified.seconds
      request.mtime_nanoseconds = status.modified.nanoseconds
    }
    let ticket = Ticket(
      operation: operation == REPLAY_CLOSE_WRITE ? .closeWrite : .touch, place: at, child: child)
    let outcome = perform(ticket, request)
    if outcome == .failed(EBUSY) || outcome == .failed(ETXTBSY) {
      // Another object has the name by now, or somebody executes this one.
      return .refused
    }
    guard case .failed(let number) = outcome, let place, !held,
      [ENOENT, ENOTDIR, ELOOP, ESTALE].contains(number)
    else { return outcome }
    mount.invalidateEntry(place)
    return perform(ticket, request)
  }

  /// To open a file for writing keeps it from being executed at that moment, so
  /// nobody's program is.
  private func mayBeOpened(_ child: NodeID, _ status: ObjectStatus?) -> Bool {
    guard mount.kind(of: child) == S_IFREG else { return false }
    return (status?.mode ?? 0) & 0o111 == 0
  }
}
