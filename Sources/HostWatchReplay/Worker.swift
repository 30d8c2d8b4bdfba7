import CReplay
import Glibc
import HostWatch

/// The engine's thread: takes one record after the other and has it replayed.
final class Worker {
  typealias Record = HostWatchClient.Record

  enum Outcome: Equatable {
    case done
    /// The kernel holds something newer: not to be done.
    case refused
    case failed(Int32)
  }

  /// How long a record may wait for the one that belongs to it.
  static let pairingNanoseconds: UInt64 = 1_000_000
  /// After so many starts in vain within ten seconds it waits for so long.
  static let restartPauseNanoseconds: UInt64 = 1_000_000_000

  let engine: ReplayEngine
  var mount: any ReplayMount { engine.mount }
  private var mountDescriptor: Int32
  private var replayer: Replayer?
  private var nextStart: UInt64 = 0
  private var hasStarted = false
  /// What the replayer keeps open beyond its last name.
  var held: [NodeID: UInt64] = [:]
  /// Objects whose end watchers were told; their DELETE_SELF is to come.
  var ended: Set<NodeID> = []
  /// What was overwritten by the rename at hand.
  var told: Set<NodeID> = []

  init(engine: ReplayEngine, mountDescriptor: Int32) {
    self.engine = engine
    self.mountDescriptor = mountDescriptor
  }

  func run() {
    startIfNeeded()
    while let work = next() {
      switch work {
      case .record(let item):
        apply(item.record)
        settleSome()
        let lag = monotonicNanoseconds() - item.arrived
        engine.figuresState.withLock { $0.lagNanoseconds = lag }
      case .overrun(let items):
        for item in items {
          engine.count(\.superseded)
          summarize(item.record)
        }
      case .removed(let directories):
        for directory in directories where replayer != nil {
          _ = call(
            request(REPLAY_DROP, Place(.none, []), object: directory), Place(.none, []),
            Place(.none, []))
        }
      case .quiet:
        settle()
      case .replayerEnded(let pid):
        if replayer?.pid == pid { dismiss() }
        startIfNeeded()
      }
    }
    dismiss()
    _ = close(mountDescriptor)
  }

  private enum Work {
    case record(ReplayQueue.Item)
    /// Too many to be replayed one by one.
    case overrun([ReplayQueue.Item])
    /// Their end must not wait for the replayer.
    case removed([NodeID])
    case quiet
    case replayerEnded(pid_t)
  }

  /// Nil when the engine was stopped.
  private func next() -> Work? {
    // Whoever waits for the end of what there was is woken once there is none.
    let isDone = engine.queue.withLock { queue in
      defer { queue.isBusy = false }
      return queue.isBusy && queue.count == 0
    }
    if isDone { engine.queue.change { _ in } }
    while true {
      var due = engine.settling.withLock { $0.due }
      if due == nil, !held.isEmpty {
        due = monotonicNanoseconds() + 10 * Settling.quietNanoseconds
      }
      let result = engine.queue.wait(until: due) { queue -> Work?? in
        if queue.isClosed { return .some(nil) }
        if let pid = queue.replayerEnded {
          queue.replayerEnded = nil
          return .replayerEnded(pid)
        }
        if !queue.removed.isEmpty {
          defer { queue.removed = [] }
          return .removed(queue.removed)
        }
        if queue.count > ReplayEngine.maxWaiting {
          queue.isBusy = true
          return .overrun(queue.removeAll())
        }
        if let item = queue.popFirst() {
          queue.isBusy = true
          return .record(item)
        }
        if queue.isDisturbed {
          queue.isDisturbed = false
          return .quiet
        }
        return nil
      }
      return result ?? .quiet
    }
  }

  // MARK: The replayer

  private var isClosed: Bool { engine.queue.withLock { $0.isClosed } }

  private func startIfNeeded() {
    guard replayer == nil, monotonicNanoseconds() >= nextStart, !isClosed else { return }
    nextStart = monotonicNanoseconds() + Self.restartPauseNanoseconds
    do throws(SystemError) {
      let started = try Replayer(mount: mountDescriptor)
      let pid = started.pid
      replayer = consume started
      engine.replayerPID.store(Int(pid), ordering: .releasing)
      // `stop` has looked for one before: nobody answers it any more.
      if isClosed { return dismiss() }
      if hasStarted { engine.count(\.restarts) }
      hasStarted = true
      held = [:]
      try BackgroundThread.start { [queue = engine.queue] in
        _ = replay_wait(pid)
        queue.change { $0.replayerEnded = pid }
      }
    } catch {
      mount.replayFailed("the replayer does not start", nil, errno: error.code)
    }
  }

  /// Ends the replayer, if it has not ended by itself. Its requests are ghosts
  /// until it has been waited for; after that none is left.
  private func dismiss() {
    replayer = nil
    engine.replayerPID.store(0, ordering: .releasing)
  }

  /// One operation of the replayer's, with `ticket` for its requests.
  func perform(_ ticket: Ticket, _ request: replay_request) -> Outcome {
    engine.ticket.withLock { $0 = ticket }
    if ticket.operation == .closeWrite, !engine.mayBeWritten(ticket.child.nodeid) {
      engine.ticket.withLock { $0 = nil }
      return .refused
    }
    let answer = call(
      request, ticket.place, ticket.newPlace ?? Place(.none, []))
    let refused = engine.ticket.withLock { current in
      defer { current = nil }
      return current?.refused ?? false
    }
    switch answer {
    case .done: return .done
    case .failed(let number): return refused ? .refused : .failed(number)
    case .objectNotHeld, .pathNeeded: return refused ? .refused : .failed(ESTALE)
    case .ended: return .failed(EPIPE)
    }
  }

  func call(_ request: replay_request, _ place: Place, _ newPlace: Place) -> Replayer.Answer {
    startIfNeeded()
    guard replayer != nil else { return .ended }
    var answer = send(request, place, newPlace, [], [])
    if case .pathNeeded = answer {
      guard let path = path(of: place.directory) else { return .failed(ESTALE) }
      let newPath = newPlace.directory == .none ? [] : self.path(of: newPlace.directory) ?? []
      answer = send(request, place, newPlace, path, newPath)
    }
    if case .ended = answer { dismiss() }
    return answer
  }

  private func send(
    _ request: replay_request, _ place: Place, _ newPlace: Place, _ path: [UInt8],
    _ newPath: [UInt8]
  ) -> Replayer.Answer {
    guard replayer != nil else { return .ended }
    return replayer?.call(request, place.name, newPlace.name, path: path, newPath: newPath)
      ?? .ended
  }

  /// Where the view has a directory, from the root; nil if nowhere.
  private func path(of directory: NodeID) -> [UInt8]? {
    if directory == engine.orphanage { return engine.orphanageName }
    var parts: [[UInt8]] = []
    var at = directory
    while at != .root {
      guard parts.count < 2_048, let place = mount.places(of: at).first else { return nil }
      parts.append(place.name)
      at = place.directory
    }
    return Array(parts.reversed().joined(separator: [UInt8(ascii: "/")]))
  }

  func request(
    _ operation: replay_operation, _ place: Place, flags: UInt32 = 0,
    object: NodeID = .none, newDirectory: NodeID = .none
  ) -> replay_request {
    var request = replay_request()
    request.operation = operation.rawValue
    request.flags = flags
    request.dir = replay_place(place.directory)
    request.new_dir = replay_place(newDirectory)
    request.object = replay_place(object)
    return request
  }

  // MARK: Records

  private func apply(_ record: Record) {
    do throws(SystemError) {
      if record.flags.contains(.recheck) {
        recheck(record)
      } else if record.mask.contains(.rename) {
        try rename(record)
      } else if record.mask.contains(.create) {
        try create(record)
      } else if record.mask.contains(.delete) {
        try delete(record)
      } else {
        try change(record)
      }
    } catch {
      engine.count(\.invalidated)
      notSeen(record.source ?? record.destination, error)
      summarize(record)
    }
  }

  /// The host could not be asked.
  func notSeen(_ place: Place?, _ error: SystemError) {
    mount.replayFailed("looking at the host", place, errno: error.code)
  }

  /// Not replayed: caches are made true, and what is different in the end about
  /// the names is told when they are settled.
  private func summarize(_ record: Record) {
    if record.flags.contains(.recheck) { return recheck(record) }
    let node: NodeID? = record.node == .none ? nil : record.node
    if !record.mask.isDisjoint(with: [.create, .delete, .rename]) {
      if let source = record.source, mount.isKnown(source.directory) {
        let before = record.mask.contains(.create) ? nil : node ?? mount.entry(source)
        engine.touch(source, before: before)
        invalidate(source, nil)
      }
      if let destination = record.destination, mount.isKnown(destination.directory) {
        engine.touch(destination, before: mount.entry(destination))
        invalidate(destination, nil)
      }
    }
    guard let node, mount.isKnown(node) else { return }
    mount.invalidateNode(node, contents: true)
    if record.isOfObjectAlone, record.mask.contains(.deleteSelf) { end(node) }
  }

  /// The object may have changed unseen: nothing is told of it, but what names
  /// a directory holds.
  private func recheck(_ record: Record) {
    mount.invalidateNode(record.node, contents: true)
    guard record.mask.contains(.isDirectory) else { return }
    for (name, node) in mount.entries(in: record.node) {
      let place = Place(record.node, name)
      engine.touch(place, before: node)
    }
  }

  /// What was not replayed is forgotten by the kernel: no event, but no stale
  /// cache either.
  func invalidate(_ place: Place?, _ child: NodeID?) {
    if let place, mount.isKnown(place.directory), place.directory != engine.orphanage {
      mount.invalidateEntry(place)
      mount.invalidateNode(place.directory, contents: true)
    }
    if let child, mount.isKnown(child) { mount.invalidateNode(child, contents: true) }
  }

  /// Books what became of a record; true if it was done.
  @discardableResult
  func book(_ outcome: Outcome, _ what: String, _ place: Place?, _ child: NodeID?) -> Bool {
    switch outcome {
    case .done:
      engine.count(\.replayed)
      return true
    case .refused:
      engine.count(\.superseded)
    case .failed(let number):
      engine.count(\.invalidated)
      mount.replayFailed(what, place, errno: number)
    }
    invalidate(place, child)
    return false
  }
}
