import CFanotify

/// A file handle: the kernel's name of one inode of one filesystem, which no
/// other inode of it ever has. It never leaves the process.
///
/// Two handles of one object on one filesystem are equal byte for byte.
struct FileHandle: Hashable {
  /// Room for the largest handle (MAX_HANDLE_SZ), zero behind `raw.bytes`.
  private(set) var raw: hw_file_handle

  init(_ raw: hw_file_handle) { self.raw = raw }

  init(_ view: HandleView) {
    raw = hw_file_handle()
    raw.bytes = UInt32(view.count)
    raw.type = view.type
    // A view's count is at most hw_handle_max: its maker has checked that.
    unsafe withUnsafeMutableBytes(of: &raw.data) {
      unsafe $0.copyMemory(from: UnsafeRawBufferPointer(start: view.data, count: view.count))
    }
  }

  /// Calls `body` with a view of this handle, valid during the call alone.
  func withView<Result, Failure: Error>(_ body: (HandleView) throws(Failure) -> Result)
    throws(Failure) -> Result
  {
    var copy = raw
    // The struct is laid out as HandleView expects: size, type, bytes.
    return try unsafe withUnsafeBytes(of: &copy) { bytes throws(Failure) in
      try body(unsafe HandleView(bytes.baseAddress!))
    }
  }

  /// Whether it has the form that tmpfs, btrfs or bcachefs gives its handles, filesystems
  /// without a block device that wait for no server (exportfs.h). FUSE, NFS,
  /// ceph and others have others.
  var isOfLocalFilesystem: Bool {
    switch raw.type {
    case 0x01: raw.bytes == 12  // FILEID_INO32_GEN, with tmpfs's 64-bit inode numbers
    case 0x4d: raw.bytes == 20  // FILEID_BTRFS_WITHOUT_PARENT
    case 0xb1, 0xb2: true  // FILEID_BCACHEFS_*
    default: false
    }
  }

  static func == (a: FileHandle, b: FileHandle) -> Bool {
    a.withView { left in b.withView { right in left == right } }
  }

  func hash(into hasher: inout Hasher) {
    withView { hasher.combine($0.hash(seed: 0)) }
  }
}

/// A file handle where it lies in memory: `u32 bytes, i32 type, bytes`, as
/// the kernel writes it into an event record and as `hw_file_handle` is laid
/// out. It copies nothing and is valid as long as that memory.
///
/// Whoever makes one has checked that `bytes` is at most 128 and that so many
/// bytes are there.
@safe struct HandleView: Equatable {
  private let base: UnsafeRawPointer

  @unsafe init(_ base: UnsafeRawPointer) { unsafe self.base = base }

  var count: Int { unsafe Int(base.loadUnaligned(as: UInt32.self)) }
  var type: Int32 { unsafe base.loadUnaligned(fromByteOffset: 4, as: Int32.self) }
  var data: UnsafeRawPointer { unsafe base + 8 }

  /// A number of the handle at a byte offset.
  func load<Number: FixedWidthInteger & BitwiseCopyable>(_ offset: Int, as: Number.Type) -> Number {
    precondition(offset >= 0 && offset + MemoryLayout<Number>.size <= count)
    return unsafe data.loadUnaligned(fromByteOffset: offset, as: Number.self)
  }

  static func == (a: HandleView, b: HandleView) -> Bool {
    let count = a.count
    guard count == b.count, a.type == b.type else { return false }
    return unsafe memcmp(a.data, b.data, count) == 0
  }

  /// A 64-bit hash that nobody outside can aim at: `seed` is random.
  @inline(__always)
  func hash(seed: UInt64) -> UInt64 {
    // Both the size and the type are in the first eight bytes.
    let start = unsafe base.loadUnaligned(as: UInt64.self)
    return unsafe hashBytes(data, count, seed: seed ^ start)
  }
}

/// Hashes bytes eight at a time by folded 128-bit products.
@inline(__always)
@unsafe func hashBytes(_ bytes: UnsafeRawPointer, _ count: Int, seed: UInt64) -> UInt64 {
  var state = seed ^ 0x9E37_79B9_7F4A_7C15
  var offset = 0
  while offset + 8 <= count {
    state = unsafe fold(state ^ bytes.loadUnaligned(fromByteOffset: offset, as: UInt64.self))
    offset += 8
  }
  if offset < count {
    var rest: UInt64 = 0
    if offset + 4 <= count {
      rest = UInt64(unsafe bytes.loadUnaligned(fromByteOffset: offset, as: UInt32.self))
      offset += 4
    }
    while offset < count {
      rest = rest << 8 | UInt64(unsafe bytes.load(fromByteOffset: offset, as: UInt8.self))
      offset += 1
    }
    state = fold(state ^ rest)
  }
  return fold(state ^ UInt64(truncatingIfNeeded: count))
}

@inline(__always)
func fold(_ value: UInt64) -> UInt64 {
  let product = value.multipliedFullWidth(by: 0xA076_1D64_78BD_642F)
  return product.high ^ product.low
}
