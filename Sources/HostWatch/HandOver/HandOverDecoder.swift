import CFanotify
import CHostWatch

/// Why a handed-over state cannot be used.
public struct HandOverError: Error, Equatable, Sendable, CustomStringConvertible {
  public let description: String
  init(_ description: String) { self.description = description }
}

/// Takes the bytes of `HandOverEncoder` apart.
///
/// In: bytes, and how many descriptors came with them. Out: a state of which
/// every number, index and length is within its bounds, or what is wrong.
/// Pure: no I/O, no descriptors. Whatever the bytes are, nothing beyond them is
/// read, and nothing is allocated that they do not pay for.
enum HandOverDecoder {
  static func decode(_ bytes: [UInt8], descriptors: Int) throws(HandOverError) -> HandOverState {
    var reader = ByteReader(bytes: bytes, descriptors: descriptors)
    guard bytes.count >= HandOverEncoder.headerSize, try reader.raw(8) == HandOverEncoder.magic
    else { throw HandOverError("the state is not one of hostwatchd's") }
    let version = try reader.number(UInt32.self)
    guard version == HandOverState.version, try reader.number(UInt32.self) == 0 else {
      throw HandOverError(
        "the state has version \(version); this daemon reads version \(HandOverState.version)")
    }
    guard try reader.number(UInt64.self) == UInt64(bytes.count - HandOverEncoder.headerSize) else {
      throw HandOverError("the state is cut off")
    }
    guard try reader.number(UInt64.self) == HandOverEncoder.hash(bytes) else {
      throw HandOverError("the state is damaged: its checksum is wrong")
    }
    var state = HandOverState()
    state.nextSession = try reader.counter()
    state.madeAt = try reader.number()
    state.past.lost = try reader.counter()
    state.past.events = try reader.counter()
    state.past.delivered = try reader.counter()
    state.past.corrected = try reader.counter()
    state.filesystems = try reader.list(minimum: 100) { reader throws(HandOverError) in
      try filesystem(&reader)
    }
    let known = state.filesystems
    state.sessions = try reader.list(minimum: 30) { reader throws(HandOverError) in
      try session(&reader, known)
    }
    guard reader.isAtEnd else { throw reader.wrong("bytes behind the end") }
    try checkIdentities(state)
    return state
  }

  /// Each descriptor has one use, each device one filesystem, and ids rise.
  private static func checkIdentities(_ state: HandOverState) throws(HandOverError) {
    var used: Set<Int32> = []
    func use(_ index: Int32) throws(HandOverError) {
      guard index < 0 || used.insert(index).inserted else {
        throw HandOverError("the state uses descriptor \(index) twice")
      }
    }
    var devices: Set<UInt64> = []
    for filesystem in state.filesystems {
      guard devices.insert(filesystem.device).inserted else {
        throw HandOverError("the state has a filesystem twice")
      }
      try use(filesystem.group)
      for mount in [filesystem.mount] + filesystem.scopes.map(\.mount) {
        try use(mount.tree)
        try use(mount.root)
      }
    }
    guard state.nextSession > 0 else { throw HandOverError("the state's next session is none") }
    var last: UInt64 = 0
    for session in state.sessions {
      guard session.id > last, session.id < state.nextSession else {
        throw HandOverError("the state's sessions are out of order")
      }
      last = session.id
      try use(session.socket)
      if let attachment = session.attachment { try use(attachment.ownProcess) }
    }
  }

  private static func mount(_ reader: inout ByteReader) throws(HandOverError)
    -> HandOverState.Mount
  {
    let tree = try reader.descriptor(mayBeMissing: true)
    return HandOverState.Mount(tree: tree, root: try reader.descriptor(mayBeMissing: false))
  }

  private static func filesystem(_ reader: inout ByteReader) throws(HandOverError)
    -> HandOverState.Filesystem
  {
    var value = HandOverState.Filesystem()
    value.device = try reader.number()
    value.magic = try reader.number()
    value.group = try reader.descriptor(mayBeMissing: true)
    value.queueLimit = try reader.number()
    value.mount = try mount(&reader)
    value.isInMountTable = try reader.flag()
    value.lastEmpty = try reader.moment()
    value.isInGap = try reader.flag()
    value.counters.records = try reader.counter()
    value.counters.overflows = try reader.counter()
    value.counters.batches = try reader.counter()
    value.counters.largestBatch = try reader.counter()
    value.counters.delivered = try reader.counter()
    value.counters.merged = try reader.counter()
    value.counters.lookups = try reader.counter()
    value.counters.corrected = try reader.counter()
    value.deaths = try reader.list(minimum: 21) { reader throws(HandOverError) in
      HandOverState.Death(
        handle: try reader.handle(), mask: try reader.number(), pid: try reader.number(),
        since: try reader.number())
    }
    value.scopes = try reader.list(minimum: 21) { reader throws(HandOverError) in
      try scope(&reader)
    }
    return value
  }

  private static func scope(_ reader: inout ByteReader) throws(HandOverError)
    -> HandOverState.Scope
  {
    var value = HandOverState.Scope(root: try reader.handle())
    value.mount = try mount(&reader)
    var next: UInt32 = 2
    value.directories = try reader.list(minimum: 14) { reader throws(HandOverError) in
      let directory = HandOverState.Directory(
        handle: try reader.handle(), name: try reader.block(), parent: try reader.number(),
        isOutside: try reader.flag())
      guard directory.parent < next, directory.name.count <= 255, !directory.name.contains(0)
      else { throw reader.wrong("a directory that is in none of those before it") }
      next += 1
      return directory
    }
    value.doubtful = try reader.list(minimum: 9) { reader throws(HandOverError) in
      HandOverState.Doubt(handle: try reader.handle(), since: try reader.number())
    }
    return value
  }

  private static func session(
    _ reader: inout ByteReader, _ filesystems: [HandOverState.Filesystem]
  ) throws(HandOverError) -> HandOverState.Session {
    var value = HandOverState.Session()
    value.id = try reader.number()
    value.socket = try reader.descriptor(mayBeMissing: false)
    value.pid = try reader.number()
    value.uid = try reader.number()
    value.gid = try reader.number()
    guard let stage = HandOverState.Stage(rawValue: try reader.number()) else {
      throw reader.wrong("an unknown stage")
    }
    value.stage = stage
    value.packets = try reader.block()
    guard arePackets(value.packets) else { throw reader.wrong("a queue that is no packets") }
    value.attachment = try reader.optional { reader throws(HandOverError) in
      try attachment(&reader, filesystems)
    }
    guard (stage == .attached) == (value.attachment != nil) else {
      throw reader.wrong("a session without what INIT made of it")
    }
    return value
  }

  /// Whether the bytes are whole packets, each padded to a multiple of 8.
  private static func arePackets(_ bytes: [UInt8]) -> Bool {
    var reader = ByteReader(bytes: bytes, descriptors: 0)
    while !reader.isAtEnd {
      guard let size = try? reader.number(UInt32.self), size >= 16, size <= HW_PACKET_MAX,
        (try? reader.skip((Int(size) + 7) & ~7 - 4)) != nil
      else { return false }
    }
    return true
  }

  private static func attachment(
    _ reader: inout ByteReader, _ filesystems: [HandOverState.Filesystem]
  ) throws(HandOverError) -> HandOverState.Attachment {
    var value = HandOverState.Attachment()
    value.filesystem = try reader.number()
    guard value.filesystem < filesystems.count else { throw reader.wrong("no such filesystem") }
    value.scope = try reader.optional { reader throws(HandOverError) in
      try reader.number(UInt32.self)
    }
    if let scope = value.scope, scope >= filesystems[Int(value.filesystem)].scopes.count {
      throw reader.wrong("no such root")
    }
    value.share = try reader.optional { reader throws(HandOverError) in try reader.text() }
    value.path = try reader.text()
    value.events = try reader.number()
    value.options = try reader.number()
    value.ownPID = try reader.number()
    value.ownProcess = try reader.descriptor(mayBeMissing: true)
    value.queueLimit = try reader.number()
    value.maxPacket = try reader.number()
    value.maxNodes = try reader.number()
    value.maxDelayMicroseconds = try reader.number()
    value.sequence = try reader.counter()
    value.dropped = try reader.counter()
    value.bytes = try reader.counter()
    value.lostCount = try reader.counter()
    guard value.events & ~EventMask.allEvents.rawValue == 0, value.ownPID >= 0,
      value.queueLimit >= HW_QUEUE_MIN, value.queueLimit <= 1 << 40,
      value.maxPacket >= HW_PACKET_MIN, value.maxPacket <= HW_PACKET_MAX,
      value.maxDelayMicroseconds <= 1_000_000
    else { throw reader.wrong("a session's options") }
    value.isLosing = try reader.flag()
    value.losingSince = try reader.optional { reader throws(HandOverError) in try reader.moment() }
    value.resync = try reader.optional { reader throws(HandOverError) in
      HandOverState.ResyncState(
        since: try reader.moment(), checked: try reader.counter(), reported: try reader.counter())
    }
    value.syncs = try reader.list(minimum: 8) { reader throws(HandOverError) in
      try reader.number(UInt64.self)
    }
    let count = try reader.number(UInt32.self)
    guard
      let packed = PackedRegistrations(count: Int(count), bytes: try reader.block()),
      value.scope == nil || packed.count == 0
    else { throw reader.wrong("a session's registrations") }
    value.registrations = packed
    return value
  }
}

/// Reads values from bytes, each within their bounds.
struct ByteReader {
  private let bytes: [UInt8]
  private let descriptors: Int
  private var offset = 0
  /// All counters so far together.
  private var counted: UInt64 = 0

  init(bytes: [UInt8], descriptors: Int) {
    self.bytes = bytes
    self.descriptors = descriptors
  }

  var isAtEnd: Bool { offset == bytes.count }
  private var left: Int { bytes.count - offset }

  func wrong(_ what: String) -> HandOverError {
    HandOverError("the state is damaged at byte \(offset): \(what)")
  }

  mutating func skip(_ count: Int) throws(HandOverError) {
    guard count >= 0, count <= left else { throw wrong("it ends too early") }
    offset += count
  }

  mutating func raw(_ count: Int) throws(HandOverError) -> [UInt8] {
    let start = offset
    try skip(count)
    return Array(bytes[start..<offset])
  }

  mutating func number<Number: FixedWidthInteger & BitwiseCopyable>(_: Number.Type = Number.self)
    throws(HandOverError) -> Number
  {
    let start = offset
    try skip(MemoryLayout<Number>.size)
    // `skip` has checked that so many bytes are there.
    return unsafe bytes.withUnsafeBytes {
      unsafe $0.loadUnaligned(fromByteOffset: start, as: Number.self)
    }
  }

  /// A number that is added to, also to others of its kind: no sum of them overflows.
  mutating func counter() throws(HandOverError) -> UInt64 {
    let value = try number(UInt64.self)
    guard value >> 62 == 0, (counted + value) >> 62 == 0 else { throw wrong("a counter") }
    counted += value
    return value
  }

  mutating func flag() throws(HandOverError) -> Bool {
    let value = try number(UInt8.self)
    guard value <= 1 else { throw wrong("a flag") }
    return value == 1
  }

  mutating func moment() throws(HandOverError) -> Timestamp {
    let value = Timestamp(seconds: try number(), nanoseconds: try number())
    // Seconds are counted on from it, and back.
    guard value.nanoseconds < 1_000_000_000, value.seconds.magnitude >> 62 == 0 else {
      throw wrong("a time")
    }
    return value
  }

  /// u32 count and the bytes.
  mutating func block() throws(HandOverError) -> [UInt8] { try raw(Int(try number(UInt32.self))) }

  mutating func text() throws(HandOverError) -> String {
    guard let text = String(validating: try block(), as: UTF8.self) else {
      throw wrong("a text that is not UTF-8")
    }
    return text
  }

  mutating func handle() throws(HandOverError) -> FileHandle {
    var raw = hw_file_handle()
    raw.type = try number()
    let count = try number(UInt8.self)
    guard count > 0, count <= hw_handle_max else { throw wrong("a file handle") }
    raw.bytes = UInt32(count)
    let data = try self.raw(Int(count))
    unsafe withUnsafeMutableBytes(of: &raw.data) { unsafe $0.copyBytes(from: data) }
    return FileHandle(raw)
  }

  /// An index into the descriptors, or -1 where that is allowed.
  mutating func descriptor(mayBeMissing: Bool) throws(HandOverError) -> Int32 {
    let index = try number(Int32.self)
    guard index < descriptors, index >= (mayBeMissing ? -1 : 0) else {
      throw wrong("no such descriptor")
    }
    return index
  }

  /// - Parameter minimum: bytes that an element has at least, so that a count
  ///   cannot ask for more memory than the bytes would fill.
  mutating func list<Element>(
    minimum: Int, _ body: (inout ByteReader) throws(HandOverError) -> Element
  ) throws(HandOverError) -> [Element] {
    let count = Int(try number(UInt32.self))
    guard count <= left / minimum else { throw wrong("a list longer than the state") }
    var elements: [Element] = []
    elements.reserveCapacity(count)
    for _ in 0..<count { elements.append(try body(&self)) }
    return elements
  }

  mutating func optional<Value>(_ body: (inout ByteReader) throws(HandOverError) -> Value)
    throws(HandOverError) -> Value?
  {
    try flag() ? try body(&self) : nil
  }
}
