import Glibc
import HostWatch

/// The one ghost operation that is under way, and the answers to its requests.
///
/// A request is a ghost's when its thread is the replayer and it is what the
/// ticket says. While the replayer is in a system call that changes a directory
/// it holds that directory's lock, so no other request about it is under way:
/// what is decided here stays true until the answer has arrived.
struct Ticket {
  enum Operation {
    case create, remove, rename, touch, closeWrite
  }

  var operation: Operation
  var place: Place
  var child: NodeID
  var newPlace: Place?
  /// What the new name leads to, and with `exchange` what changes places.
  var target: NodeID?
  var exchange = false
  /// A request met something newer: what the host has done is not done again.
  var refused = false
  /// Added to the link counts that are told meanwhile.
  var bias: [UInt64: Int] = [:]

  func isSource(_ directory: UInt64, _ name: [UInt8]) -> Bool {
    directory == place.directory.nodeid && name == place.name
  }

  func isDestination(_ directory: UInt64, _ name: [UInt8]) -> Bool {
    guard let newPlace else { return false }
    return directory == newPlace.directory.nodeid && name == newPlace.name
  }
}

/// What a ghost's LOOKUP is answered with.
package enum GhostLookup: Sendable {
  /// This node; `lasting` if the host has it there, else with timeout 0.
  case node(NodeID, lasting: Bool)
  /// ENOENT, with timeout 0.
  case absent
  /// As anybody's.
  case ordinary
}

extension ReplayEngine {
  /// The thread whose requests are ghosts; 0: none. Ask before anything else.
  package var replayerID: Int32 { Int32(replayerPID.load(ordering: .acquiring)) }

  /// What is to be added to the link count in every answer about this node.
  package func linkBias(of nodeid: UInt64) -> Int {
    let raised = witness.bias(of: nodeid)
    guard replayerID != 0 else { return raised }
    return raised + ticket.withLock { $0?.bias[nodeid] ?? 0 }
  }

  private func refuse() { ticket.withLock { $0?.refused = true } }

  /// LOOKUP by the replayer.
  package func ghostLookup(_ directory: UInt64, _ name: [UInt8]) -> GhostLookup {
    if directory == NodeID.root.nodeid, name == orphanageName {
      return .node(orphanage, lasting: false)
    }
    guard let ticket = ticket.withLock({ $0 }) else { return .ordinary }
    if ticket.isSource(directory, name) { return source(ticket) }
    if ticket.operation == .rename, ticket.isDestination(directory, name) {
      return destination(ticket)
    }
    return directory == orphanage.nodeid ? .absent : .ordinary
  }

  private func source(_ ticket: Ticket) -> GhostLookup {
    let present = mount.entry(ticket.place)
    switch ticket.operation {
    case .create:
      // The kernel has the right, newer object under that name already.
      // Nor is it undone if the host cannot be asked.
      if let present, present != ticket.child,
        (try? isOnHost(present, ticket.place)) ?? true
      {
        refuse()
        return .node(present, lasting: true)
      }
      return .absent
    case .remove, .rename:
      if let present, present != ticket.child {
        refuse()
        return .node(present, lasting: false)
      }
      return .node(ticket.child, lasting: false)
    case .touch, .closeWrite:
      guard present == ticket.child || present == nil else { return .ordinary }
      return .node(ticket.child, lasting: isLasting(ticket.child, ticket.place))
    }
  }

  private func destination(_ ticket: Ticket) -> GhostLookup {
    guard let place = ticket.newPlace else { return .ordinary }
    let present = mount.entry(place)
    if let target = ticket.target, present == nil || present == target {
      return .node(target, lasting: false)
    }
    if let present, present != ticket.child {
      // Somebody made it after the decision to overwrite nothing.
      refuse()
      return .node(present, lasting: false)
    }
    return .absent
  }

  /// MKNOD, MKDIR, SYMLINK and LINK by the replayer: the node to answer with,
  /// and whether the host has it there. Nil: EBUSY.
  package func ghostCreate(_ directory: UInt64, _ name: [UInt8]) -> (node: NodeID, lasting: Bool)? {
    guard let ticket = ticket.withLock({ $0 }), ticket.operation == .create, !ticket.refused,
      ticket.isSource(directory, name)
    else {
      refuse()
      return nil
    }
    announce(ticket.place, ticket.child)
    return (ticket.child, isLasting(ticket.child, ticket.place))
  }

  /// UNLINK and RMDIR by the replayer: whether it is done, else EBUSY.
  package func ghostRemove(_ directory: UInt64, _ name: [UInt8]) -> Bool {
    guard let ticket = ticket.withLock({ $0 }), ticket.operation == .remove, !ticket.refused,
      ticket.isSource(directory, name), mount.entry(ticket.place) == ticket.child
    else {
      refuse()
      return false
    }
    mount.removeEntry(ticket.place)
    announce(ticket.place, nil)
    return true
  }

  /// RENAME by the replayer: whether it is done, else EBUSY.
  package func ghostRename(
    _ directory: UInt64, _ name: [UInt8], _ newDirectory: UInt64, _ newName: [UInt8]
  ) -> Bool {
    guard let ticket = ticket.withLock({ $0 }), ticket.operation == .rename, !ticket.refused,
      ticket.isSource(directory, name), ticket.isDestination(newDirectory, newName),
      let newPlace = ticket.newPlace, mount.entry(ticket.place) == ticket.child
    else {
      refuse()
      return false
    }
    mount.removeEntry(ticket.place)
    mount.removeEntry(newPlace)
    mount.setEntry(newPlace, to: ticket.child)
    announce(newPlace, ticket.child)
    if ticket.exchange, let target = ticket.target {
      mount.setEntry(ticket.place, to: target)
      announce(ticket.place, target)
    } else {
      announce(ticket.place, nil)
    }
    return true
  }

  /// SETATTR by the replayer: whether to answer with what the host has, else EBUSY.
  package func ghostTouch(_ nodeid: UInt64) -> Bool {
    guard let ticket = ticket.withLock({ $0 }), ticket.child.nodeid == nodeid,
      ticket.operation == .touch || ticket.operation == .closeWrite
    else {
      refuse()
      return false
    }
    return true
  }

  /// OPEN by the replayer: whether to answer with a handle of which nothing
  /// comes (DIRECT_IO, NOFLUSH, KEEP_CACHE), else EBUSY.
  package func ghostOpen(_ nodeid: UInt64) -> Bool {
    guard let ticket = ticket.withLock({ $0 }), ticket.operation == .closeWrite,
      ticket.child.nodeid == nodeid
    else {
      refuse()
      return false
    }
    return true
  }

  /// A client is about to execute the node. While the replayer has it open for
  /// writing that would fail (ETXTBSY), so this waits for the replayer's close,
  /// which needs nothing that the client holds; and for a while the replayer
  /// leaves the node alone.
  package func guestExecutes(_ nodeid: UInt64) {
    guard replayerID != 0 else { return }
    let deadline = monotonicNanoseconds() + Self.executionNanoseconds
    executed.withLock { executed in
      if executed.count >= 1_024 {
        executed = executed.filter { $0.value > deadline - 2 * Self.executionNanoseconds }
      }
      executed[nodeid] = deadline
    }
    func isBeingWritten() -> Bool {
      ticket.withLock { $0?.operation == .closeWrite && $0?.child.nodeid == nodeid }
    }
    while isBeingWritten(), monotonicNanoseconds() < deadline { usleep(50) }
  }

  static var executionNanoseconds: UInt64 { 50_000_000 }

  /// With the ticket for writing it set: whether nobody is about to execute it.
  func mayBeWritten(_ nodeid: UInt64) -> Bool {
    executed.withLock { ($0[nodeid] ?? 0) < monotonicNanoseconds() }
  }

  /// Whether the host has this very object under this name.
  func isOnHost(_ node: NodeID, _ place: Place) throws(SystemError) -> Bool {
    guard place.directory != orphanage else { return false }
    return try mount.isOnHost(node, place)
  }

  /// Whether the kernel may keep that: not if the host cannot be asked.
  private func isLasting(_ node: NodeID, _ place: Place) -> Bool {
    (try? isOnHost(node, place)) ?? false
  }
}
