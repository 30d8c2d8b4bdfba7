import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// A router with a NODES and a TREE session. Of the filesystem the router can ask nothing:
/// what is inside the tree is what records have put there.
final class Sessions {
  let router = Router(seed: 7)
  private let states: UnsafeMutablePointer<SessionState>
  private let queued: UnsafeMutablePointer<Int>
  private let nodes: UInt32
  private var registered: Set<NodeID> = [.none]
  private var scope: TreeScope?

  init() {
    queued = .allocate(capacity: 1)
    queued.initialize(to: 0)
    states = .allocate(capacity: 2)
    for index in 0..<2 {
      let queue = PacketQueue(
        limit: 1 << 20, maxPacket: index == 0 ? 4096 : 16384, userQueued: queued, userLimit: .max)
      let options = index == 0 ? HW_WANT_PID : HW_WANT_PID | HW_WANT_PATH
      (states + index).initialize(
        to: SessionState(
          id: UInt64(index + 1), isTree: index == 1, events: .allEvents, options: UInt32(options),
          ownPID: Int32(index + 1), queue: queue))
    }
    nodes = router.add(states, scope: nil)
  }

  deinit {
    for index in 0..<2 { states[index].queue.release() }
    states.deallocate()
    queued.deallocate()
  }

  func beginBatch() {
    router.beginBatch()
    router.now &+= 1
  }

  /// An object that a record is about. The first, its directory, is the tree's root; of the
  /// others that can be, every second is registered.
  func add(_ handle: FileHandle) {
    if scope == nil { openTree(handle) }
    let hash = handle.withView { $0.hash(seed: 1) }
    guard hash & 1 == 0, (0...0xffff).contains(handle.raw.type), registered.count < 64,
      handle.withView({ router.nodes.registration(of: $0, session: nodes) }) == 0
    else { return }
    let id = NodeID(nodeid: UInt64(registered.count) + 1, generation: hash)
    _ = router.nodes.insert(handle, id: id, session: nodes, interest: .allEvents)
    registered.insert(id)
  }

  private func openTree(_ root: FileHandle) {
    guard let layout = InodeLayout(magic: 0x0102_1994) else { return }
    // It has no handles to open.
    guard case let proc = open("/proc/self", O_RDONLY | O_DIRECTORY), proc >= 0 else {
      fatalError("open: errno \(errno)")
    }
    let mount = DetachedMount(tree: nil, root: OwnedDescriptor(proc))
    let made = TreeScope(root: root, layout: layout, mount: mount, seed: 7)
    _ = router.add(states + 1, scope: made)
    scope = made
  }

  /// What both have been sent.
  func check() {
    for index in 0..<2 {
      var sequence: UInt64 = 0
      var left = states[index].queue.contents()[...]
      while !left.isEmpty {
        let size = left.withUnsafeBytes { Int($0.loadUnaligned(as: UInt32.self)) }
        precondition(size <= states[index].queue.maxPacket, "a packet that is too large")
        let records = left.withUnsafeBytes {
          SentRecord.all(in: UnsafeRawBufferPointer(rebasing: $0[..<size]))
        }
        for record in records {
          sequence += 1
          precondition(record.sequence == sequence, "a gap in the sequence")
          guard index == 0 else { continue }
          for id in [record.directory, record.node, record.newDirectory] {
            precondition(registered.contains(id), "nothing of that name was registered")
          }
        }
        left = left.dropFirst((size + 7) & ~7)
      }
      precondition(sequence == states[index].sequence, "records are missing")
    }
  }
}
