import CHostWatch
import FuzzSupport

@testable import HostWatch

/// What INIT has granted a client, and what it may be told.
struct Grant {
  let session: UInt64
  let isTree: Bool
  let events: EventMask
  let options: UInt32
  private let maxPacket: Int
  /// NODES: what is registered, and what was forgotten since the last reply.
  private var registered: Set<NodeID> = [.none, .root]

  init(_ reply: hw_init_reply, mode: UInt16, uid: UInt32) {
    session = reply.session
    isTree = mode == UInt16(HW_MODE_TREE)
    (events, options) = (EventMask(rawValue: reply.events), reply.options)
    maxPacket = Int(reply.max_packet)
    precondition(reply.major == 1 && reply.minor == 0 && reply.reserved == 0, "INIT's reply")
    precondition(session != 0 && reply.root_nodeid == 1 && reply.root_generation == 0, "the root")
    precondition(uid == 0 || options & UInt32(HW_WANT_PID) == 0, "a user is told processes")
    precondition(isTree == (reply.max_nodes == 0), "nodes of a TREE session, or none")
  }

  mutating func register(_ node: NodeID) { registered.insert(node) }

  mutating func forget(_ node: NodeID) { if node != .root { registered.remove(node) } }

  func check(_ records: [SentRecord], packet size: Int) {
    precondition(size <= maxPacket, "a packet that is larger than granted")
    for record in records {
      precondition(
        record.mask.isSubset(of: events.union(.isDirectory)), "an event that was not granted")
      if options & UInt32(HW_WANT_PID) == 0 {
        precondition(record.pid == 0, "a process is told to who may not know")
      }
      for id in [record.directory, record.node, record.newDirectory] {
        precondition(id.nodeid != 0 || id == .none, "the generation of nobody")
        precondition(isTree || registered.contains(id), "\(id) is not registered")
      }
    }
  }
}
