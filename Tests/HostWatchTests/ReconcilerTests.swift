import CFanotify
import CHostWatch
import Glibc
import TestSupport
import Testing

@testable import HostWatch

/// A client's model of the namespace, kept by the records alone (protocol,
/// rule 4).
final class ClientModel {
  typealias Entry = KernelSimulator.Entry
  var entries: [Entry: UInt32] = [:]
  var dead: Set<UInt32> = []
  /// Where a directory's last record has put it: what is below it is there.
  var places: [UInt32: Entry] = [:]
  var recordsAfterDeath: [UInt32] = []
  var log: [String] = []

  func apply(_ event: RemoteEvent) {
    let object = event.object.map { KernelSimulator.number($0) } ?? 0
    if dead.contains(object) && event.flags & UInt32(HW_CORRECTED) == 0 {
      // The kernel says it once for each name that somebody held; who has been
      // told is not told again (router).
      if event.mask.subtracting(.attrib) == .deleteSelf && event.directory == nil { return }
      recordsAfterDeath.append(object)
    }
    let from = entry(event.directory, event.name)
    let to = entry(event.newDirectory, event.newName)
    log.append(
      "\(event.mask.eventNames) \(event.flags) \(object) \(describe(from)) \(describe(to)) pid \(event.pid)"
    )
    if event.isDirectory {
      if event.flags & UInt32(HW_RECHECK) != 0 { places[object] = nil }
      if event.mask.contains(.rename) { places[object] = to }
      if event.mask.contains(.create) { places[object] = from }
      if event.mask.contains(.delete), places[object] == from { places[object] = nil }
    }
    if event.mask.contains(.rename), let from, let to {
      if entries[from] == object { entries[from] = nil }
      entries[to] = object
    } else if event.mask.contains(.create), let from {
      entries[from] = object
    } else if event.mask.contains(.delete), let from {
      if entries[from] == object { entries[from] = nil }
    }
    if event.mask.contains(.deleteSelf) { dead.insert(object) }
  }

  private func entry(_ directory: HandleView?, _ name: NameView) -> Entry? {
    guard let directory else { return nil }
    return Entry(
      directory: KernelSimulator.number(directory),
      name: String(decoding: name.bytes, as: UTF8.self))
  }

  private func describe(_ entry: Entry?) -> String {
    entry.map { "\($0.directory)/\($0.name)" } ?? "-"
  }
}

/// One random history: a filesystem, its queue, a reconciler, a client.
struct History {
  let simulator = KernelSimulator()
  let namespace: SimulatedNamespace
  let model = ClientModel()
  let reconciler: Reconciler
  var generator: SeededGenerator
  let names: [String]
  let writers: Int32

  init(seed: UInt64) {
    generator = SeededGenerator(state: seed)
    let count = Int.random(in: 2...5, using: &generator)
    names = ["a", "b", "c", "d", "e"].prefix(count).map { $0 }
    writers = Int32.random(in: 1...3, using: &generator)
    let model = model
    namespace = SimulatedNamespace(simulator)
    reconciler = Reconciler(
      seed: seed, namespace: namespace, emit: { model.apply($0) }, overflow: {},
      report: { Issue.record("\($0)") })
  }

  mutating func run(operations: Int) throws {
    var isOpen = false
    for _ in 0..<operations {
      operate()
      guard Int.random(in: 0..<12, using: &generator) == 0 else { continue }
      isOpen = try read(all: Bool.random(using: &generator)) || isOpen
    }
    // SYNC: the queue is read to its end, and nothing else happens.
    simulator.releaseAll(pid: 1)
    _ = try read(all: true)
    reconciler.releaseDeaths()
  }

  /// Reads all of the queue, or a part; operations may happen between the
  /// read and the settling. True when the window stayed open.
  private mutating func read(all: Bool) throws -> Bool {
    let count = simulator.queue.count
    let size = all ? count : Int.random(in: 0...count, using: &generator)
    let segment = reconciler.nextSegment()
    segment.fill(with: simulator.read(size))
    try reconciler.absorb(segment)
    if !all, Bool.random(using: &generator) { operate() }
    if simulator.queue.isEmpty && all {
      reconciler.close()
      return false
    }
    reconciler.keepOpen(
      remaining: simulator.queue.count, awaited: Bool.random(using: &generator) ? 0 : .max)
    return true
  }

  private mutating func operate() {
    let pid = Int32.random(in: 1...writers, using: &generator)
    let operation = FileOperation.random(in: simulator, names: names, using: &generator)
    simulator.perform(operation, pid: pid)
  }
}

@Suite struct ReconcilerTests {
  /// HOSTWATCH_HISTORIES sets how many are run; the seed of a failing one is
  /// in its message, and HOSTWATCH_SEED runs that one alone.
  @Test func everyHistoryConverges() throws {
    let count = number("HOSTWATCH_HISTORIES").map { Int($0) } ?? 3000
    let only = number("HOSTWATCH_SEED")
    var (merges, corrected, lookups, failures) = (0, UInt64(0), 0, 0)
    for seed in only.map({ [$0] }) ?? Array(1...UInt64(count)) {
      var history = History(seed: seed)
      try history.run(operations: 80)
      merges += history.simulator.merges
      lookups += history.namespace.lookups
      corrected += history.reconciler.counters.corrected
      let actual = history.simulator.entries
      let living = history.simulator.inodes.filter { $0.value.links > 0 }
      let misplaced = history.model.places.filter {
        living[$0.key] != nil && actual[$0.value] != $0.key
      }
      guard
        history.model.entries != actual || !history.model.recordsAfterDeath.isEmpty
          || !misplaced.isEmpty
      else { continue }
      failures += 1
      if failures <= 3 {
        if only != nil { print(history.model.log.joined(separator: "\n")) }
        Issue.record(
          "seed \(seed): \(difference(history.model.entries, actual)); after death: \(history.model.recordsAfterDeath), misplaced: \(misplaced)"
        )
      }
    }
    #expect(failures == 0, "of \(count) histories")
    // The trap was sprung: the kernel merged, and corrections were needed.
    print("histories \(count): merged \(merges), lookups \(lookups), corrected \(corrected)")
    if only == nil { #expect(merges > 0 && corrected > 0) }
  }

  private func number(_ variable: String) -> UInt64? {
    guard let text = unsafe getenv(variable) else { return nil }
    return unsafe UInt64(String(cString: text))
  }

  private func difference(
    _ model: [KernelSimulator.Entry: UInt32], _ actual: [KernelSimulator.Entry: UInt32]
  ) -> String {
    Set(model.keys).union(actual.keys).filter { model[$0] != actual[$0] }.map {
      "\($0.directory)/\($0.name): model \(model[$0] ?? 0), filesystem \(actual[$0] ?? 0)"
    }.sorted().joined(separator: "; ")
  }

  private func run(_ body: (KernelSimulator) -> Void) throws -> (
    KernelSimulator, ClientModel, Reconciler
  ) {
    let (simulator, model, reconciler, _) = try runCounting(body)
    return (simulator, model, reconciler)
  }

  /// The same, and how many lookups it took.
  private func runCounting(_ body: (KernelSimulator) -> Void) throws -> (
    KernelSimulator, ClientModel, Reconciler, lookups: Int
  ) {
    let (simulator, model) = (KernelSimulator(), ClientModel())
    let namespace = SimulatedNamespace(simulator)
    let reconciler = Reconciler(
      seed: 1, namespace: namespace, emit: { model.apply($0) }, overflow: {},
      report: { Issue.record("\($0)") })
    body(simulator)
    let segment = reconciler.nextSegment()
    segment.fill(with: simulator.read(simulator.queue.count))
    try reconciler.absorb(segment)
    reconciler.close()
    return (simulator, model, reconciler, namespace.lookups)
  }

  private func entry(_ name: String) -> KernelSimulator.Entry { .init(directory: 1, name: name) }

  @Test func aStormOfNewFilesCostsNoLookup() throws {
    let (simulator, model, reconciler, lookups) = try runCounting { simulator in
      for number in 0..<200 {
        simulator.create(entry("t\(number)"), isDirectory: false, pid: 1)
        simulator.write(entry("t\(number)"), pid: 1)
        simulator.rename(entry("t\(number)"), entry("f\(number)"), pid: 1)
        if number % 2 == 0 { simulator.remove(entry("f\(number)"), pid: 1) }
      }
    }
    #expect(model.entries == simulator.entries)
    #expect(lookups == 0)
    #expect(reconciler.counters.corrected == 0)
  }

  @Test func aLockFileMadeAndRenamedAgainAndAgainCostsNoLookup() throws {
    let (simulator, model, _, lookups) = try runCounting { simulator in
      for _ in 0..<50 {
        simulator.create(entry("index.lock"), isDirectory: false, pid: 1)
        simulator.write(entry("index.lock"), pid: 1)
        simulator.rename(entry("index.lock"), entry("index"), pid: 1)
      }
    }
    #expect(model.entries == simulator.entries)
    #expect(lookups == 0)
  }

  /// A queue that never runs empty is closed in parts, at a cost in proportion to the
  /// records, and what somebody waits for as soon as it can be.
  @Test func aLongBacklogCostsInProportion() throws {
    let (simulator, model) = (KernelSimulator(), ClientModel())
    let reconciler = Reconciler(
      seed: 1, namespace: SimulatedNamespace(simulator), emit: { model.apply($0) }, overflow: {},
      report: { Issue.record("\($0)") })
    let (backlog, part, awaited) = (3000, 50, UInt64(500))
    for number in 0..<backlog {
      simulator.create(entry("b\(number)"), isDirectory: false, pid: 1)
    }
    var closedInTime: Bool?
    for turn in 0..<200 {
      let segment = reconciler.nextSegment()
      segment.fill(with: simulator.read(part))
      try reconciler.absorb(segment)
      for number in 0..<part {
        simulator.create(entry("t\(turn).\(number)"), isDirectory: false, pid: 1)
      }
      reconciler.keepOpen(
        remaining: simulator.queue.count, awaited: awaited)
      // What is closed now was read before what has been read since was queued.
      if closedInTime == nil, reconciler.counters.records >= awaited + UInt64(backlog + part) {
        closedInTime = reconciler.closedRecords >= awaited
      }
    }
    #expect(closedInTime == true)
    #expect(reconciler.notes <= 4 * reconciler.counters.records)
    while !simulator.queue.isEmpty {
      let segment = reconciler.nextSegment()
      segment.fill(with: simulator.read(part))
      try reconciler.absorb(segment)
    }
    reconciler.close()
    #expect(model.entries == simulator.entries)
  }

  /// A kernel that does not say how many events wait: nothing counts as closed, not even what
  /// could be from later answers, before the queue has been empty.
  @Test func whereItIsNotKnownHowManyWaitAllIsKept() throws {
    let (simulator, model) = (KernelSimulator(), ClientModel())
    let reconciler = Reconciler(
      seed: 1, namespace: SimulatedNamespace(simulator), emit: { model.apply($0) }, overflow: {},
      report: { Issue.record("\($0)") })
    for turn in 0..<20 {
      for number in 0..<50 {
        simulator.create(entry("\(turn).\(number)"), isDirectory: false, pid: 1)
      }
      let segment = reconciler.nextSegment()
      segment.fill(with: simulator.read(40))
      try reconciler.absorb(segment)
      reconciler.keepOpen(remaining: turn == 0 ? nil : simulator.queue.count, awaited: .max)
      #expect(reconciler.closedRecords == 0)
    }
    while !simulator.queue.isEmpty {
      let segment = reconciler.nextSegment()
      segment.fill(with: simulator.read(40))
      try reconciler.absorb(segment)
    }
    reconciler.close()
    #expect(reconciler.closedRecords == reconciler.counters.records)
    #expect(model.entries == simulator.entries)
  }

  /// What a long window keeps counts, beside the records themselves, and is given back.
  @Test func theMemoryOfALongWindowIsCountedAndGivenBack() throws {
    let (simulator, reads, part) = (KernelSimulator(), 75, 2000)
    let reconciler = Reconciler(
      seed: 1, namespace: SimulatedNamespace(simulator), emit: { _ in }, overflow: {},
      report: { Issue.record("\($0)") })
    for turn in 0..<reads {
      for number in 0..<part {
        simulator.create(entry("\(turn).\(number)"), isDirectory: false, pid: 1)
      }
      let segment = reconciler.nextSegment()
      segment.fill(with: simulator.read(part))
      try reconciler.absorb(segment)
      reconciler.keepOpen(remaining: 1 << 30, awaited: 0)
    }
    let records = reads * part
    let noted =
      MemoryLayout<KernelEvent>.stride + MemoryLayout<ReconcilerWindow.Object>.stride
      + MemoryLayout<ReconcilerWindow.Touch>.stride
    #expect(reconciler.retainedBytes >= reads * EventSegment.capacity + records * noted)
    #expect(reconciler.retainedBytes <= reads * EventSegment.capacity + records * (3 * noted + 16))
    reconciler.close()
    #expect(reconciler.retainedBytes < 1 << 20)
  }

  @Test func aRenameBackAndForthIsSettledByALookup() throws {
    let (simulator, model, reconciler) = try run { simulator in
      simulator.create(entry("a"), isDirectory: false, pid: 1)
      simulator.rename(entry("a"), entry("b"), pid: 1)
      simulator.rename(entry("b"), entry("a"), pid: 1)
      simulator.rename(entry("a"), entry("b"), pid: 1)
    }
    #expect(simulator.merges == 1)
    #expect(model.entries == simulator.entries)
    #expect(reconciler.counters.corrected == 1)
    #expect(model.log.last?.contains("rename") == true)
  }

  /// The entries come out right by themselves, but the last record of the
  /// directory names a place where it is not.
  @Test func aDirectorysLastRecordSaysWhereItIs() throws {
    let (simulator, model, _) = try run { simulator in
      simulator.create(entry("a"), isDirectory: true, pid: 1)
      simulator.rename(entry("a"), entry("o"), pid: 1)
      simulator.rename(entry("o"), entry("a"), pid: 1)
      simulator.rename(entry("a"), entry("o"), pid: 1)
      simulator.rename(entry("o"), entry("q"), pid: 1)
      simulator.rename(entry("q"), entry("o"), pid: 1)
      simulator.rename(entry("o"), entry("a"), pid: 1)
      simulator.create(entry("o"), isDirectory: false, pid: 1)
    }
    #expect(model.entries == simulator.entries)
    let directory = try #require(simulator.entries[entry("a")])
    #expect(model.places[directory] == entry("a"))
    #expect(model.log.last?.contains("create") == true)
  }

  @Test func aReplacementIsMarkedAndAnUnlinkBehindARenameIsNot() throws {
    let (_, replaced, _) = try run { simulator in
      simulator.create(entry("a"), isDirectory: false, pid: 1)
      simulator.create(entry("b"), isDirectory: false, pid: 1)
      simulator.rename(entry("a"), entry("b"), pid: 1)
    }
    #expect(replaced.log.contains { $0.contains("rename") && $0.contains(" \(HW_REPLACED) ") })
    let (_, plain, _) = try run { simulator in
      simulator.create(entry("a"), isDirectory: false, pid: 1)
      simulator.create(entry("x"), isDirectory: false, pid: 1)
      simulator.rename(entry("a"), entry("b"), pid: 1)
      simulator.remove(entry("x"), pid: 1)
    }
    #expect(!plain.log.contains { $0.contains("rename") && $0.contains(" \(HW_REPLACED) ") })
  }
}
