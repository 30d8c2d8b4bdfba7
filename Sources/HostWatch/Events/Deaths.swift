/// Deaths: DELETE_SELF is an object's last record. Why it waits is said at the
/// head of Reconciler.swift.
extension Reconciler {
  struct HeldDeath {
    var object: FileHandle
    var mask: EventMask
    var pid: Int32
    /// The windows' clock when it was read.
    var since: UInt32
  }

  /// How long a DELETE is waited for. The kernel queues it a few instructions
  /// after the DELETE_SELF.
  static let deathMilliseconds: UInt32 = 10

  var isHoldingDeaths: Bool { !held.isEmpty }

  /// Passes on the deaths whose DELETE did not come: the names had gone before.
  func releaseDeaths() {
    let all = held
    held = []
    for death in all { emit(death) }
  }

  /// Passes on, or holds, the deaths of the events before `end`.
  func emitDeaths(before end: Int) {
    // In place: the array's memory serves the next batch.
    var kept = 0
    for position in deaths.indices {
      let index = deaths[position]
      guard index < end else {
        deaths[kept] = index
        kept += 1
        continue
      }
      let event = events[index]
      guard let object = object(event) else { continue }
      let death = HeldDeath(
        object: FileHandle(object), mask: event.events.subtracting(.namespace), pid: event.pid,
        since: now)
      if isNameless(object, event: index) { emit(death) } else { held.append(death) }
    }
    deaths.removeLast(deaths.count - kept)
  }

  /// Whether the window has the record that took the object's name away.
  private func isNameless(_ handle: HandleView, event: Int) -> Bool {
    window.hasLostName(window.object(handle.hash(seed: seed), event: UInt32(event)))
  }

  /// Passes on the deaths of earlier windows whose DELETE is in this one, or
  /// does not come.
  func emitHeld() {
    guard !held.isEmpty else { return }
    let all = held
    held = []
    for death in all {
      let object = window.find(death.object.withView { $0.hash(seed: seed) })
      let isNameless = object.map { window.hasLostName($0) } ?? false
      if isNameless || now &- death.since >= Self.deathMilliseconds {
        emit(death)
      } else {
        held.append(death)
      }
    }
  }

  /// Of a directory it is an event on the directory itself.
  private func emit(_ death: HeldDeath) {
    death.object.withView { view in
      emit(
        RemoteEvent(
          mask: death.mask, pid: death.pid, object: view,
          directory: death.mask.contains(.isDirectory) ? view : nil))
    }
  }
}
