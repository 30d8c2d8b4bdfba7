import CReplay
import Glibc
import HostWatch

/// Names about which something was told or to be told, with what watchers
/// believe to be there, until they are compared with the host.
///
/// A name without a note is one of which watchers have been told the truth, or
/// nothing, at a moment when no record about it waited. So its first note says
/// what they believed before: after an operation of a client what that made of
/// it, before a record what the record says was there.
struct Settling: Sendable {
  static let quietNanoseconds: UInt64 = 20_000_000

  struct Note: Sendable {
    var told: NodeID?
    var at: UInt64
    /// Whether it differed when it was looked at before.
    var differed = false
    /// How often it could not be told.
    var failures = 0
  }

  private var notes: [Place: Note] = [:]
  /// The notes as they were made, the oldest first; one that was made anew
  /// meanwhile is here twice.
  private var order: [(place: Place, at: UInt64)] = []
  private var head = 0

  var count: Int { notes.count }

  /// When the next one has been quiet for long enough; nil if there is none.
  var due: UInt64? {
    head < order.count ? order[head].at + Self.quietNanoseconds : nil
  }

  mutating func note(_ place: Place, told: NodeID?, now: UInt64) {
    notes[place] = Note(told: told, at: now)
    order.append((place, now))
  }

  /// A record is about the name, under which `before` was.
  mutating func touch(_ place: Place, before: NodeID?, now: UInt64) {
    note(place, told: notes[place].map { $0.told } ?? before, now: now)
  }

  /// Takes out the next that has been quiet for long enough.
  mutating func takeQuiet(now: UInt64) -> (Place, Note)? {
    while head < order.count, order[head].at + Self.quietNanoseconds <= now {
      let (place, at) = order[head]
      head += 1
      if head >= 4_096 || head == order.count {
        order.removeFirst(head)
        head = 0
      }
      if let note = notes[place], note.at == at {
        notes[place] = nil
        return (place, note)
      }
    }
    return nil
  }

  /// Puts back one that is to be looked at again, unless something was noted
  /// meanwhile.
  mutating func putBack(_ place: Place, _ note: Note, now: UInt64) {
    guard notes[place] == nil else { return }
    self.note(place, told: note.told, now: now)
    notes[place]?.differed = note.differed
    notes[place]?.failures = note.failures
  }
}

extension Worker {
  /// How many names may wait to be settled while records come without a pause.
  static var maxNotes: Int { 16_384 }

  /// Compares names that have been quiet with the host, one after the other for
  /// as long as no record comes; what differs twice is told as if it had just
  /// happened.
  func settle() {
    while let (place, note) = engine.settling.withLock({
      $0.takeQuiet(now: monotonicNanoseconds())
    }) {
      if mount.isKnown(place.directory) { settle(place, note) }
      if engine.queue.withLock({ $0.hasWork }) { return }
    }
    releaseWhatEnded()
  }

  /// While records come without a pause.
  func settleSome() {
    guard engine.settling.withLock({ $0.count > Self.maxNotes }) else { return }
    for _ in 0..<4 {
      let now = monotonicNanoseconds()
      guard let (place, note) = engine.settling.withLock({ $0.takeQuiet(now: now) }) else { return }
      if mount.isKnown(place.directory) { settle(place, note) }
    }
  }

  private func settle(_ place: Place, _ note: Settling.Note) {
    let found: NodeID?
    do throws(SystemError) {
      found = try mount.find(place)
    } catch {
      return notSeen(place, note, error)
    }
    defer { if let found { mount.release(found) } }
    let isNamed = engine.queue.withLock { $0.isNamed(place) }
    if found == note.told, !isNamed {
      if let present = mount.entry(place), present != found { invalidate(place, found) }
      return
    }
    guard note.differed, !isNamed else {
      // Its record waits, or may be on the way.
      var note = note
      note.differed = !isNamed
      let now = monotonicNanoseconds()
      return engine.settling.withLock { $0.putBack(place, note, now: now) }
    }
    var note = note
    var outcome = Outcome.done
    if let told = note.told {
      do throws(SystemError) {
        outcome = try tellGone(place, told)
      } catch {
        return notSeen(place, note, error)
      }
      if outcome == .done { note.told = nil }
    }
    if outcome == .done, let found {
      outcome = ghostCreate(place, found)
      if outcome == .done { note.told = found }
    }
    // Whatever the kernel has there instead, it is asked for when this is tried again.
    if outcome != .done || mount.entry(place) != found { invalidate(place, found) }
    if outcome == .done {
      engine.count(\.settled)
      (note.differed, note.failures) = (false, 0)
    } else {
      note.failures += 1
      guard note.failures < Self.maxFailures else {
        book(outcome, "settling", place, found)
        return
      }
    }
    // What a client has done to the name meanwhile is noted already, and later.
    let now = monotonicNanoseconds()
    engine.settling.withLock { $0.putBack(place, note, now: now) }
  }

  /// So often is tried to tell what has become of a name.
  private static var maxFailures: Int { 100 }

  /// What is there is not known: to be looked at again.
  private func notSeen(_ place: Place, _ note: Settling.Note, _ error: SystemError) {
    notSeen(place, error)
    invalidate(place, nil)
    let now = monotonicNanoseconds()
    engine.settling.withLock { $0.putBack(place, note, now: now) }
  }

  /// DELETE of a name, and of the object only if that is gone as well.
  private func tellGone(_ place: Place, _ told: NodeID) throws(SystemError) -> Outcome {
    let present = mount.entry(place)
    let isGone = try mount.status(of: told)?.links ?? 0 == 0
    if isGone, present == nil || present == told, mount.retain(told) {
      defer { mount.release(told) }
      return ghostRemove(place, told)
    }
    if present != nil { mount.invalidateEntry(place) }
    let phantom = mount.makePhantom(kind: mount.kind(of: told) ?? S_IFREG)
    defer { mount.release(phantom) }
    return ghostRemove(place, phantom)
  }

  /// What ended by the server's own closing has no record.
  private func releaseWhatEnded() {
    let now = monotonicNanoseconds()
    for (node, since) in held where now - since > 10 * Settling.quietNanoseconds {
      held[node] = now
      do throws(SystemError) {
        if try mount.status(of: node) == nil { end(node) }
      } catch {
        notSeen(nil, error)
      }
    }
  }
}
