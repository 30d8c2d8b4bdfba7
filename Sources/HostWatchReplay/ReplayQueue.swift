import HostWatch

/// The records that wait to be replayed, in the order of the host, with an index
/// of what becomes of each name in them.
struct ReplayQueue: Sendable {
  typealias Record = HostWatchClient.Record

  struct Item: Sendable {
    var record: Record
    /// CLOCK_MONOTONIC, when it was put in.
    var arrived: UInt64
  }

  private var items: [Item?] = []
  private var head = 0
  /// The number of items[0].
  private var base: UInt64 = 0
  /// The numbers of the waiting records that name a place, in order.
  private var naming: [Place: [UInt64]] = [:]
  /// How many DELETEs of a node wait.
  private var deletions: [NodeID: Int] = [:]
  private(set) var count = 0
  var isClosed = false
  /// What was taken out last is still being worked on.
  var isBusy = false
  /// The replayer with this pid has ended.
  var replayerEnded: Int32?
  /// Something else than a record is to be looked at.
  var isDisturbed = false
  /// Directories that the mount's own users have removed: the replayer may have them open.
  var removed: [NodeID] = []

  /// Something is to be done that goes before settling.
  var hasWork: Bool { count > 0 || isClosed || !removed.isEmpty || replayerEnded != nil }

  mutating func append(_ record: Record, arrived: UInt64) {
    let number = base + UInt64(items.count)
    items.append(Item(record: record, arrived: arrived))
    count += 1
    for place in record.places { naming[place, default: []].append(number) }
    if record.mask.contains(.delete), record.node != .none {
      deletions[record.node, default: 0] += 1
    }
  }

  mutating func popFirst() -> Item? {
    while head < items.count {
      let number = base + UInt64(head)
      defer {
        head += 1
        compact()
      }
      if let item = items[head] {
        items[head] = nil
        forget(item.record, number)
        return item
      }
    }
    return nil
  }

  mutating func removeAll() -> [Item] {
    defer {
      let kept = (isClosed, replayerEnded, isDisturbed, removed)
      let next = base + UInt64(items.count)
      self = ReplayQueue()
      (isClosed, replayerEnded, isDisturbed, removed) = kept
      base = next
    }
    return items[head...].compactMap { $0 }
  }

  /// The next record, which stays.
  var first: Record? { first { _ in true } }

  /// The first of the next few records that satisfies, which stays.
  func first(within: Int = 1, where satisfies: (Record) -> Bool) -> Record? {
    guard let at = index(within: within, where: satisfies) else { return nil }
    return items[at]?.record
  }

  /// Takes the first of the next few records that satisfies.
  mutating func take(within: Int, where satisfies: (Record) -> Bool) -> Record? {
    guard let at = index(within: within, where: satisfies), let item = items[at] else { return nil }
    items[at] = nil
    forget(item.record, base + UInt64(at))
    return item.record
  }

  private func index(within: Int, where satisfies: (Record) -> Bool) -> Int? {
    var left = within
    var at = head
    while at < items.count, left > 0 {
      if let item = items[at] {
        if satisfies(item.record) { return at }
        left -= 1
      }
      at += 1
    }
    return nil
  }

  /// What the waiting records say becomes of the object that has just come to
  /// be at `place`.
  enum Fate: Equatable {
    /// It is registered meanwhile.
    case known(NodeID)
    /// It has this name, as far as the records go.
    case stays(Place)
    /// It was removed, displaced, or went where nothing is known.
    case gone
  }

  func fate(of place: Place) -> Fate {
    var place = place
    var after: UInt64 = 0
    for _ in 0..<32 {
      var moved: Place?
      for number in naming[place] ?? [] where number >= after {
        guard let record = items[Int(number - base)]?.record else { continue }
        let isSource = record.source == place
        if record.mask.contains(.rename) {
          guard isSource else { return .gone }  // something was put over it
          if record.node != .none { return .known(record.node) }
          guard let destination = record.destination else { return .gone }
          moved = destination
          after = number + 1
          break
        }
        if record.mask.contains(.create) { return .gone }
        if record.node != .none { return .known(record.node) }
        if record.mask.contains(.delete) { return .gone }
      }
      guard let moved else { return .stays(place) }
      place = moved
    }
    return .gone
  }

  func pendingDeletions(of node: NodeID) -> Int { deletions[node] ?? 0 }

  func isNamed(_ place: Place) -> Bool { naming[place] != nil }

  private mutating func forget(_ record: Record, _ number: UInt64) {
    count -= 1
    for place in record.places {
      guard var numbers = naming[place] else { continue }
      if let at = numbers.firstIndex(of: number) { numbers.remove(at: at) }
      naming[place] = numbers.isEmpty ? nil : numbers
    }
    if record.mask.contains(.delete), record.node != .none {
      let left = (deletions[record.node] ?? 1) - 1
      deletions[record.node] = left > 0 ? left : nil
    }
  }

  private mutating func compact() {
    guard head == items.count || head >= 4_096 else { return }
    items.removeFirst(head)
    base += UInt64(head)
    head = 0
  }
}

extension HostWatchClient.Record {
  /// The name that is left or, for other records, that is meant.
  var source: Place? {
    directory == .none || name.isEmpty ? nil : Place(directory, name.bytes)
  }

  /// The name that a RENAME leads to.
  var destination: Place? {
    newDirectory == .none || newName.isEmpty ? nil : Place(newDirectory, newName.bytes)
  }

  var places: [Place] {
    guard let source else { return destination.map { [$0] } ?? [] }
    guard let destination, destination != source else { return [source] }
    return [source, destination]
  }

  /// About the object alone: its link count, or its end.
  var isOfObjectAlone: Bool { directory == .none && !mask.contains(.rename) }
}
