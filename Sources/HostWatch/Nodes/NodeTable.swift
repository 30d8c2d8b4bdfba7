import CFanotify
import Glibc

/// Who has registered which object of one filesystem, and under which name.
///
/// In: handles and the identities that sessions gave them. Out: for a handle,
/// with one lookup, the chain of its registrations; for a session's identity
/// its registration. It holds that an object has at most one registration per
/// session, that an identity of a session names at most one object, and that
/// the cost of a lookup does not depend on sessions that did not register the
/// object. An object is in the table while somebody has it registered.
///
/// Most objects have one registration. It lies beside the object, in the same
/// cache line, so that a lookup among very many waits for memory twice: for the
/// slot in the index and for that line. Further registrations have a slab of
/// their own.
struct NodeTable: ~Copyable {
  /// One session's registration of one object.
  struct Registration: BitwiseCopyable {
    var id: NodeIDPair
    /// The object's index.
    var object: UInt32
    /// The next registration of the same object, or 0.
    var next: UInt32
    /// The session's slot.
    var session: UInt32
    /// An EventMask; its bits all lie in the lower half. `stateBits` are none of them.
    var interest: UInt32

    /// The session has been told DELETE_SELF, the last it hears of the object.
    var isDead: Bool { interest & NodeTable.deadBit != 0 }
    /// A RECHECK of it did not fit into the session's queue.
    var owesRecheck: Bool { interest & NodeTable.owesRecheckBit != 0 }
  }

  /// `NodeID` as plain memory.
  struct NodeIDPair: BitwiseCopyable, Equatable {
    var nodeid: UInt64
    var generation: UInt64
    var value: NodeID { NodeID(nodeid: nodeid, generation: generation) }
    init(_ id: NodeID) { (nodeid, generation) = (id.nodeid, id.generation) }
  }

  /// A registered object: its handle and the first of its registrations.
  struct Object: BitwiseCopyable {
    var first: UInt32
    var type: UInt16
    var count: UInt8
    /// The handle is longer than fits here: the first word is its place in
    /// `longHandles`.
    var isLong: Bool
    var words: (UInt64, UInt64, UInt64)
  }

  /// A registered object and one of its registrations, or none of them
  /// (`noSession`) while only others are left.
  struct Node: BitwiseCopyable {
    var object: Object
    var registration: Registration
  }

  private static let inlineHandleSize = 24
  /// Of the index of a registration that is not beside its object.
  private static let furtherBit: UInt32 = 1 << 31
  static let noSession = UInt32.max
  static let deadBit: UInt32 = 1 << 31
  static let owesRecheckBit: UInt32 = 1 << 29
  static let stateBits = deadBit | owesRecheckBit

  private var objects = Slab<Node>()
  private var further = Slab<Registration>()
  private var byHandle = HashIndex()
  private var longHandles: [FileHandle?] = []
  private var freeLongHandles: [Int] = []
  /// Handles are hashed with this, so that nobody can choose ones that collide.
  let seed: UInt64

  init(seed: UInt64) { self.seed = seed }

  /// Bytes that are not of malloc's.
  var mappedBytes: Int { objects.mappedBytes + further.mappedBytes }

  /// Objects in the table.
  var count: Int { objects.count }

  /// The first registration of the object with this handle, or 0.
  @inline(__always)
  func firstRegistration(of handle: HandleView, hash: UInt64) -> UInt32 {
    let object = find(handle, UInt32(truncatingIfNeeded: hash >> 32))
    return object == 0 ? 0 : objects[object].object.first
  }

  @inline(__always)
  func firstRegistration(of handle: HandleView) -> UInt32 {
    firstRegistration(of: handle, hash: handle.hash(seed: seed))
  }

  /// Below this many objects the table stays in the processor's caches.
  private static let smallCount = 1 << 14

  /// Looking up one object of a million waits for memory. For events that come
  /// together those waits can run beside each other: this begins the first, for
  /// an event that is some way ahead.
  @inline(__always)
  func prefetchIndex(_ handle: HandleView) {
    guard count > Self.smallCount else { return }
    byHandle.prefetch(UInt32(truncatingIfNeeded: handle.hash(seed: seed) >> 32))
  }

  /// Begins the other, for an event that is nearer.
  @inline(__always)
  func prefetchObject(_ handle: HandleView) {
    guard count > Self.smallCount else { return }
    objects.prefetch(byHandle.guess(UInt32(truncatingIfNeeded: handle.hash(seed: seed) >> 32)))
  }

  /// A registration by its index.
  @inline(__always)
  func registration(_ index: UInt32) -> Registration {
    index & Self.furtherBit == 0
      ? objects[index].registration : further[index & ~Self.furtherBit]
  }

  @inline(__always)
  private mutating func change(_ index: UInt32, _ body: (inout Registration) -> Void) {
    if index & Self.furtherBit == 0 {
      body(&objects[index].registration)
    } else {
      body(&further[index & ~Self.furtherBit])
    }
  }

  /// This session's registration of the object, or 0.
  func registration(of handle: HandleView, session: UInt32) -> UInt32 {
    var index = firstRegistration(of: handle)
    while index != 0 {
      let entry = registration(index)
      if entry.session == session { return index }
      index = entry.next
    }
    return 0
  }

  /// Adds a registration of an object that this session has not registered.
  mutating func insert(
    _ handle: FileHandle, id: NodeID, session: UInt32, interest: EventMask
  ) -> UInt32 {
    handle.withView { view in
      let hash = UInt32(truncatingIfNeeded: view.hash(seed: seed) >> 32)
      var entry = Registration(
        id: NodeIDPair(id), object: 0, next: 0, session: session,
        interest: UInt32(truncatingIfNeeded: interest.rawValue))
      entry.object = find(view, hash)
      guard entry.object != 0 else {
        let index = objects.insert(Node(object: makeObject(handle, view), registration: entry))
        objects[index].object.first = index
        objects[index].registration.object = index
        byHandle.insert(hash, index)
        return index
      }
      entry.next = objects[entry.object].object.first
      let isVacant = objects[entry.object].registration.session == Self.noSession
      let index = isVacant ? entry.object : further.insert(entry) | Self.furtherBit
      if isVacant { objects[index].registration = entry }
      objects[entry.object].object.first = index
      return index
    }
  }

  mutating func setInterest(_ index: UInt32, _ interest: EventMask) {
    change(index) {
      $0.interest =
        UInt32(truncatingIfNeeded: interest.rawValue) | $0.interest & NodeTable.stateBits
    }
  }

  /// From here on nothing more is said of the object to its session.
  mutating func markDead(_ index: UInt32) {
    change(index) { $0.interest |= NodeTable.deadBit }
  }

  /// Whether the session is still to be told to look at the object, whatever its ctime.
  mutating func setOwesRecheck(_ index: UInt32, _ owes: Bool) {
    change(index) {
      if owes {
        $0.interest |= NodeTable.owesRecheckBit
      } else {
        $0.interest &= ~NodeTable.owesRecheckBit
      }
    }
  }

  /// An identity of which nothing has been said: not its end either.
  mutating func setID(_ index: UInt32, _ id: NodeID) {
    change(index) {
      $0.id = NodeIDPair(id)
      $0.interest &= ~NodeTable.deadBit
    }
  }

  /// Takes a registration out, and its object with the last one.
  mutating func remove(_ index: UInt32) {
    let entry = registration(index)
    if objects[entry.object].object.first == index {
      objects[entry.object].object.first = entry.next
    } else {
      var previous = objects[entry.object].object.first
      while registration(previous).next != index { previous = registration(previous).next }
      change(previous) { $0.next = entry.next }
    }
    // Whoever still has the index finds that it is nobody's.
    change(index) { $0.session = NodeTable.noSession }
    if index & Self.furtherBit != 0 { further.remove(index & ~Self.furtherBit) }
    if objects[entry.object].object.first == 0 { removeObject(entry.object) }
  }

  /// The handle of a registered object.
  func handle(of index: UInt32) -> FileHandle {
    handle(ofObject: registration(index).object)
  }

  private func handle(ofObject object: UInt32) -> FileHandle {
    let record = objects[object].object
    if record.isLong, let long = longHandles[Int(record.words.0)] { return long }
    var raw = hw_file_handle()
    raw.bytes = UInt32(record.count)
    raw.type = Int32(record.type)
    var words = record.words
    unsafe withUnsafeBytes(of: &words) { source in
      unsafe withUnsafeMutableBytes(of: &raw.data) {
        // Both are longer than `count`, which is at most 24.
        unsafe $0.copyMemory(from: UnsafeRawBufferPointer(rebasing: source[..<Int(record.count)]))
      }
    }
    return FileHandle(raw)
  }

  @inline(__always)
  private func find(_ handle: HandleView, _ hash: UInt32) -> UInt32 {
    byHandle.find(hash) { index in matches(index, handle) }
  }

  @inline(__always)
  private func matches(_ index: UInt32, _ handle: HandleView) -> Bool {
    let count = handle.count
    // The record stays where it is during the call.
    let node = unsafe objects.pointer(index)
    guard unsafe Int32(node.pointee.object.type) == handle.type,
      unsafe Int(node.pointee.object.count) == count
    else { return false }
    if unsafe node.pointee.object.isLong {
      return self.handle(ofObject: index).withView { $0 == handle }
    }
    return unsafe withUnsafeBytes(of: &node.pointee.object.words) {
      unsafe memcmp($0.baseAddress!, handle.data, count) == 0
    }
  }

  private mutating func makeObject(_ handle: FileHandle, _ view: HandleView) -> Object {
    var object = Object(
      first: 0, type: UInt16(truncatingIfNeeded: view.type), count: UInt8(view.count),
      isLong: view.count > Self.inlineHandleSize, words: (0, 0, 0))
    if object.isLong {
      let place = freeLongHandles.popLast() ?? longHandles.count
      if place == longHandles.count {
        longHandles.append(handle)
      } else {
        longHandles[place] = handle
      }
      object.words.0 = UInt64(place)
    } else {
      unsafe withUnsafeMutableBytes(of: &object.words) {
        // The handle fits: that was the question above.
        unsafe $0.copyMemory(from: UnsafeRawBufferPointer(start: view.data, count: view.count))
      }
    }
    return object
  }

  private mutating func removeObject(_ object: UInt32) {
    let hash = handle(ofObject: object).withView { $0.hash(seed: seed) }
    byHandle.remove(UInt32(truncatingIfNeeded: hash >> 32), object)
    if objects[object].object.isLong {
      let place = Int(objects[object].object.words.0)
      longHandles[place] = nil
      freeLongHandles.append(place)
    }
    objects.remove(object)
  }
}

/// One session's identities: from (nodeid, generation) to the registration.
struct IdentityIndex {
  private var index = HashIndex()
  private let seed: UInt64

  init(seed: UInt64) { self.seed = seed }

  var count: Int { index.count }

  func find(_ id: NodeID, in table: borrowing NodeTable) -> UInt32 {
    index.find(hash(id)) { table.registration($0).id.value == id }
  }

  /// Begins to fetch what `find` will look at.
  func prefetch(_ id: NodeID) { index.prefetch(hash(id)) }

  mutating func insert(_ id: NodeID, _ registration: UInt32) {
    index.insert(hash(id), registration)
  }

  mutating func remove(_ id: NodeID, _ registration: UInt32) {
    index.remove(hash(id), registration)
  }

  mutating func removeAll() { index.removeAll() }

  func visit(_ body: (UInt32) -> Void) { index.visit(body) }

  /// As `HashIndex.visit(from:atMost:_:)`.
  func visit(from position: inout Int, atMost limit: Int, _ body: (UInt32) -> Void) -> Bool {
    index.visit(from: &position, atMost: limit, body)
  }

  private func hash(_ id: NodeID) -> UInt32 {
    UInt32(truncatingIfNeeded: fold(fold(id.nodeid ^ seed) ^ id.generation) >> 32)
  }
}
