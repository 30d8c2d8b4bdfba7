// SPDX-License-Identifier: Apache-2.0
import CFanotify
import CHostWatch
import Glibc

@testable import HostWatch

/// A stream of kernel records, as `reference record` wrote it.
public struct Recording {
  let bytes: [UInt8]
  public let events: Int

  /// - Parameter name: churn, cycle or append; see end-to-end/storm.c.
  public init(_ name: String) {
    let path = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
    guard let file = fopen("/\(path)/Recordings/\(name).bin", "r") else {
      fatalError("no recording \(name)")
    }
    defer { fclose(file) }
    var bytes = [UInt8](repeating: 0, count: EventSegment.capacity)
    bytes.removeLast(bytes.count - fread(&bytes, 1, bytes.count, file))
    self.bytes = bytes
    var events: [KernelEvent] = []
    let segment = EventSegment()
    segment.fill(with: bytes)
    guard (try? segment.parse(into: &events, segment: 0)) != nil else {
      fatalError("the recording \(name) is damaged")
    }
    self.events = events.count
  }
}

/// A filesystem on which every name that is asked for is gone.
private final class NothingThere: Namespace {
  func lookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError)
    -> (handle: FileHandle, isDirectory: Bool)?
  { nil }

  func cachedLookup(_ name: [UInt8], in directory: FileHandle) -> FileHandle? { nil }

  func location(ofDirectory directory: FileHandle) -> (parent: FileHandle, name: [UInt8])? { nil }
}

/// Recorded kernel bytes → packets of NODES sessions: everything in user space
/// but the system calls.
public final class Pipeline {
  static let seed: UInt64 = 0x6a09_e667_f3bc_c908
  let router = Router(seed: Pipeline.seed)
  let reconciler: Reconciler
  private let recording: Recording
  private var states: [UnsafeMutablePointer<SessionState>] = []
  private let queued = UnsafeMutablePointer<Int>.allocate(capacity: 1)
  private let pieces = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 64)
  public private(set) var packets = 0

  /// The first of `sessions` has registered the directories of the recording,
  /// the others one directory that nothing happens in.
  public init(_ recording: Recording, sessions: Int = 1) {
    self.recording = recording
    queued.initialize(to: 0)
    let router = self.router
    reconciler = Reconciler(
      seed: Pipeline.seed, namespace: NothingThere(), emit: { router.route($0) },
      anticipate: { router.anticipate(removalOf: $0, from: $1) },
      prefetch: { router.prefetch($0, isNear: $1) }, overflow: {}, report: { _ in })
    for number in 0..<sessions {
      let state = UnsafeMutablePointer<SessionState>.allocate(capacity: 1)
      state.initialize(
        to: SessionState(
          id: UInt64(number + 1), isTree: false, events: .defaultEvents, options: 0, ownPID: 1,
          queue: PacketQueue(
            limit: 4 << 20, maxPacket: 65536, userQueued: queued, userLimit: 64 << 20)))
      states.append(state)
      let slot = router.add(state, scope: nil)
      if number == 0 {
        registerDirectories(slot)
      } else {
        _ = router.nodes.insert(
          NodeSet.handle(0), id: .root, session: slot, interest: .defaultEvents)
      }
    }
  }

  private func registerDirectories(_ slot: UInt32) {
    var events: [KernelEvent] = []
    let segment = EventSegment()
    segment.fill(with: recording.bytes)
    try? segment.parse(into: &events, segment: 0)
    var seen: Set<FileHandle> = []
    for event in events {
      guard let view = segment.view.handle(event.directory), seen.insert(FileHandle(view)).inserted
      else { continue }
      _ = router.nodes.insert(
        FileHandle(view), id: NodeID(nodeid: UInt64(seen.count) + 1, generation: 1),
        session: slot, interest: .defaultEvents)
    }
  }

  /// A buffer with the recording, as a read would have filled it.
  public func load() -> AnyObject {
    let segment = reconciler.nextSegment()
    segment.fill(with: recording.bytes)
    return segment
  }

  /// One batch, as WatchedFilesystem does it, but for reading and sending.
  public func run(_ loaded: AnyObject) {
    guard let segment = loaded as? EventSegment, (try? reconciler.absorb(segment)) != nil else {
      fatalError("the recording is damaged")
    }
    router.now &+= 1000
    reconciler.now = router.now
    reconciler.close()
    for slot in router.takeReady() {
      while !states[Int(slot)].pointee.queue.isEmpty {
        let count = states[Int(slot)].pointee.queue.gather(pieces)
        states[Int(slot)].pointee.queue.drop(count)
        packets += count
      }
    }
  }

  public var delivered: UInt64 { router.delivered }
}

/// The record parser alone.
public final class Parser {
  private var events: [KernelEvent] = []
  private let segment = EventSegment()

  public init(_ recording: Recording) { segment.fill(with: recording.bytes) }

  public func run() {
    events.removeAll(keepingCapacity: true)
    try? segment.parse(into: &events, segment: 0)
  }
}

/// The encoder alone: records into a queue, and out of it.
public final class Encoder {
  private var state: SessionState
  private let queued = UnsafeMutablePointer<Int>.allocate(capacity: 1)
  private let pieces = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 64)
  private let name: [UInt8] = Array("some-file-name.txt".utf8)

  public init() {
    queued.initialize(to: 0)
    state = SessionState(
      id: 1, isTree: false, events: .defaultEvents, options: 0, ownPID: 1,
      queue: PacketQueue(
        limit: 4 << 20, maxPacket: 65536, userQueued: queued, userLimit: 64 << 20))
  }

  public func run(_ count: Int) {
    NameView.with(name) { view in
      for index in 0..<count {
        RecordEncoder.write(
          OutgoingRecord(
            mask: .create, directory: NodeID(nodeid: UInt64(index), generation: 1), name: view),
          to: &state)
      }
    }
    while !state.queue.isEmpty { state.queue.drop(state.queue.gather(pieces)) }
  }
}

/// A table of registered nodes.
public final class NodeSet {
  private var table = NodeTable(seed: Pipeline.seed)
  private var identities = IdentityIndex(seed: Pipeline.seed)
  private let order: [UInt32]

  /// A handle of 12 bytes like tmpfs's.
  static func handle(_ number: Int) -> FileHandle {
    var raw = hw_file_handle()
    raw.bytes = 12
    raw.type = 1
    withUnsafeMutableBytes(of: &raw.data) {
      $0.storeBytes(of: fold(UInt64(number) &+ 1), as: UInt64.self)
      $0.storeBytes(of: UInt32(number), toByteOffset: 8, as: UInt32.self)
    }
    return FileHandle(raw)
  }

  public init(_ count: Int, lookups: Int = 4096) {
    for number in 0..<count {
      let id = NodeID(nodeid: UInt64(number) + 2, generation: 1)
      let index = table.insert(
        Self.handle(number), id: id, session: 0, interest: .defaultEvents)
      identities.insert(id, index)
    }
    order = (0..<lookups).map { UInt32(fold(UInt64($0) &+ 77) % UInt64(count)) }
  }

  /// Looks objects up by handle in a random order; how many were found.
  public func run() -> Int {
    var found = 0
    for number in order {
      Self.handle(Int(number)).withView {
        found += table.firstRegistration(of: $0) != 0 ? 1 : 0
      }
    }
    return found
  }

  public var lookups: Int { order.count }
  /// Bytes beside malloc's.
  public var mappedBytes: Int { table.mappedBytes }
}
