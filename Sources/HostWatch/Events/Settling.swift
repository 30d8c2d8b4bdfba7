import CHostWatch

/// Settling: what the filesystem is asked, and what follows from the answer.
/// The theory is at the head of Reconciler.swift.
extension Reconciler {
  /// What a model holds at an entry, as far as this window's events tell.
  private struct Holding {
    /// The object, or nil for none.
    var object: Int?
    var touches = 0
    /// A touch with an event, from which directory and name can be had.
    var touch: ReconcilerWindow.Touch
    var needsLookup = false
    /// Something about it is new since the last settling.
    var isFresh = false
  }

  func settle() {
    defer { window.markSettled() }
    guard !window.suspects.isEmpty else { return }
    var holdings = doubtfulEntries()
    guard !holdings.isEmpty else { return }
    replay(into: &holdings)
    correct(
      holdings.filter { $0.value.isFresh && ($0.value.touches >= 2 || !$0.value.needsLookup) })
  }

  /// The entries touched by objects of which records may stand for several
  /// operations.
  private func doubtfulEntries() -> [UInt64: Holding] {
    var entries: [UInt64: Holding] = [:]
    for suspect in window.suspects {
      let flags = window.objects[Int(suspect)].flags
      let isDead = flags.contains(.dead)
      if isDead && !flags.contains(.revisited) && !window.wasDisplaced(Int(suspect)) { continue }
      window.forEachTouch(of: Int(suspect)) { touch in
        guard touch.event != ReconcilerWindow.noEvent else { return }
        var holding = entries[touch.entry] ?? Holding(touch: touch)
        if !isDead { holding.needsLookup = true }
        if flags.contains(.dirty) { holding.isFresh = true }
        entries[touch.entry] = holding
      }
    }
    return entries
  }

  /// Applies the window's touches, in the order in which they were passed on.
  private func replay(into holdings: inout [UInt64: Holding]) {
    for (index, touch) in window.touches.enumerated() {
      guard var holding = holdings[touch.entry] else { continue }
      if touch.event != ReconcilerWindow.noEvent {
        holding.touches += 1
        // Another object's record may be older than what was settled here.
        if index >= window.settledTouches { holding.isFresh = true }
      }
      if touch.sets {
        holding.object = Int(touch.object)
      } else if holding.object == Int(touch.object) {
        holding.object = nil
      }
      holdings[touch.entry] = holding
    }
  }

  private struct Difference {
    var entry: UInt64
    var touch: ReconcilerWindow.Touch
    var held: Int?
    var actual: (object: Int, isDirectory: Bool)?
  }

  private func correct(_ holdings: [UInt64: Holding]) {
    var differences: [Difference] = []
    var found: [UInt64: Found] = [:]
    for (entry, holding) in holdings.sorted(by: { $0.value.touch.event < $1.value.touch.event }) {
      guard let difference = difference(entry, holding, &found) else { continue }
      differences.append(difference)
    }
    defer { reassertDirectories(found) }
    var holders: [Int?: [Int]]?
    // What an entry must hold, first: a move takes it from where it was wrong.
    for index in differences.indices {
      guard let actual = differences[index].actual else { continue }
      // To compare all with all takes too long where there are many.
      if holders == nil {
        holders = Dictionary(grouping: differences.indices.reversed()) { differences[$0].held }
      }
      // The first that holds it still. One that is to hold it would be no difference.
      while let last = holders?[actual.object]?.last, differences[last].held != actual.object {
        holders?[actual.object]?.removeLast()
      }
      let source = holders?[actual.object]?.last
      if let source, !window.objects[actual.object].flags.contains(.linked) {
        emitMove(from: differences[source], to: differences[index], actual)
        differences[source].held = nil
      } else {
        emitEntry(.create, differences[index], actual.object, actual.isDirectory)
      }
      differences[index].held = nil
    }
    for difference in differences where difference.actual == nil {
      guard let held = difference.held else { continue }
      let isDirectory = window.objects[held].flags.contains(.isDirectory)
      if isDirectory && !window.objects[held].flags.contains(.dead)
        && emitRelocation(held, difference)
      {
        continue
      }
      emitEntry(.delete, difference, held, isDirectory)
      if isDirectory && !window.objects[held].flags.contains(.dead) { emitRecheck(held) }
    }
  }

  /// What a lookup has shown of an entry.
  private struct Found {
    /// The object, or nil for none or for one that came later.
    var object: Int?
    var touch: ReconcilerWindow.Touch
  }

  /// A directory's last record must say where it is, even where a model's entries
  /// are right: what is below it goes with that record.
  private func reassertDirectories(_ found: [UInt64: Found]) {
    var places: [Int: (entry: UInt64, touch: ReconcilerWindow.Touch)]?
    for suspect in window.suspects {
      let object = window.objects[Int(suspect)]
      guard object.flags.isSuperset(of: [.isDirectory, .revisited, .dirty]),
        !object.flags.contains(.dead), object.last >= 0
      else { continue }
      let last = window.touches[Int(object.last)]
      guard let shown = found[last.entry], !(last.sets && shown.object == Int(suspect)) else {
        continue
      }
      if places == nil {
        places = [:]
        for (entry, place) in found {
          if let object = place.object { places?[object] = (entry, place.touch) }
        }
      }
      if let place = places?[Int(suspect)] {
        emitEntry(
          .create, Difference(entry: place.entry, touch: place.touch, held: nil), Int(suspect), true
        )
      } else if last.sets {
        emitRecheck(Int(suspect))
      }
    }
  }

  /// Compares what a model holds with what is there; nil when it is the same.
  private func difference(
    _ entry: UInt64, _ holding: Holding, _ seen: inout [UInt64: Found]
  ) -> Difference? {
    var difference = Difference(entry: entry, touch: holding.touch, held: holding.object)
    if holding.needsLookup {
      let place = place(of: holding.touch)
      counters.lookups += 1
      seen[entry] = Found(object: nil, touch: holding.touch)
      do throws(SystemError) {
        if let found = try namespace.lookup(place.name, in: place.directory) {
          // An object of which the window has no record came there later: its
          // own record is in the queue and will say so.
          let hash = found.handle.withView { $0.hash(seed: seed) }
          guard let object = window.find(hash) else { return nil }
          difference.actual = (object, found.isDirectory)
          seen[entry]?.object = object
        }
      } catch {
        seen[entry] = nil
        report(error)
        return nil
      }
    } else {
      guard let held = holding.object, window.objects[held].flags.contains(.dead) else {
        return nil
      }
    }
    return difference.actual?.object == difference.held ? nil : difference
  }

  private func place(of touch: ReconcilerWindow.Touch) -> (directory: FileHandle, name: [UInt8]) {
    let event = events[Int(touch.event)]
    let segment = views[Int(event.segment)]
    let handle = segment.handle(touch.isNew ? event.newDirectory : event.directory)
    let name =
      touch.isNew
      ? segment.name(event.newName, event.newNameSize) : segment.name(event.name, event.nameSize)
    // A touch is made only where the record has the directory.
    guard let handle else { preconditionFailure("a touch without a directory") }
    return (FileHandle(handle), name.bytes)
  }

  private func handle(ofObject object: Int) -> FileHandle {
    // An object's event has its handle: that is how it was found.
    guard let view = self.object(events[Int(window.objects[object].event)]) else {
      preconditionFailure("an object without a handle")
    }
    return FileHandle(view)
  }

  // MARK: Corrections

  private func emitEntry(
    _ operation: EventMask, _ difference: Difference, _ object: Int, _ isDirectory: Bool
  ) {
    let place = place(of: difference.touch)
    note(object, difference.entry, sets: operation == .create, isDirectory)
    emitCorrection(
      operation.union(isDirectory ? .isDirectory : []), object, place, to: nil)
  }

  private func emitMove(
    from: Difference, to: Difference, _ actual: (object: Int, isDirectory: Bool)
  ) {
    note(actual.object, from.entry, sets: false, actual.isDirectory)
    note(actual.object, to.entry, sets: true, actual.isDirectory)
    emitCorrection(
      EventMask.rename.union(actual.isDirectory ? .isDirectory : []), actual.object,
      place(of: from.touch), to: place(of: to.touch))
  }

  /// A directory that lives somewhere else, it is not known where.
  private func emitRecheck(_ object: Int) {
    handle(ofObject: object).withView { view in
      emit(RemoteEvent(mask: .isDirectory, flags: UInt32(HW_RECHECK), object: view))
    }
  }

  /// A living directory that is not where a model has it has been moved by
  /// something that is still queued: it is shown where it is, since for a
  /// directory to vanish and to come again is not the same. False where it is gone.
  private func emitRelocation(_ object: Int, _ difference: Difference) -> Bool {
    let location: (parent: FileHandle, name: [UInt8])
    do throws(SystemError) {
      guard let found = try namespace.location(ofDirectory: handle(ofObject: object)) else {
        return false
      }
      location = found
    } catch {
      // Sessions look again at what they hold.
      report(error)
      return true
    }
    note(object, difference.entry, sets: false, true)
    emitCorrection(
      [.rename, .isDirectory], object, place(of: difference.touch),
      to: (location.parent, location.name))
    return true
  }

  private func note(_ object: Int, _ entry: UInt64, sets: Bool, _ isDirectory: Bool) {
    window.add(
      .init(
        entry: entry, object: UInt32(object), event: ReconcilerWindow.noEvent, sets: sets,
        isNew: false), isDirectory: isDirectory)
  }

  private func emitCorrection(
    _ mask: EventMask, _ object: Int, _ place: (directory: FileHandle, name: [UInt8]),
    to newPlace: (directory: FileHandle, name: [UInt8])?
  ) {
    counters.corrected += 1
    var event = RemoteEvent(mask: mask, flags: UInt32(HW_CORRECTED))
    handle(ofObject: object).withView { objectView in
      place.directory.withView { directoryView in
        NameView.with(place.name) { name in
          event.object = objectView
          event.directory = directoryView
          event.name = name
          guard let newPlace else { return emit(event) }
          newPlace.directory.withView { newDirectoryView in
            NameView.with(newPlace.name) { newName in
              event.newDirectory = newDirectoryView
              event.newName = newName
              emit(event)
            }
          }
        }
      }
    }
  }
}
