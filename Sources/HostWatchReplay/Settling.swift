import CReplay
import Glibc
import HostWatch

/// Names that were touched, with what watchers were last told of them, until
/// they are compared with the host.
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

  mutating func note(_ place: Place, told: NodeID?, now: UInt64, differed: Bool = false) {
    notes[place] = Note(told: told, at: now, differed: differed)
    if due == nil { due = now + Self.quietNanoseconds }
  }

  mutating func guestChanged(_ place: Place, to node: NodeID?) {
    guard !notes.isEmpty, notes[place] != nil else { return }
    notes[place] = Note(told: node, at: monotonicNanoseconds())
  }

  /// Takes out what has been quiet for long enough.
  mutating func takeQuiet(now: UInt64) -> [(Place, Note)] {
    let quiet = notes.filter { $0.value.at + Self.quietNanoseconds <= now }
    for place in quiet.keys { notes[place] = nil }
    due = notes.values.map(\.at).min().map { $0 + Self.quietNanoseconds }
    return quiet.map { ($0.key, $0.value) }
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
    if found == note.told {
      if let present = mount.entry(place), present != found { invalidate(place, found) }
      return
    }
    let isNamed = engine.queue.withLock { $0.isNamed(place) }
    guard note.differed, !isNamed else {
      // Its record may be on the way.
      let now = monotonicNanoseconds()
      engine.settling.withLock { settling in
        settling.note(place, told: note.told, now: now, differed: true)
      }
      return
    }
    engine.count(\.settled)
    if let told = note.told, mount.retain(told) {
      let present = mount.entry(place)
      if present == nil || present == told {
        let lives = mount.status(of: told)?.links ?? 0 > 0
        if mount.kind(of: told) == S_IFDIR, lives {
          setAside(place, told)
        } else {
          _ = ghostRemove(place, told)
        }
      }
      mount.release(told)
    }
    if let found { _ = ghostCreate(place, found) }
    if mount.entry(place) != found { invalidate(place, found) }
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
