import CReplay
import Glibc
import HostWatch
import Synchronization

/// Makes a mount's kernel raise the events of what happened on the host.
///
/// In: records of a NODES session, in order. Out: for each the same change, done
/// on the mount by the replayer, a process of its own, whose requests the server
/// hands to the `ghost…` functions and answers without touching the host. The
/// kernel then raises the genuine events and moves its own dentries.
///
/// Always: one operation at a time, in the order of the records. What the kernel
/// holds already and the host still has is never undone. What cannot be done
/// again is invalidated, so that no cache is stale whatever fails. A name that
/// was touched is compared with the host once it has been quiet for a while.
///
/// Refused: nothing. A handler of a request never waits for the engine, and the engine holds no
/// lock while the replayer works or the kernel is notified.
package final class ReplayEngine: Sendable {
  typealias Record = HostWatchClient.Record

  /// Beyond so many waiting records they are not replayed one by one: what they
  /// name is invalidated, and what has become of it is told.
  static let maxWaiting = 8_192

  let mount: any ReplayMount
  /// A hidden directory for what crosses the export's boundary or has no name.
  package let orphanage: NodeID
  let orphanageName: [UInt8]
  let queue = Monitor(ReplayQueue())
  let ticket = Locked<Ticket?>(nil)
  /// Nodes that are about to be executed, and until when that is so.
  let executed = Locked<[UInt64: UInt64]>([:])
  let settling = Locked(Settling())
  let figuresState = Locked(ReplayFigures())
  let replayerPID = Atomic<Int>(0)
  let witness: LinkWitness
  private let mountDescriptor: Int32
  private let finished = Monitor(false)

  /// `mountDescriptor` is of the mount's root (`replay_open_mount`), and the
  /// engine's from now on.
  package init(mount: any ReplayMount, mountDescriptor: Int32) {
    self.mount = mount
    self.mountDescriptor = mountDescriptor
    witness = LinkWitness(mount: mountDescriptor)
    orphanage = mount.makePhantom(kind: S_IFDIR)
    orphanageName = Array(".hostwatchfs-\(UInt64.random(in: .min ... .max))".utf8)
  }

  /// Starts the engine's thread, which closes the descriptor when it ends.
  package func start() throws(SystemError) {
    witness.start()
    do throws(SystemError) {
      try BackgroundThread.start { [self] in
        Worker(engine: self, mountDescriptor: mountDescriptor).run()
        finished.change { $0 = true }
      }
    } catch {
      witness.stop()
      _ = close(mountDescriptor)
      throw error
    }
  }

  /// Ends the replayer and the thread; what still waits is dropped.
  package func stop() {
    witness.stop()
    queue.change { $0.isClosed = true }
    // It may wait for an answer that nobody gives any more.
    let pid = replayerID
    if pid > 0 { _ = kill(pid, SIGKILL) }
    _ = finished.wait(until: nil) { $0 ? true : nil }
  }

  /// Puts records in, in their order; does not wait.
  package func submit(_ records: some Sequence<HostWatchClient.Record>) {
    let now = monotonicNanoseconds()
    queue.change { queue in
      for record in records { queue.append(record, arrived: now) }
    }
  }

  /// Waits until every record that was put in before is replayed.
  package func drain() {
    _ = queue.wait(until: nil) { queue in
      queue.isClosed || queue.count == 0 && !queue.isBusy ? true : nil
    }
  }

  /// What a request of the mount's own users has put under a name, nil for
  /// nothing: watchers were told that by the kernel.
  package func guestChanged(_ place: Place, to node: NodeID?) {
    guard replayerID != 0 else { return }
    let isFirst = settling.withLock { settling in
      settling.note(place, told: node, now: monotonicNanoseconds())
      return settling.count == 1
    }
    // The engine's thread sleeps for as long as there is nothing to settle.
    if isFirst { queue.change { $0.isDisturbed = true } }
  }

  /// A request of the mount's own users has removed a directory. As long as the replayer
  /// has it open, its watchers are not told of its end.
  package func guestRemoved(_ directory: NodeID) {
    guard replayerID != 0 else { return }
    queue.change { $0.removed.append(directory) }
  }

  /// A request of the mount's own users has removed one of the node's names, and is about to be
  /// answered; the object has others. Calls `then`, which answers it, when the kernel knows of
  /// them, or after a moment.
  package func guestUnlinked(_ node: NodeID, then: @escaping @Sendable () -> Void) {
    witness.tell(node) { [mount] result in
      if result != 0, result != ESTALE {
        mount.replayFailed("counting links", nil, errno: result)
      }
      then()
    }
  }

  /// Everything in the view is compared with the host once the queue is empty,
  /// and what differs is told: after records were lost.
  package func settle(_ places: [Place]) {
    for place in places {
      let told = mount.entry(place)
      settling.withLock { $0.note(place, told: told, now: monotonicNanoseconds()) }
    }
    queue.change { $0.isDisturbed = true }
  }

  package var figures: ReplayFigures {
    var figures = figuresState.withLock { $0 }
    figures.waiting = queue.withLock { $0.count }
    return figures
  }

  /// Watchers were told that the name leads to this node, or to nothing.
  func announce(_ place: Place, _ node: NodeID?) {
    guard place.directory != orphanage else { return }
    settling.withLock { $0.note(place, told: node, now: monotonicNanoseconds()) }
  }

  /// A record is about the name, under which `before` was until then.
  func touch(_ place: Place, before: NodeID?) {
    settling.withLock { $0.touch(place, before: before, now: monotonicNanoseconds()) }
  }

  func count(_ field: WritableKeyPath<ReplayFigures, UInt64> & Sendable, _ more: UInt64 = 1) {
    figuresState.withLock { $0[keyPath: field] += more }
  }
}

/// What the engine has done since it started.
package struct ReplayFigures: Sendable {
  /// Records replayed.
  package var replayed: UInt64 = 0
  /// Records of which nothing was to be raised: what they name is unknown to
  /// the mount's kernel.
  package var skipped: UInt64 = 0
  /// Records overtaken by something newer that the kernel holds already.
  package var superseded: UInt64 = 0
  /// Records that could not be replayed, and were invalidated instead.
  package var invalidated: UInt64 = 0
  /// Names that differed from the host when they were compared, and were told.
  package var settled: UInt64 = 0
  /// Objects that were gone when their record was replayed.
  package var phantoms: UInt64 = 0
  /// How often the replayer was started again.
  package var restarts: UInt64 = 0
  /// Records that wait.
  package var waiting = 0
  /// From the record's arrival to its event, of the last one, nanoseconds.
  package var lagNanoseconds: UInt64 = 0
}
