import CFanotify

/// A handed-over state as bytes.
///
/// Form: magic (8 bytes), u32 version, u32 zero, u64 length of what follows
/// the header, u64 its hash; then the fields in the order in which they are
/// written here. Numbers in host byte order and not aligned; a list is a u32
/// count and its elements; an optional is a u8, 0 or 1, and its value.
enum HandOverEncoder {
  static let magic: [UInt8] = Array("HWSTATE\n".utf8)
  static let headerSize = 32

  static func encode(_ state: HandOverState) -> [UInt8] {
    var writer = ByteWriter()
    writer.bytes.reserveCapacity(
      state.sessions.reduce(65536) {
        $0 + $1.packets.count + ($1.attachment?.registrations.bytes.count ?? 0) + 1024
      })
    writer.bytes.append(contentsOf: magic)
    writer.put(HandOverState.version)
    writer.put(UInt32(0))
    writer.put(UInt64(0))
    writer.put(UInt64(0))
    writer.put(state.nextSession)
    writer.put(state.madeAt)
    for value in [state.past.lost, state.past.events, state.past.delivered, state.past.corrected] {
      writer.put(value)
    }
    writer.list(state.filesystems) { put($0, &$1) }
    writer.list(state.sessions) { put($0, &$1) }
    seal(&writer.bytes)
    return writer.bytes
  }

  /// Writes length and hash of what stands behind the header.
  static func seal(_ bytes: inout [UInt8]) {
    let (length, hash) = (UInt64(bytes.count - headerSize), hash(bytes))
    unsafe bytes.withUnsafeMutableBytes {
      unsafe $0.storeBytes(of: length, toByteOffset: 16, as: UInt64.self)
      unsafe $0.storeBytes(of: hash, toByteOffset: 24, as: UInt64.self)
    }
  }

  static func hash(_ bytes: [UInt8]) -> UInt64 {
    unsafe bytes.withUnsafeBytes { all in
      guard let base = all.baseAddress, all.count > headerSize else { return 0 }
      return unsafe hashBytes(base + headerSize, all.count - headerSize, seed: 0)
    }
  }

  private static func put(_ mount: HandOverState.Mount, _ writer: inout ByteWriter) {
    writer.put(mount.tree)
    writer.put(mount.root)
  }

  private static func put(_ value: HandOverState.Filesystem, _ writer: inout ByteWriter) {
    writer.put(value.device)
    writer.put(value.magic)
    writer.put(value.group)
    writer.put(value.queueLimit)
    put(value.mount, &writer)
    writer.put(value.isInMountTable)
    writer.put(value.lastEmpty)
    writer.put(value.isInGap)
    let counters = value.counters
    for counter in [
      counters.records, counters.overflows, counters.batches, counters.largestBatch,
      counters.delivered, counters.merged, counters.lookups, counters.corrected,
    ] { writer.put(counter) }
    writer.list(value.deaths) { death, writer in
      writer.put(death.handle)
      writer.put(death.mask)
      writer.put(death.pid)
      writer.put(death.since)
    }
    writer.list(value.scopes) { scope, writer in
      writer.put(scope.root)
      put(scope.mount, &writer)
      writer.list(scope.directories) { directory, writer in
        writer.put(directory.handle)
        writer.put(bytes: directory.name)
        writer.put(directory.parent)
        writer.put(directory.isOutside)
      }
      writer.list(scope.doubtful) { doubt, writer in
        writer.put(doubt.handle)
        writer.put(doubt.since)
      }
    }
  }

  private static func put(_ value: HandOverState.Session, _ writer: inout ByteWriter) {
    writer.put(value.id)
    writer.put(value.socket)
    writer.put(value.pid)
    writer.put(value.uid)
    writer.put(value.gid)
    writer.put(value.stage.rawValue)
    writer.put(bytes: value.packets)
    writer.optional(value.attachment) { put($0, &$1) }
  }

  private static func put(_ value: HandOverState.Attachment, _ writer: inout ByteWriter) {
    writer.put(value.filesystem)
    writer.optional(value.scope) { $1.put($0) }
    writer.optional(value.share) { $1.put(bytes: Array($0.utf8)) }
    writer.put(bytes: Array(value.path.utf8))
    writer.put(value.events)
    writer.put(value.options)
    writer.put(value.ownPID)
    writer.put(value.ownProcess)
    writer.put(value.queueLimit)
    for number in [value.maxPacket, value.maxNodes, value.maxDelayMicroseconds] {
      writer.put(number)
    }
    for number in [value.sequence, value.dropped, value.bytes, value.lostCount] {
      writer.put(number)
    }
    writer.put(value.isLosing)
    writer.optional(value.losingSince) { $1.put($0) }
    writer.optional(value.resync) { resync, writer in
      writer.put(resync.since)
      writer.put(resync.checked)
      writer.put(resync.reported)
    }
    writer.list(value.syncs) { $1.put($0) }
    writer.put(UInt32(value.registrations.count))
    writer.put(bytes: value.registrations.bytes)
  }
}

/// Appends values to bytes.
struct ByteWriter {
  var bytes: [UInt8] = []

  mutating func put<Number: FixedWidthInteger & BitwiseCopyable>(_ number: Number) {
    // A number has no padding.
    unsafe withUnsafeBytes(of: number) { unsafe bytes.append(contentsOf: $0) }
  }

  mutating func put(_ flag: Bool) { put(UInt8(flag ? 1 : 0)) }

  mutating func put(_ moment: Timestamp) {
    put(moment.seconds)
    put(moment.nanoseconds)
  }

  /// u32 count and the bytes.
  mutating func put(bytes more: [UInt8]) {
    put(UInt32(more.count))
    bytes.append(contentsOf: more)
  }

  mutating func put(_ handle: FileHandle) {
    handle.withView { view in
      put(view.type)
      put(UInt8(view.count))
      // A view's bytes are there as long as the view.
      unsafe bytes.append(contentsOf: UnsafeRawBufferPointer(start: view.data, count: view.count))
    }
  }

  mutating func list<Element>(
    _ elements: [Element], _ body: (Element, inout ByteWriter) -> Void
  ) {
    put(UInt32(elements.count))
    for element in elements { body(element, &self) }
  }

  mutating func optional<Value>(_ value: Value?, _ body: (Value, inout ByteWriter) -> Void) {
    put(value != nil)
    if let value { body(value, &self) }
  }
}
