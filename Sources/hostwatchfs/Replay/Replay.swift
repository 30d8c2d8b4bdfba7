import CHostWatch
import CReplay
import Glibc
import HostWatch
import HostWatchReplay

/// `-o events=replay`: the follower's records go to a `ReplayEngine`, and what its
/// replayer asks of the mount is answered here.
///
/// The engine has a thread of its own, so that it can look ahead in what has
/// arrived. While more than `maxWaiting` records wait, what arrives is
/// invalidated at once besides: events are late then, caches are not.
final class Replay: Applier, @unchecked Sendable {
  static let maxWaiting = 128

  let view: View
  let backing: Backing
  let daemon: Daemon
  let misplaced: Misplaced
  let statistics: Statistics
  let log: Log
  private let mountPoint: String
  /// The mount is to be read-only, and its filesystem, for the replayer, is not.
  private let isReadOnly: Bool
  private let failures = Locked(Failures())
  // Both are set by `start` on the follower's thread, before any record, and
  // read by handlers, which see nil until then.
  private let kernelBox = Locked<Kernel?>(nil)
  private let engineBox = Locked<ReplayEngine?>(nil)

  init(
    _ view: View, _ backing: Backing, _ daemon: Daemon, _ misplaced: Misplaced,
    _ statistics: Statistics, _ log: Log, mountPoint: String, isReadOnly: Bool
  ) {
    self.view = view
    self.backing = backing
    self.daemon = daemon
    self.misplaced = misplaced
    self.statistics = statistics
    self.log = log
    self.mountPoint = mountPoint
    self.isReadOnly = isReadOnly
  }

  /// What is there once the filesystem is mounted.
  struct Kernel: Sendable {
    let notifier: Notifier
    let invalidator: Invalidator
  }

  var kernel: Kernel? { kernelBox.withLock { $0 } }

  /// Before `start`.
  func connect(_ notifier: Notifier, _ invalidator: Invalidator) {
    kernelBox.withLock { $0 = Kernel(notifier: notifier, invalidator: invalidator) }
  }

  var engine: ReplayEngine? { engineBox.withLock { $0 } }

  func start() {
    var mount = replay_mount()
    let descriptor = unsafe mountPoint.withCString { unsafe replay_open_mount($0, &mount) }
    if isReadOnly {
      let result = unsafe mountPoint.withCString { unsafe replay_make_read_only($0) }
      if result < 0 {
        log.warning("the mount is not read-only: \(Hostwatchfs.text(-result))")
      }
    }
    guard descriptor >= 0 else {
      let why = Hostwatchfs.text(-descriptor)
      log.warning("events are not replayed: the mount cannot be opened for it: \(why)")
      return
    }
    let engine = ReplayEngine(mount: self, mountDescriptor: descriptor)
    do {
      try engine.start()
    } catch {
      log.warning("events are not replayed: \(error)")
      return
    }
    engineBox.withLock { $0 = engine }
    do throws(Failure) {
      try watchMount(mount)
    } catch {
      log.warning("events are not replayed: \(Hostwatchfs.text(error.code))")
      stop()
    }
  }

  func apply(_ change: Change) {
    guard let engine else {
      kernel?.invalidator.apply(change)
      return
    }
    if engine.figures.waiting > Self.maxWaiting {
      kernel?.invalidator.apply(change)
    }
    engine.submit([HostWatchClient.Record(change)])
  }

  /// What happened meanwhile is not known one by one; what differs is told.
  func inStep() {
    engine?.settle(
      view.allEntries.compactMap { entry in
        view.child(entry.name, of: entry.parent) ?? 0 == 0 ? nil : Place(entry)
      })
  }

  func finishApplying() { engine?.drain() }

  func stop() {
    engineBox.withLock { engine in
      defer { engine = nil }
      return engine
    }?.stop()
  }

  /// The engine's descriptor keeps the filesystem alive after its mount was
  /// unmounted: it is to go then.
  private func watchMount(_ mount: replay_mount) throws(Failure) {
    try startThread(named: "mount") { [weak self] in
      let result = replay_wait_unmount(mount)
      guard let self else { return }
      if result < 0 { self.log.warning("the mount table cannot be watched") }
      self.stop()
    }
  }

  /// The server's counters with those of the engine.
  func adding(to counters: Counters) -> Counters {
    var counters = counters
    guard let figures = engine?.figures else { return counters }
    counters.replayed += figures.replayed
    counters.invalidated += figures.invalidated
    counters.superseded += figures.superseded
    counters.settled += figures.settled
    counters.failures.merge(failures.withLock { $0.counts }) { $0 + $1 }
    return counters
  }

  /// How long the record that was replayed last had waited.
  var lagMicroseconds: UInt64 {
    guard let figures = engine?.figures, figures.waiting > 0 else { return 0 }
    return figures.lagNanoseconds / 1000
  }

  // MARK: - What went wrong

  private struct Failures: Sendable {
    var counts: [String: UInt64] = [:]
  }

  func replayFailed(_ what: String, _ place: Place?, errno number: Int32) {
    let reason = "\(what): \(Hostwatchfs.text(number))"
    let count = failures.withLock { failures -> UInt64 in
      failures.counts[reason, default: 0] += 1
      return failures.counts[reason] ?? 0
    }
    // The first, the tenth, the hundredth …
    var power: UInt64 = 1
    while power < count { power *= 10 }
    guard power == count else { return }
    let name = place.map { " of \(Name($0.name)) in node \($0.directory.nodeid)" } ?? ""
    log.warning("not replayed but invalidated (\(count) so far): \(reason)\(name)")
  }
}

extension HostWatchClient.Record {
  init(_ change: Change) {
    self.init(
      sequence: change.sequence, mask: EventMask(rawValue: change.mask),
      flags: Flags(rawValue: change.flags), directory: NodeID(change.directory),
      node: NodeID(change.node), newDirectory: NodeID(change.newDirectory),
      origin: change.origin, name: .init(change.name?.bytes ?? []),
      newName: .init(change.newName?.bytes ?? []))
  }
}

extension NodeID {
  /// All nodes have the view's generation.
  init(_ id: UInt64) {
    self = id == 0 ? .none : NodeID(nodeid: id, generation: View.generation)
  }
}

extension Place {
  init(_ entry: View.Entry) { self.init(NodeID(entry.parent), entry.name.bytes) }
}

extension View.Entry {
  init(_ place: Place) { self.init(parent: place.directory.nodeid, name: Name(place.name)) }
}
