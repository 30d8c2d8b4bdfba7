import CFanotify
import Glibc
import TestSupport
import Testing

@testable import HostWatch

/// The simulator against the kernel: the same histories on both, and the same
/// records in the same order.
///
/// HOSTWATCH_KERNEL_HISTORIES sets how many are replayed on each filesystem;
/// the seed of a failing one is in its message, and HOSTWATCH_SEED replays that
/// one alone.
@Suite(
  .serialized, .enabled(if: geteuid() == 0, "needs root: it mounts and marks filesystems"),
  .timeLimit(.minutes(30)))
struct KernelSimulatorTests {
  /// One history: the operations, reads of a part of the queue now and then,
  /// and a read of all of it at the end.
  struct Replay {
    let real: RealFilesystem
    let model: KernelSimulator
    let pid = getpid()
    var log: [String] = []
    var records = 0

    init(_ real: RealFilesystem, model: KernelSimulator = KernelSimulator()) throws {
      (self.real, self.model) = (real, model)
      try real.begin()
    }

    mutating func perform(_ operation: FileOperation) throws {
      // What the model cannot do is not done.
      guard model.allows(operation) else { return }
      log.append("\(operation)")
      try real.perform(operation, before: model)
      model.perform(operation, pid: pid)
      if case .create(let entry, _) = operation, let number = model.entries[entry] {
        try real.learn(number, at: entry, in: model)
      }
    }

    /// What is different about the next `count` records, or about what is left
    /// when there should be nothing.
    mutating func compare(_ count: Int) throws -> String? {
      let wanted = model.take(count)
      let isEnd = model.queue.isEmpty
      let got = try real.take(isEnd ? .max : count)
      records += got.count
      log.append("read \(wanted.count)")
      guard got != wanted else { return nil }
      let at = zip(got, wanted).enumerated().first { $0.element.0 != $0.element.1 }?.offset
      let first = at ?? min(got.count, wanted.count)
      func text(_ records: [KernelSimulator.Slot]) -> String {
        records.dropFirst(first).prefix(4).map { "\n    \($0)" }.joined()
      }
      return "\(got.count) and \(wanted.count) records, from \(first) on\n  kernel:\(text(got))\n"
        + "  simulator:\(text(wanted))\n  after:\n\(log.suffix(60).joined(separator: "\n"))"
    }
  }

  private static func number(_ variable: String) -> UInt64? {
    guard let text = unsafe getenv(variable) else { return nil }
    return unsafe UInt64(String(cString: text))
  }

  private struct Figures {
    var histories = 0
    var operations = 0
    var records = 0
    var merges = 0
  }

  private static func history(
    _ real: RealFilesystem, seed: UInt64, limit: Int, operations: Int, into figures: inout Figures
  ) throws -> String? {
    var generator = SeededGenerator(state: seed)
    let count = Int.random(in: 2...5, using: &generator)
    let names = ["a", "b", "c", "d", "e"].prefix(count).map { $0 }
    var replay = try Replay(real, model: KernelSimulator(limit: limit))
    defer {
      figures.histories += 1
      figures.records += replay.records
      figures.merges += replay.model.merges
    }
    for _ in 0..<operations {
      try replay.perform(.random(in: replay.model, names: names, using: &generator))
      figures.operations += 1
      guard Int.random(in: 0..<40, using: &generator) == 0 else { continue }
      let part = Int.random(in: 0...replay.model.queue.count, using: &generator)
      if let wrong = try replay.compare(part) { return wrong }
    }
    try replay.perform(.releaseAll)
    if let wrong = try replay.compare(replay.model.queue.count) { return wrong }
    try real.end()
    return nil
  }

  /// Replays histories; what went wrong, by seed.
  private static func replay(_ kind: String, limit: Int, operations: Int) throws -> [String] {
    let real = try RealFilesystem(kind)
    let count = number("HOSTWATCH_KERNEL_HISTORIES") ?? 60
    let first = UInt64.random(in: 0..<1 << 32)
    var figures = Figures()
    var wrong: [String] = []
    for seed in number("HOSTWATCH_SEED").map({ [$0] }) ?? (first..<first + count).map({ $0 }) {
      var failure: String?
      // What the kernel holds for its own purposes, a file that is being written back, may
      // end later than the model says: what is wrong is so each time.
      for _ in 0..<3 {
        failure = try history(
          real, seed: seed, limit: limit, operations: operations, into: &figures)
        if failure == nil { break }
      }
      if let failure { wrong.append("HOSTWATCH_SEED=\(seed) on \(kind): \(failure)") }
      if wrong.count == 3 { break }
    }
    print(
      "\(kind): \(figures.histories) histories from seed \(first), \(figures.operations) operations, \(figures.records) records, \(figures.merges) merged, \(wrong.count) wrong"
    )
    return wrong
  }

  @Test(arguments: ["ext4", "xfs", "btrfs", "tmpfs"])
  func randomHistoriesReadTheSame(_ kind: String) async throws {
    let wrong = try await TestThread.run {
      try QueueSysctl.shared { try Self.replay(kind, limit: .max, operations: 300) }
    }
    for one in wrong { Issue.record("\(one)") }
  }

  /// A queue of 20 events, which overflows again and again.
  @Test func aFullQueueDropsTheSame() async throws {
    let wrong = try await TestThread.run {
      try QueueSysctl.set(20) { try Self.replay("ext4", limit: 20, operations: 300) }
    }
    for one in wrong { Issue.record("\(one)") }
  }

  /// Changes of one object by names that share a bucket of the kernel's: the
  /// first is merged into again over 127 others, not over 128.
  @Test(arguments: ["ext4", "tmpfs"]) func theProbeEndsAt128(_ kind: String) async throws {
    let wrong = try await TestThread.run {
      try QueueSysctl.shared {
        let real = try RealFilesystem(kind)
        return try (126...129).compactMap { try Self.probe(real, over: $0) }
      }
    }
    for one in wrong { Issue.record("\(kind): \(one)") }
  }

  private static func probe(_ real: RealFilesystem, over others: Int) throws -> String? {
    // Directory, object and process are the same, so the names decide.
    let model = KernelSimulator { Int(NameHash.hash($0.name) % 128) }
    var replay = try Replay(real, model: model)
    func entry(_ name: String) -> KernelSimulator.Entry { .init(directory: 1, name: name) }
    let names = (0...).lazy.map { "n\($0 + 1_000_000)" }
      .filter { NameHash.hash($0) % 128 == 5 }.prefix(others + 1)
    let entries = names.map { entry($0) }
    try replay.perform(.create(entries[0], isDirectory: false))
    for other in entries.dropFirst() {
      try replay.perform(.link(entries[0], other))
      if let wrong = try replay.compare(model.queue.count) { return wrong }
    }
    _ = try replay.compare(model.queue.count)
    let before = model.merges
    for entry in entries { try replay.perform(.changeMode(entry)) }
    try replay.perform(.changeMode(entries[0]))
    let merged = model.merges - before
    guard merged == (others < 128 ? 1 : 0) else { return "the simulator merges over \(others)" }
    if let wrong = try replay.compare(model.queue.count) { return "over \(others): \(wrong)" }
    try real.end()
    return nil
  }
}

/// full_name_hash() of fs/namei.c with word access (x86-64, arm64), salted as
/// fanotify salts a name's: with its length.
enum NameHash {
  static func hash(_ name: String) -> UInt32 {
    let bytes = Array(name.utf8)
    let golden: UInt64 = 0x61C8_8646_80B5_83EB
    var (x, y) = (UInt64(0), UInt64(bytes.count))
    for start in stride(from: 0, to: bytes.count, by: 8) {
      let part = bytes[start..<min(start + 8, bytes.count)]
      let word = part.reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      x ^= word
      guard part.count == 8 else { break }
      y ^= x
      x = x << 12 | x >> 52
      x = x &+ y
      y = (y << 45 | y >> 19) &* 9
    }
    y ^= x &* golden
    y = y &* golden
    return UInt32(truncatingIfNeeded: y >> 32)
  }
}
