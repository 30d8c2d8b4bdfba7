import CReplay
import Glibc
import HostWatch

/// RENAME: within what the kernel knows, into it, out of it, over something, and
/// two that are an exchange.
extension Worker {
  func rename(_ record: Record) throws(SystemError) {
    let source = record.source.flatMap { mount.isKnown($0.directory) ? $0 : nil }
    let destination = record.destination.flatMap { mount.isKnown($0.directory) ? $0 : nil }
    let victim = victim(of: record)
    defer {
      if let victim {
        do throws(SystemError) { try finish(victim) } catch { notSeen(nil, error) }
      }
    }
    guard source != nil || destination != nil else { return skip(record) }
    let child = try renamed(record, source, destination)
    defer { mount.release(child) }
    if let source { engine.touch(source, before: child) }
    if let destination { engine.touch(destination, before: victim?.node) }
    var move = Move(child: child, source: source, destination: destination)
    if let source, let present = mount.entry(source), present != child {
      // Something newer has the old name: only the arrival is told.
      move.source = nil
      engine.count(\.superseded)
    }
    let reverse = try exchanged(record, move)
    if let reverse {
      move.target = reverse
    } else {
      try prepareTarget(&move, record, victim)
    }
    defer { if let target = move.target { mount.release(target) } }
    guard move.source != nil || move.destination != nil else { return }
    try perform(move, exchange: reverse != nil)
  }

  struct Move {
    var child: NodeID
    /// Nil where the kernel knows nothing, or nothing is to be told.
    var source: Place?
    var destination: Place?
    /// What the new name leads to; retained.
    var target: NodeID?
    /// The target has other names, or has none but is open on the host.
    var targetStays = false
    var holdTarget = false
  }

  /// The object that was renamed; to be released.
  private func renamed(
    _ record: Record, _ source: Place?, _ destination: Place?
  ) throws(SystemError) -> NodeID {
    if record.node != .none, mount.retain(record.node) { return record.node }
    if let source, let present = mount.entry(source), mount.retain(present) { return present }
    if let destination { return try subject(of: record, at: destination, kind: kind(record)) }
    engine.count(\.phantoms)
    return mount.makePhantom(kind: kind(record))
  }

  /// The record of what a rename removed follows it. It is taken out of the
  /// queue: to overwrite raises the same events.
  private func victim(of record: Record) -> Record? {
    guard record.flags.contains(.replaced) else { return nil }
    let deadline = monotonicNanoseconds() + Self.pairingNanoseconds
    return engine.queue.wait(until: deadline) { queue in
      queue.take(within: 1) { next in
        next.isOfObjectAlone && next.node != record.node && next.node != .none
          && !next.mask.isDisjoint(with: [.attrib, .deleteSelf])
      }.map { Optional($0) } ?? (queue.isClosed || queue.first != nil ? .some(nil) : nil)
    } ?? nil
  }

  /// What is left to be told of a victim when the rename is done.
  private func finish(_ victim: Record) throws(SystemError) {
    let node = victim.node
    guard mount.isKnown(node) else { return }
    mount.invalidateNode(node, contents: false)
    if victim.mask.contains(.deleteSelf) {
      end(node)
    } else if !told.contains(node) {
      try tellLinkCount(node)
    }
    told.remove(node)
  }

  /// RENAME_EXCHANGE comes as two records: takes the second, and says what
  /// changes places with the first one's object.
  private func exchanged(_ record: Record, _ move: Move) throws(SystemError) -> NodeID? {
    guard let source = move.source, let destination = move.destination,
      !record.flags.contains(.replaced)
    else { return nil }
    // Only if something is there is it worth waiting for.
    let target = mount.entry(destination)
    var isWorthWaiting = false
    if let target, target != move.child {
      isWorthWaiting = try mount.status(of: target)?.links ?? 0 > 0
    }
    let deadline = isWorthWaiting ? monotonicNanoseconds() + Self.pairingNanoseconds : 0
    let reverse: Record? =
      engine.queue.wait(until: deadline) { queue -> Record?? in
        let found = queue.take(within: 2) {
          $0.mask.contains(.rename) && $0.source == destination && $0.destination == source
            && !$0.flags.contains(.replaced) && $0.node != record.node
        }
        if let found { return .some(found) }
        return queue.isClosed || queue.first != nil ? .some(nil) : nil
      } ?? nil
    guard let reverse else { return nil }
    if let target, target != move.child, mount.retain(target) { return target }
    return try renamed(reverse, nil, source)
  }

  /// What is under the new name: overwritten, or out of the way first.
  private func prepareTarget(
    _ move: inout Move, _ record: Record, _ victim: Record?
  ) throws(SystemError) {
    guard let destination = move.destination else { return }
    var target = mount.entry(destination)
    if target == nil, let victim, mount.isKnown(victim.node) { target = victim.node }
    guard let found = target, found != move.child, mount.retain(found) else { return }
    defer { if move.target == nil { mount.release(found) } }
    mount.closeCached(found)
    let status = try mount.status(of: found)
    let isDirectory = mount.kind(of: found) == S_IFDIR
    if try engine.isOnHost(found, destination) {
      // Newer than the record: only the departure is told.
      move.destination = nil
      engine.count(\.superseded)
      return
    }
    let lives = status?.links ?? 0 > 0
    if lives, isDirectory || !(record.flags.contains(.replaced) || victim?.node == found) {
      // It is elsewhere by now, which its own record tells.
      if isDirectory {
        try setAside(destination, found)
      } else {
        mount.invalidateEntry(destination)
        mount.removeEntry(destination)
      }
      return
    }
    if isDirectory != (mount.kind(of: move.child) == S_IFDIR) {
      _ = ghostRemove(destination, found)
      return
    }
    move.target = found
    move.targetStays = lives
    move.holdTarget = status.map { $0.links == 0 } ?? false
  }

  /// A living directory goes out of the way, watchers and all.
  func setAside(_ place: Place, _ node: NodeID) throws(SystemError) {
    let move = Move(child: node, source: place, destination: nil)
    try perform(move, exchange: false)
  }

  private func perform(_ move: Move, exchange: Bool) throws(SystemError) {
    let child = move.child
    let hidden = orphan(child)
    if move.source == nil, mount.entry(hidden) != child {
      guard ghostCreate(hidden, child) == .done else {
        engine.count(\.invalidated)
        mount.replayFailed("rename", move.destination, errno: ESTALE)
        return invalidate(move.destination, child)
      }
    }
    let from = move.source ?? hidden
    let to = move.destination ?? hidden
    var ticket = Ticket(operation: .rename, place: from, child: child)
    ticket.newPlace = to
    ticket.target = move.target
    ticket.exchange = exchange
    var flags: UInt32 = exchange ? REPLAY_EXCHANGE : 0
    var remaining = 0
    if let target = move.target, !exchange, mount.kind(of: target) != S_IFDIR {
      let status = try mount.status(of: target)
      remaining = remainingNames(target, without: to, status)
      flags |= REPLAY_COUNT
      ticket.bias[target.nodeid] = remaining + 1 - Int(status?.links ?? 0)
      if move.holdTarget, remaining == 0 { flags |= REPLAY_HOLD }
    }
    var request = request(
      REPLAY_RENAME, from, flags: flags, object: exchange ? .none : move.target ?? .none,
      newDirectory: to.directory)
    request.mode = 0
    var outcome = perform(ticket, request)
    if case .failed(let number) = outcome, [ENOENT, ENOTDIR, EISDIR, ESTALE].contains(number) {
      mount.invalidateEntry(from)
      if move.target == nil, to.directory != engine.orphanage { mount.invalidateEntry(to) }
      outcome = perform(ticket, request)
    }
    if book(outcome, "rename", from.directory == engine.orphanage ? nil : from, child) {
      settleTarget(move, exchange, flags, remaining)
    } else if to.directory != engine.orphanage {
      invalidate(to, nil)
    }
    if to.directory == engine.orphanage { mount.expireEntry(to) }
  }

  private func settleTarget(_ move: Move, _ exchange: Bool, _ flags: UInt32, _ remaining: Int) {
    guard let target = move.target, !exchange else { return }
    told.insert(target)
    if flags & REPLAY_HOLD != 0 {
      held[target] = monotonicNanoseconds()
    } else if remaining == 0 {
      note(ended: target)
    } else {
      mount.invalidateNode(target, contents: false)
    }
  }
}
