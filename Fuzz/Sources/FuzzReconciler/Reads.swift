import CHostWatch
import FuzzSupport

@testable import HostWatch

/// A reconciler and what it passes on, read by read, as `WatchedFilesystem` drives it.
final class Reads {
  /// Records and events of each kind: as many come out as go in.
  private struct Counts: Equatable {
    var overflows = 0
    var creates = 0
    var deletes = 0
    var renames = 0
    var deaths = 0
    var changes = 0
  }

  private let namespace = MadeNamespace()
  private let sessions = Sessions()
  private var reconciler: Reconciler
  private var expected = Counts()
  private var passedOn = Counts()
  /// Records absorbed so far, and the last of them about each object.
  private var records: UInt64 = 0
  private var mentioned: [FileHandle: UInt64] = [:]
  /// How many had been absorbed when an object's DELETE_SELF was passed on.
  private var ended: [FileHandle: UInt64] = [:]

  init() {
    reconciler = Reconciler(
      seed: 7, namespace: namespace, emit: { _ in }, overflow: {}, report: { _ in })
    reconciler = Reconciler(
      seed: 7, namespace: namespace, emit: { [unowned self] in take($0) },
      anticipate: { [unowned self] in sessions.router.anticipate(removalOf: $0, from: $1) },
      prefetch: { [unowned self] in sessions.router.prefetch($0, isNear: $1) },
      overflow: { [unowned self] in passedOn.overflows += 1 }, report: { _ in })
  }

  /// One read(2). What the parser refuses would end the sessions: it is passed over here.
  func read(_ bytes: [UInt8], _ how: UInt8) {
    let segment = reconciler.nextSegment()
    segment.fill(with: bytes)
    var events: [KernelEvent] = []
    guard (try? segment.parse(into: &events, segment: 0)) != nil else {
      return reconciler.recycle(segment)
    }
    for event in events { note(event, segment.view) }
    namespace.salt = how
    sessions.beginBatch()
    guard (try? reconciler.absorb(segment)) != nil else {
      preconditionFailure("records that were taken are refused")
    }
    precondition(reconciler.counters.records == records, "records are counted wrongly")
    end(how)
    precondition(reconciler.closedRecords <= records, "more is closed than was read")
  }

  /// Whether the window stays open, and what else comes between two reads.
  private func end(_ how: UInt8) {
    let closed = reconciler.closedRecords
    switch how & 3 {
    case 0: close()
    case 1: reconciler.keepOpen(remaining: Int(how >> 2 & 7), awaited: 0)
    case 2: reconciler.keepOpen(remaining: Int(how >> 2 & 7), awaited: closed + UInt64(how >> 5))
    default: _ = reconciler.trailingRename  // what it waits for comes with the next read
    }
    precondition(reconciler.closedRecords >= closed, "what was closed is open again")
    if how & 0x20 != 0 { reconciler.now &+= Reconciler.deathMilliseconds }
    if how & 0x40 != 0 { reconciler.releaseDeaths() }
  }

  private func close() {
    let renames = reconciler.directoryRenames
    reconciler.close()
    sessions.router.endWindow(directoryRenames: renames)
    precondition(reconciler.closedRecords == records, "a window that is closed is open")
    precondition(reconciler.events.isEmpty && reconciler.deaths.isEmpty, "a window is kept")
  }

  func finish() {
    close()
    reconciler.releaseDeaths()
    precondition(passedOn == expected, "\(expected) went in, \(passedOn) came out")
    sessions.check()
  }

  /// What a record must become.
  private func note(_ event: KernelEvent, _ view: SegmentView) {
    let mask = event.events
    records += 1
    for offset in [event.directory, event.object, event.newDirectory] {
      guard let handle = view.handle(offset).map({ FileHandle($0) }) else { continue }
      mentioned[handle] = records
      namespace.add(handle)
      sessions.add(handle)
    }
    if mask.contains(.queueOverflow) {
      expected.overflows += 1
    } else if mask.contains(.rename) {
      expected.renames += 1
    } else {
      let hasObject = event.object != 0 || event.directory != 0
      if mask.contains(.create) { expected.creates += 1 }
      if mask.contains(.delete) { expected.deletes += 1 }
      if mask.contains(.deleteSelf) {
        expected.deaths += hasObject ? 1 : 0
      } else if !mask.subtracting([.create, .delete, .isDirectory]).isEmpty {
        expected.changes += 1
      }
    }
  }

  private func take(_ event: RemoteEvent) {
    check(event)
    let madeUp = UInt32(HW_CORRECTED | HW_RECHECK)
    if event.flags & madeUp == 0 { count(event) }
    if let object = event.object.map({ FileHandle($0) }) {
      if event.mask.contains(.deleteSelf) {
        ended[object] = records
      } else if let ended = ended[object], event.flags & madeUp == 0 {
        precondition(mentioned[object] ?? 0 > ended, "something is said of what had ended")
      }
    }
    sessions.router.route(event)
  }

  private func count(_ event: RemoteEvent) {
    switch event.mask.subtracting(.isDirectory) {
    case .create: passedOn.creates += 1
    case .delete: passedOn.deletes += 1
    case .rename: passedOn.renames += 1
    default:
      if event.mask.contains(.deleteSelf) {
        passedOn.deaths += 1
      } else {
        passedOn.changes += 1
      }
    }
  }

  /// Whether it is an event as `RemoteEvent` and the protocol's rule 1 have it.
  private func check(_ event: RemoteEvent) {
    let events = event.mask.subtracting(.isDirectory)
    let alone = events.intersection([.create, .delete, .rename])
    precondition(alone.isEmpty || events == alone, "a change of a name with something else")
    precondition([.create, .delete, .rename, []].contains(alone), "several changes of a name")
    precondition(!event.mask.contains(.queueOverflow), "an overflow is no event")
    precondition(event.mask.contains(.rename) || event.newDirectory == nil, "no rename's")
    for handle in [event.object, event.directory, event.newDirectory, event.replaced] {
      precondition(handle?.count ?? 0 <= 128, "a handle that is too long")
    }
    for name in [event.name, event.newName] {
      precondition(name.count <= 255 && !name.bytes.contains(0), "a name that cannot be")
    }
    precondition(!event.name.isDot, "a directory's own name")
    if event.flags & UInt32(HW_RECHECK) != 0 {
      precondition(events.isEmpty && event.object != nil && event.directory == nil, "RECHECK")
    }
    if event.flags & UInt32(HW_CORRECTED) != 0 {
      precondition(!alone.isEmpty && event.pid == 0, "what is corrected is a name, by nobody")
      precondition(event.object != nil && event.directory != nil, "a correction of nothing")
    }
    precondition((event.flags & UInt32(HW_REPLACED) != 0) == (event.replaced != nil), "REPLACED")
  }
}
