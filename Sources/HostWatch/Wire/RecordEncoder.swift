import CHostWatch
import Glibc

/// What a record says in one session's terms, ready to be written.
struct OutgoingRecord {
  var mask: EventMask
  var flags: UInt32 = 0
  var directory = NodeID.none
  var node = NodeID.none
  var newDirectory = NodeID.none
  var origin: UInt64 = 0
  var pid: Int32 = 0
  var name = NameView.none
  var newName = NameView.none
}

/// Writes records straight into a session's queue.
///
/// In: a record and its paths. Out: `hw_record` with names and paths behind it,
/// zeros up to a multiple of 8, and the session's next sequence number. When the queue
/// is full the session starts losing: the record and those after it are
/// dropped, unnumbered, until the session has been told so.
enum RecordEncoder {
  /// False when the record was dropped.
  @inline(__always)
  @discardableResult
  static func write(
    _ record: OutgoingRecord, path: [UInt8]? = nil, newPath: [UInt8]? = nil,
    to session: inout SessionState
  ) -> Bool {
    let pathSize = path?.count ?? 0
    let newPathSize = newPath?.count ?? 0
    let names = record.name.count + record.newName.count + pathSize + newPathSize
    let size = (MemoryLayout<hw_record>.size + names + 7) & ~7
    guard !session.isLosing, let start = unsafe session.queue.reserveRecord(size) else {
      session.isLosing = true
      session.dropped += 1
      return false
    }
    session.sequence += 1
    session.bytes += UInt64(size)
    // The bit itself: no branch on the way of every record.
    session.corrected += UInt64(record.flags / UInt32(HW_CORRECTED) & 1)
    // `size` bytes from `start` on are ours; a record is 96 of them.
    unsafe start.storeBytes(
      of: hw_record(
        size: UInt32(size), flags: record.flags, sequence: session.sequence,
        mask: record.mask.rawValue,
        dir: hw_node(record.directory), node: hw_node(record.node),
        new_dir: hw_node(record.newDirectory), origin: record.origin, pid: record.pid,
        name_size: UInt16(record.name.count), new_name_size: UInt16(record.newName.count),
        path_size: UInt32(pathSize), new_path_size: UInt32(newPathSize)),
      as: hw_record.self)
    guard size > MemoryLayout<hw_record>.size else { return true }
    // The last eight bytes hold the padding, if there is any: zeros first.
    unsafe start.storeBytes(of: 0, toByteOffset: size - 8, as: UInt64.self)
    var offset = MemoryLayout<hw_record>.size
    unsafe copy(record.name.buffer, to: start, &offset)
    unsafe copy(record.newName.buffer, to: start, &offset)
    if let path { unsafe path.withUnsafeBytes { unsafe copy($0, to: start, &offset) } }
    if let newPath { unsafe newPath.withUnsafeBytes { unsafe copy($0, to: start, &offset) } }
    return true
  }

  @inline(__always)
  @unsafe private static func copy(
    _ bytes: UnsafeRawBufferPointer, to start: UnsafeMutableRawPointer, _ offset: inout Int
  ) {
    guard let source = bytes.baseAddress, bytes.count > 0 else { return }
    unsafe memcpy(start + offset, source, bytes.count)
    offset += bytes.count
  }
}

extension hw_node {
  @inline(__always)
  init(_ id: NodeID) { self.init(nodeid: id.nodeid, generation: id.generation) }
}
