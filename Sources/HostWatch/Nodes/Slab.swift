import CFanotify
import Glibc

/// Records of one trivial type, of at most 512 bytes, in chunks that never move:
/// growing copies nothing, and a freed record is used again before a new chunk is
/// made.
///
/// An index is a record's name; index 0 is never given out, so that 0 can
/// mean "none".
@safe struct Slab<Record: BitwiseCopyable>: ~Copyable {
  private static var chunkBits: Int { 12 }
  private static var chunkSize: Int { 1 << chunkBits }
  private static var chunkBytes: Int { chunkSize * MemoryLayout<Record>.stride }
  /// Records of this size, or of half of it, do not lie across two.
  private static var cacheLine: Int { 64 }
  /// How many chunks a huge page has room for.
  private static var chunksPerPage: Int { Int(hw_huge_page_size) / chunkBytes }

  /// The first `chunksPerPage` are of malloc's; the others lie in huge pages.
  private var chunks: [UnsafeMutablePointer<Record>]
  /// Bytes in huge pages.
  private(set) var mappedBytes = 0
  private var next = 1
  private var free: [UInt32] = []
  private(set) var count = 0

  init() { unsafe chunks = [] }

  deinit {
    for index in unsafe chunks.indices {
      if index < Self.chunksPerPage {
        unsafe chunks[index].deallocate()
      } else if index % Self.chunksPerPage == 0 {
        unsafe munmap(chunks[index], Int(hw_huge_page_size))
      }
    }
  }

  /// Stores `record` and returns its index.
  mutating func insert(_ record: Record) -> UInt32 {
    count += 1
    if let index = free.popLast() {
      self[index] = record
      return index
    }
    if unsafe next >= chunks.count << Self.chunkBits { grow() }
    let index = UInt32(next)
    next += 1
    unsafe pointer(index).initialize(to: record)
    return index
  }

  /// Adds a chunk; those of a table that is large already come in huge pages, so that
  /// looking at one of very many records does not wait for its address, too.
  private mutating func grow() {
    guard unsafe chunks.count >= Self.chunksPerPage else {
      let chunk = UnsafeMutableRawPointer.allocate(
        byteCount: Self.chunkBytes, alignment: Self.cacheLine)
      unsafe chunks.append(chunk.bindMemory(to: Record.self, capacity: Self.chunkSize))
      return
    }
    guard let page = unsafe hw_map_huge_page() else { fatalError("out of memory") }
    let capacity = Self.chunksPerPage * Self.chunkSize
    let records = unsafe page.bindMemory(to: Record.self, capacity: capacity)
    for index in 0..<Self.chunksPerPage {
      unsafe chunks.append(records + index * Self.chunkSize)
    }
    mappedBytes += Int(hw_huge_page_size)
  }

  /// Makes the index free again. What it held is gone.
  mutating func remove(_ index: UInt32) {
    precondition(index != 0 && Int(index) < next)
    count -= 1
    free.append(index)
  }

  subscript(index: UInt32) -> Record {
    @inline(__always) get {
      precondition(index != 0 && Int(index) < next)
      return unsafe pointer(index).pointee
    }
    @inline(__always) _modify {
      precondition(index != 0 && Int(index) < next)
      yield unsafe &pointer(index).pointee
    }
    @inline(__always) set {
      precondition(index != 0 && Int(index) < next)
      unsafe pointer(index).pointee = newValue
    }
  }

  /// Begins to fetch a record, if there is one of that index.
  @inline(__always)
  func prefetch(_ index: UInt32) {
    guard index != 0, Int(index) < next else { return }
    unsafe hw_prefetch(pointer(index))
  }

  /// Where a record lies; it stays there until it is removed.
  @inline(__always)
  @unsafe func pointer(_ index: UInt32) -> UnsafeMutablePointer<Record> {
    unsafe chunks[Int(index) >> Self.chunkBits] + (Int(index) & (Self.chunkSize - 1))
  }
}

/// An open-addressing index from 32-bit hashes to record indices: linear
/// probing, deletion by shifting back, at most seven eighths full.
///
/// It keeps the hash beside the index, so that a probe touches a record only
/// where the hash is equal. What equal records are is the caller's business.
///
/// It grows without stopping: the full table stays beside the new one, and each
/// insertion moves some of its slots, so that it has gone long before the new one
/// is full. What has been moved stays in the old one, too, where it does no harm.
struct HashIndex {
  private var slots: [UInt64] = []
  private var mask = 0
  private(set) var count = 0
  /// The table from before the growth, its slots up to `moved` being in `slots`.
  private var old: [UInt64] = []
  private var moved = 0

  /// In `old`: was taken out. No record has such an index.
  private static let removed = UInt64(UInt32.max)
  private static let movedPerInsertion = 32

  /// The index whose hash is `hash` and for which `matches` says yes, or 0.
  @inline(__always)
  func find(_ hash: UInt32, where matches: (UInt32) -> Bool) -> UInt32 {
    guard count != 0 else { return 0 }
    let found = Self.probe(slots, hash, matches)
    if found != 0 || old.isEmpty { return found }
    return Self.probe(old, hash, matches)
  }

  /// Begins to fetch where the search for a hash begins.
  @inline(__always)
  func prefetch(_ hash: UInt32) {
    guard count != 0 else { return }
    unsafe slots.withUnsafeBufferPointer {
      // The mask keeps the position within the slots, of which there are some.
      unsafe hw_prefetch($0.baseAddress.unsafelyUnwrapped + (Int(hash) & ($0.count - 1)))
    }
  }

  /// The first index that stands for the hash, and may be another's; 0 for none.
  @inline(__always)
  func guess(_ hash: UInt32) -> UInt32 {
    guard count != 0 else { return 0 }
    let slot = slots[Int(hash) & mask]
    return UInt32(truncatingIfNeeded: slot >> 32) == hash ? UInt32(truncatingIfNeeded: slot) : 0
  }

  @inline(__always)
  private static func probe(_ table: [UInt64], _ hash: UInt32, _ matches: (UInt32) -> Bool)
    -> UInt32
  {
    // A table is never empty here, nor full, and its size is a power of two: the mask
    // keeps the position within it.
    unsafe table.withUnsafeBufferPointer { slots in
      let start = unsafe slots.baseAddress.unsafelyUnwrapped
      let mask = slots.count - 1
      var position = Int(hash) & mask
      while true {
        let slot = unsafe start[position]
        if slot == 0 { return 0 }
        if UInt32(truncatingIfNeeded: slot >> 32) == hash {
          let index = UInt32(truncatingIfNeeded: slot)
          if slot != removed && matches(index) { return index }
        }
        position = (position + 1) & mask
      }
    }
  }

  /// Adds an index that is not in the table.
  mutating func insert(_ hash: UInt32, _ index: UInt32) {
    precondition(index != 0 && index != UInt32.max)
    if (count + 1) * 8 > slots.count * 7 { grow() }
    place(UInt64(hash) << 32 | UInt64(index))
    count += 1
    if !old.isEmpty { move(Self.movedPerInsertion) }
  }

  /// Takes out the pair if it is there.
  mutating func remove(_ hash: UInt32, _ index: UInt32) {
    guard count != 0 else { return }
    let wanted = UInt64(hash) << 32 | UInt64(index)
    if removeOld(wanted) || removeNew(wanted) { count -= 1 }
  }

  /// True when it was in the old table alone.
  private mutating func removeOld(_ wanted: UInt64) -> Bool {
    guard !old.isEmpty else { return false }
    var position = Int(wanted >> 32) & (old.count - 1)
    while old[position] != wanted {
      if old[position] == 0 { return false }
      position = (position + 1) & (old.count - 1)
    }
    old[position] = Self.removed
    return position >= moved
  }

  private mutating func removeNew(_ wanted: UInt64) -> Bool {
    var hole = Int(wanted >> 32) & mask
    while slots[hole] != wanted {
      if slots[hole] == 0 { return false }
      hole = (hole + 1) & mask
    }
    // Move back what could not be found across the hole.
    var position = hole
    while true {
      position = (position + 1) & mask
      let slot = slots[position]
      if slot == 0 { break }
      let home = Int(slot >> 32) & mask
      if (position - home) & mask >= (position - hole) & mask {
        slots[hole] = slot
        hole = position
      }
    }
    slots[hole] = 0
    return true
  }

  mutating func removeAll() { self = HashIndex() }

  /// Every index in the table, in no order.
  func visit(_ body: (UInt32) -> Void) {
    var position = 0
    while visit(from: &position, atMost: Int.max, body) {}
  }

  /// The indices in the next slots from `position` on; false when there are no more.
  /// The table must not change in between.
  func visit(from position: inout Int, atMost limit: Int, _ body: (UInt32) -> Void) -> Bool {
    let all = slots.count + old.count
    let end = min(limit, all - position) + position
    while position < end {
      let isOld = position >= slots.count
      let slot = isOld ? old[position - slots.count] : slots[position]
      let isGone = isOld && (slot == Self.removed || position - slots.count < moved)
      if slot != 0 && !isGone { body(UInt32(truncatingIfNeeded: slot)) }
      position += 1
    }
    return position < all
  }

  private mutating func place(_ slot: UInt64) {
    var position = Int(slot >> 32) & mask
    while slots[position] != 0 { position = (position + 1) & mask }
    slots[position] = slot
  }

  private mutating func grow() {
    move(Int.max)
    old = slots
    moved = 0
    let size = max(64, old.count * 2)
    slots = unsafe [UInt64](unsafeUninitializedCapacity: size) { buffer, count in
      // The whole buffer is initialised, once it is known which pages it has.
      unsafe hw_advise_huge_pages(buffer.baseAddress, size * MemoryLayout<UInt64>.stride)
      unsafe buffer.initialize(repeating: 0)
      count = size
    }
    mask = slots.count - 1
  }

  private mutating func move(_ limit: Int) {
    let end = moved + min(limit, old.count - moved)
    while moved < end {
      let slot = old[moved]
      moved += 1
      if slot != 0 && slot != Self.removed { place(slot) }
    }
    if moved == old.count { (old, moved) = ([], 0) }
  }
}
