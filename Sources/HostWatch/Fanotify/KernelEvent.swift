import CFanotify

/// One record of the kernel's, as offsets into the buffer it was read into.
///
/// An offset of a handle points at its `u32 bytes, i32 type, data`; 0 means
/// that the record has no such part. The parser has checked every part
/// against the record's bounds.
struct KernelEvent: BitwiseCopyable {
  var mask: UInt64 = 0
  var pid: Int32 = 0
  /// The object it happened to.
  var object: UInt32 = 0
  /// The directory; for a RENAME the source.
  var directory: UInt32 = 0
  var newDirectory: UInt32 = 0
  var name: UInt32 = 0
  var newName: UInt32 = 0
  var nameSize: UInt16 = 0
  var newNameSize: UInt16 = 0
  /// Which of the window's buffers the offsets are in.
  var segment: UInt32 = 0

  var events: EventMask { EventMask(rawValue: mask) }
}

/// Why bytes are not a kernel record.
struct RecordError: Error, Equatable {
  enum Problem: Equatable {
    case truncated
    case wrongVersion(UInt8)
    case badLength(UInt32)
    case badInfoLength(UInt16)
    case badHandleLength(UInt32)
    /// It does not end within its record, or is longer than NAME_MAX.
    case nameNotTerminated
    case repeatedInfo(UInt8)
  }
  var problem: Problem
  /// Where in the buffer.
  var offset: Int
}

/// Takes the bytes of one read(2) of a fanotify group apart.
///
/// In: bytes. Out: events with offsets into them, one per record, in order.
/// It holds that every offset and size of an event lies within its record, and that no
/// handle is longer than 128 bytes and no name longer than 255. Refused: anything else, with the
/// offset. No I/O, no allocation beyond `events`' own growth.
enum RecordParser {
  static func parse(_ bytes: RawSpan, into events: inout [KernelEvent]) throws(RecordError) {
    var offset = 0
    while offset < bytes.byteCount {
      let size = try parseRecord(bytes, at: offset, into: &events)
      offset += size
    }
  }

  private static func parseRecord(
    _ bytes: RawSpan, at start: Int, into events: inout [KernelEvent]
  ) throws(RecordError) -> Int {
    guard bytes.byteCount - start >= Int(hw_metadata_size) else {
      throw RecordError(problem: .truncated, offset: start)
    }
    let length = load(bytes, start, UInt32.self)
    let version = load(bytes, start + 4, UInt8.self)
    let metadataLength = Int(load(bytes, start + 6, UInt16.self))
    guard version == FANOTIFY_METADATA_VERSION else {
      throw RecordError(problem: .wrongVersion(version), offset: start + 4)
    }
    guard Int(length) <= bytes.byteCount - start, metadataLength >= Int(hw_metadata_size),
      metadataLength <= Int(length)
    else { throw RecordError(problem: .badLength(length), offset: start) }

    var event = KernelEvent()
    event.mask = load(bytes, start + 8, UInt64.self)
    event.pid = load(bytes, start + 20, Int32.self)
    let end = start + Int(length)
    var offset = start + metadataLength
    while offset < end {
      guard end - offset >= Int(hw_info_header_size) else {
        throw RecordError(problem: .truncated, offset: offset)
      }
      let infoLength = load(bytes, offset + 2, UInt16.self)
      guard infoLength >= UInt16(hw_info_header_size), Int(infoLength) <= end - offset
      else { throw RecordError(problem: .badInfoLength(infoLength), offset: offset) }
      try parseInfo(bytes, offset, Int(infoLength), into: &event)
      offset += Int(infoLength)
    }
    events.append(event)
    return Int(length)
  }

  private static func parseInfo(
    _ bytes: RawSpan, _ offset: Int, _ length: Int, into event: inout KernelEvent
  ) throws(RecordError) {
    let type = load(bytes, offset, UInt8.self)
    let handle: UInt32
    var name: UInt32 = 0
    var nameSize: UInt16 = 0
    switch Int32(type) {
    case FAN_EVENT_INFO_TYPE_FID, FAN_EVENT_INFO_TYPE_DFID:
      handle = try parseHandle(bytes, offset, length)
    case FAN_EVENT_INFO_TYPE_DFID_NAME, FAN_EVENT_INFO_TYPE_OLD_DFID_NAME,
      FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
      handle = try parseHandle(bytes, offset, length)
      let start = Int(handle) + 8 + Int(load(bytes, Int(handle), UInt32.self))
      let size = try nameLength(bytes, start, offset + length)
      name = UInt32(start)
      nameSize = UInt16(size)
    default:
      return  // an information record of a newer kernel
    }
    switch Int32(type) {
    case FAN_EVENT_INFO_TYPE_FID:
      guard event.object == 0 else {
        throw RecordError(problem: .repeatedInfo(type), offset: offset)
      }
      event.object = handle
    case FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
      guard event.newDirectory == 0 else {
        throw RecordError(problem: .repeatedInfo(type), offset: offset)
      }
      (event.newDirectory, event.newName, event.newNameSize) = (handle, name, nameSize)
    default:
      guard event.directory == 0 else {
        throw RecordError(problem: .repeatedInfo(type), offset: offset)
      }
      (event.directory, event.name, event.nameSize) = (handle, name, nameSize)
    }
  }

  /// Checks `fsid, handle_bytes, handle_type, data` of an information record
  /// and returns where `handle_bytes` stands.
  private static func parseHandle(_ bytes: RawSpan, _ offset: Int, _ length: Int)
    throws(RecordError) -> UInt32
  {
    let fixed = Int(hw_info_fid_size)
    guard length >= fixed else { throw RecordError(problem: .truncated, offset: offset) }
    let start = offset + fixed - 8
    let size = load(bytes, start, UInt32.self)
    guard size <= UInt32(hw_handle_max), Int(size) <= length - fixed else {
      throw RecordError(problem: .badHandleLength(size), offset: start)
    }
    return UInt32(start)
  }

  /// What a name can be (NAME_MAX). Of a longer one the kernel gives nothing.
  private static let nameMax = 255

  /// The bytes before the NUL that ends the name, which must come before `end`.
  private static func nameLength(_ bytes: RawSpan, _ start: Int, _ end: Int)
    throws(RecordError) -> Int
  {
    let end = min(end, start + nameMax + 1)
    var size = 0
    while start + size < end {
      if load(bytes, start + size, UInt8.self) == 0 { return size }
      size += 1
    }
    throw RecordError(problem: .nameNotTerminated, offset: start)
  }

  @inline(__always)
  private static func load<Number: FixedWidthInteger & BitwiseCopyable>(
    _ bytes: RawSpan, _ offset: Int, _: Number.Type
  ) -> Number {
    // RawSpan checks the bounds; any bytes are a valid integer.
    unsafe bytes.unsafeLoadUnaligned(fromByteOffset: offset, as: Number.self)
  }
}
