import CHostWatch
import HostWatch

/// A record as the daemon sends it, taken apart with the protocol's own rules and none of the
/// clients' libraries.
public struct SentRecord {
  /// `HW_RECHECK` … `HW_REPLACED`.
  public let flags: UInt32
  /// 1, 2, 3 … in each session.
  public let sequence: UInt64
  /// What happened.
  public let mask: EventMask
  /// Of a RENAME the source's.
  public let directory: NodeID
  /// The object.
  public let node: NodeID
  /// Of a RENAME the destination's.
  public let newDirectory: NodeID
  /// 0 unless the session asked for it and may have it.
  public let pid: Int32
  /// In `directory`.
  public let name: [UInt8]
  /// In `newDirectory`.
  public let newName: [UInt8]
  private let hasPath: Bool
  private let hasNewPath: Bool

  /// The records of an EVENTS packet, each of them well formed.
  public static func all(in packet: UnsafeRawBufferPointer) -> [SentRecord] {
    let fixed = MemoryLayout<hw_events>.size
    precondition(packet.count > fixed, "EVENTS without events")
    let head = packet.loadUnaligned(as: hw_events.self)
    precondition(head.reserved == 0, "EVENTS: reserved is not 0")
    var left = UnsafeRawBufferPointer(rebasing: packet[fixed...])
    var records: [SentRecord] = []
    for _ in 0..<head.count {
      precondition(left.count >= MemoryLayout<hw_record>.size, "a record beyond its packet")
      let size = Int(left.loadUnaligned(as: UInt32.self))
      precondition(size % 8 == 0 && size <= left.count, "a record of a wrong size")
      records.append(SentRecord(UnsafeRawBufferPointer(rebasing: left[..<size])))
      left = UnsafeRawBufferPointer(rebasing: left[size...])
    }
    precondition(!records.isEmpty, "no records")
    precondition(left.isEmpty, "bytes after the last record")
    return records
  }

  private init(_ bytes: UnsafeRawBufferPointer) {
    precondition(bytes.count >= MemoryLayout<hw_record>.size, "a record that is too short")
    let record = bytes.loadUnaligned(as: hw_record.self)
    (flags, sequence) = (record.flags, record.sequence)
    (mask, pid) = (EventMask(rawValue: record.mask), record.pid)
    directory = NodeID(nodeid: record.dir.nodeid, generation: record.dir.generation)
    node = NodeID(nodeid: record.node.nodeid, generation: record.node.generation)
    newDirectory = NodeID(nodeid: record.new_dir.nodeid, generation: record.new_dir.generation)
    var left = bytes[MemoryLayout<hw_record>.size...]
    func text(_ size: Int, _ limit: Int) -> [UInt8] {
      precondition(size <= min(limit, left.count), "a name or path that is too long")
      defer { left = left.dropFirst(size) }
      precondition(!left.prefix(size).contains(0), "a name or path with a NUL")
      return Array(left.prefix(size))
    }
    name = text(Int(record.name_size), 255)
    newName = text(Int(record.new_name_size), 255)
    hasPath = !text(Int(record.path_size), 4095).isEmpty
    hasNewPath = !text(Int(record.new_path_size), 4095).isEmpty
    precondition(left.count < 8 && left.allSatisfy { $0 == 0 }, "padding that is not zero")
    checkMask()
    checkParties()
  }

  /// Rule 1, and the form of a RECHECK.
  private func checkMask() {
    precondition(flags & ~UInt32(0x1f) == 0, "an unknown flag")
    precondition(
      mask.subtracting(EventMask.allEvents.union(.isDirectory)).isEmpty, "an unknown event")
    let events = mask.subtracting(.isDirectory)
    if flags & UInt32(HW_RECHECK) != 0 {
      precondition(events.isEmpty && node != .none, "RECHECK says that something happened")
      precondition(directory == .none && newDirectory == .none, "RECHECK of a name")
      return
    }
    precondition(!events.isEmpty, "nothing happened")
    let alone = events.intersection([.create, .delete, .rename])
    precondition(alone.isEmpty || events == alone, "a change of a name with something else")
    precondition(alone.rawValue & (alone.rawValue &- 1) == 0, "several changes of a name")
    precondition(!alone.isEmpty || flags == 0, "a flag that is of names")
    let ofRenames = UInt32(HW_MOVED_IN | HW_MOVED_OUT | HW_REPLACED)
    precondition(alone == .rename || flags & ofRenames == 0, "a flag that is of renames")
  }

  /// Rule 2: a name comes with its directory.
  private func checkParties() {
    precondition(directory != .none || name.isEmpty && !hasPath, "a name without its directory")
    precondition(
      newDirectory != .none || newName.isEmpty && !hasNewPath, "a new name without its directory")
    let isRename = mask.contains(.rename)
    precondition(isRename || newDirectory == .none, "a destination of no rename")
    guard isRename else { return }
    precondition(
      (flags & UInt32(HW_MOVED_IN) != 0) == (directory == .none), "MOVED_IN is not so")
    precondition(
      (flags & UInt32(HW_MOVED_OUT) != 0) == (newDirectory == .none), "MOVED_OUT is not so")
  }
}
