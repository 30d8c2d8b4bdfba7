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
  }

  private var notes: [Place: Note] = [:]
  /// When the next one has been quiet for long enough; nil if there is none.
  private(set) var due: UInt64?

  var count: Int { notes.count }

  mutating func note(_ place: Place, told: NodeID?, now: UInt64, differed: Bool = false) {
    notes[place] = Note(told: told, at: now, differed: differed)
    if due == nil { due = now + Self.quietNanoseconds }
  }

  /// A record is about the name, under which `before` was.
  mutating func touch(_ place: Place, before: NodeID?, now: UInt64) {
    note(place, told: notes[place].map { $0.told } ?? before, now: now)
  }

  /// Takes out what has been quiet for long enough.
  mutating func takeQuiet(now: UInt64) -> [(Place, Note)] {
    let quiet = notes.filter { $0.value.at + Self.quietNanoseconds <= now }
    for place in quiet.keys { notes[place] = nil }
    due = notes.values.map(\.at).min().map { $0 + Self.quietNanoseconds }
    return quiet.map { ($0.key, $0.value) }
  }

  /// Puts back one that is to be looked at again, unless something was noted
  /// meanwhile.
  mutating func putBack(_ place: Place, _ note: Note, now: UInt64) {
    guard notes[place] == nil else { return }
    self.note(place, told: note.told, now: now, differed: note.differed)
  }
}

extension Worker {
  /// Compares names that have been quiet with the host; what differs twice is
  /// told as if it had just happened.
  func settle() {
    let now = monotonicNanoseconds()
    for (place, note) in engine.settling.withLock({ $0.takeQuiet(now: now) }) {
      guard mount.isKnown(place.directory) else { continue }
      settle(place, note)
    }
    releaseWhatEnded()
  }

  private func settle(_ place: Place, _ note: Settling.Note) {
    let found = mount.find(place)
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
    engine.count(\.settled)
    if let told = note.told { tellGone(place, told) }
    if let found { _ = ghostCreate(place, found) }
    if mount.entry(place) != found { invalidate(place, found) }
    engine.announce(place, found)
  }

  /// DELETE of a name, and of the object only if that is gone as well.
  private func tellGone(_ place: Place, _ told: NodeID) {
    let present = mount.entry(place)
    let isGone = mount.status(of: told)?.links ?? 0 == 0
    if isGone, present == nil || present == told, mount.retain(told) {
      _ = ghostRemove(place, told)
      return mount.release(told)
    }
    if present != nil { mount.invalidateEntry(place) }
    let phantom = mount.makePhantom(kind: mount.kind(of: told) ?? S_IFREG)
    _ = ghostRemove(place, phantom)
    mount.release(phantom)
  }

  /// What ended by the server's own closing has no record.
  private func releaseWhatEnded() {
    let now = monotonicNanoseconds()
    for (node, since) in held where now - since > 10 * Settling.quietNanoseconds {
      held[node] = now
      if mount.status(of: node) == nil { end(node) }
    }
  }
}
