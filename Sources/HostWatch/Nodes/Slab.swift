/// Records of one trivial type in chunks that never move: growing copies
/// nothing, and a freed record is used again before a new chunk is made.
///
/// An index is a record's name; index 0 is never given out, so that 0 can
/// mean "none".
@safe struct Slab<Record: BitwiseCopyable>: ~Copyable {
  private static var chunkBits: Int { 12 }
  private static var chunkSize: Int { 1 << chunkBits }

  private var chunks: [UnsafeMutablePointer<Record>]
  private var next = 1
  private var free: [UInt32] = []
  private(set) var count = 0

  init() { unsafe chunks = [] }

  deinit {
    for index in unsafe chunks.indices { unsafe chunks[index].deallocate() }
  }

  /// Stores `record` and returns its index.
  mutating func insert(_ record: Record) -> UInt32 {
    count += 1
    if let index = free.popLast() {
      self[index] = record
      return index
    }
    if unsafe next >= chunks.count << Self.chunkBits {
      unsafe chunks.append(UnsafeMutablePointer<Record>.allocate(capacity: Self.chunkSize))
    }
    let index = UInt32(next)
    next += 1
    unsafe pointer(index).initialize(to: record)
    return index
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
struct HashIndex {
  private var slots: [UInt64] = []
  private var mask = 0
  private(set) var count = 0

  /// The index whose hash is `hash` and for which `matches` says yes, or 0.
  @inline(__always)
  func find(_ hash: UInt32, where matches: (UInt32) -> Bool) -> UInt32 {
    guard count != 0 else { return 0 }
    precondition(mask < slots.count)
    return unsafe slots.withUnsafeBufferPointer { slots in
      var position = Int(hash) & mask
      while true {
        // The mask keeps the position within the slots.
        let slot = unsafe slots.baseAddress.unsafelyUnwrapped[position]
        if slot == 0 { return 0 }
        if UInt32(truncatingIfNeeded: slot >> 32) == hash {
          let index = UInt32(truncatingIfNeeded: slot)
          if matches(index) { return index }
        }
        position = (position + 1) & mask
      }
    }
  }

  /// Adds an index that is not in the table.
  mutating func insert(_ hash: UInt32, _ index: UInt32) {
    precondition(index != 0)
    if (count + 1) * 8 > slots.count * 7 { grow() }
    place(UInt64(hash) << 32 | UInt64(index))
    count += 1
  }

  /// Takes out the pair if it is there.
  mutating func remove(_ hash: UInt32, _ index: UInt32) {
    guard count != 0 else { return }
    let wanted = UInt64(hash) << 32 | UInt64(index)
    var hole = Int(hash) & mask
    while slots[hole] != wanted {
      if slots[hole] == 0 { return }
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
    count -= 1
  }

  mutating func removeAll() {
    slots = []
    mask = 0
    count = 0
  }

  /// Every index in the table, in no order.
  func visit(_ body: (UInt32) -> Void) {
    for slot in slots where slot != 0 { body(UInt32(truncatingIfNeeded: slot)) }
  }

  private mutating func place(_ slot: UInt64) {
    var position = Int(slot >> 32) & mask
    while slots[position] != 0 { position = (position + 1) & mask }
    slots[position] = slot
  }

  private mutating func grow() {
    let old = slots
    slots = [UInt64](repeating: 0, count: max(64, old.count * 2))
    mask = slots.count - 1
    for slot in old where slot != 0 { place(slot) }
  }
}
