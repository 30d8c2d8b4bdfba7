import CFanotify
import Glibc
import HostWatch

/// The calls that are made to find out what works. Each returns what the
/// kernel said; nothing is decided here.
enum Probe {
  /// An object's handle. It stays in this process.
  struct Handle {
    let type: Int32
    let bytes: [UInt8]
    let mountID: Int32
  }

  static func isDirectory(_ path: String) -> Bool {
    var status = stat()
    guard unsafe stat(path, &status) == 0 else { return false }
    return status.st_mode & S_IFMT == S_IFDIR
  }

  /// A descriptor that the caller closes.
  static func openDirectory(_ path: String, _ flags: Int32) -> Result<Int32, SystemError> {
    let number = unsafe path.withCString {
      unsafe hw_openat(AT_FDCWD, $0, flags | O_DIRECTORY | O_NONBLOCK, 0)
    }
    return number >= 0 ? .success(number) : .failure(SystemError("open(\(path))", -number))
  }

  /// The start of a small file, without the newline at its end; nil if it
  /// cannot be read.
  static func contents(_ path: String) -> String? {
    bytes(path).map { String(decoding: $0, as: UTF8.self) }
  }

  /// The command of a process, or nil when it is gone.
  static func command(of pid: Int32) -> HostWatchClient.Name? {
    bytes("/proc/\(pid)/comm").map { HostWatchClient.Name($0) }
  }

  /// Where a symbolic link leads; nil if it cannot be read.
  static func link(_ path: String) -> String? {
    let target = unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(PATH_MAX)) {
      buffer -> [UInt8]? in
      // A temporary allocation always has an address.
      let size = unsafe readlink(path, buffer.baseAddress!, buffer.count)
      return unsafe size < 0 ? nil : buffer.prefix(size).map { UInt8(bitPattern: $0) }
    }
    return target.map { String(decoding: $0, as: UTF8.self) }
  }

  private static func bytes(_ path: String) -> [UInt8]? {
    let number = unsafe path.withCString { unsafe hw_openat(AT_FDCWD, $0, O_RDONLY, 0) }
    guard number >= 0 else { return nil }
    let file = OwnedDescriptor(number)
    var all: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    // mountinfo is the longest that is read; a megabyte holds thousands of mounts.
    while all.count < 1 << 20 {
      let got = unsafe chunk.withUnsafeMutableBytes {
        unsafe read(file.rawValue, $0.baseAddress, $0.count)
      }
      if got < 0 && errno == EINTR { continue }
      guard got >= 0 else { return nil }
      if got == 0 { break }
      all += chunk[0..<got]
    }
    if all.last == UInt8(ascii: "\n") { all.removeLast() }
    return all
  }

  // MARK: fanotify

  /// A group like the daemon's, closed again.
  static func group() -> Result<Void, SystemError> {
    openGroup().map { _ = Glibc.close($0) }
  }

  private static func openGroup() -> Result<Int32, SystemError> {
    let number = hw_fanotify_init(UInt32(hw_group_flags), UInt32(O_RDONLY | O_CLOEXEC))
    return number >= 0 ? .success(number) : .failure(SystemError("fanotify_init", -number))
  }

  /// Marks the filesystem of a directory in a group of its own, for a moment.
  static func mark(_ directory: Int32) -> Result<Void, SystemError> {
    openGroup().flatMap { number in
      let group = OwnedDescriptor(number)
      let mask = EventMask.defaultEvents.rawValue | EventMask.isDirectory.rawValue
      let result = hw_fanotify_mark(
        group.rawValue, UInt32(FAN_MARK_ADD) | UInt32(FAN_MARK_FILESYSTEM), mask, directory, nil)
      return result >= 0
        ? .success(()) : .failure(SystemError("fanotify_mark(FAN_MARK_FILESYSTEM)", -result))
    }
  }

  // MARK: Objects

  static func handle(of descriptor: Int32) -> Result<Handle, SystemError> {
    var raw = hw_file_handle()
    var mountID: Int32 = -1
    let result = unsafe hw_name_to_handle_at(descriptor, "", AT_EMPTY_PATH, &raw, &mountID)
    guard result >= 0, raw.bytes <= UInt32(hw_handle_max) else {
      return .failure(SystemError("name_to_handle_at", result < 0 ? -result : EOVERFLOW))
    }
    // The count was checked against the array's size.
    let bytes = unsafe withUnsafeBytes(of: raw.data) { unsafe Array($0.prefix(Int(raw.bytes))) }
    return .success(Handle(type: raw.type, bytes: bytes, mountID: mountID))
  }

  /// A descriptor that the caller closes.
  static func open(_ handle: Handle, mount: Int32) -> Result<Int32, SystemError> {
    var raw = hw_file_handle()
    precondition(handle.bytes.count <= Int(hw_handle_max))
    raw.bytes = UInt32(handle.bytes.count)
    raw.type = handle.type
    unsafe withUnsafeMutableBytes(of: &raw.data) { unsafe $0.copyBytes(from: handle.bytes) }
    let number = unsafe hw_open_by_handle_path(mount, &raw)
    return number >= 0 ? .success(number) : .failure(SystemError("open_by_handle_at", -number))
  }

  static func inode(of descriptor: Int32) -> UInt64? {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { return nil }
    return UInt64(status.st_ino)
  }

  static func generation(of descriptor: Int32) -> Result<UInt32, SystemError> {
    var generation: UInt32 = 0
    let result = unsafe hw_inode_generation(descriptor, &generation)
    return result >= 0
      ? .success(generation) : .failure(SystemError("ioctl(FS_IOC_GETVERSION)", -result))
  }

  /// f_type of the filesystem.
  static func magic(of descriptor: Int32) -> UInt32? {
    var status = statfs()
    guard unsafe fstatfs(descriptor, &status) == 0 else { return nil }
    return UInt32(truncatingIfNeeded: status.f_type)
  }

  /// The type and the mount point of what a descriptor is on
  /// (proc_pid_mountinfo(5)): by the mount, or else by the device.
  static func mount(of descriptor: Int32, id: Int32?) -> (type: String, point: String)? {
    var status = stat()
    guard unsafe fstat(descriptor, &status) == 0 else { return nil }
    let device = "\(gnu_dev_major(status.st_dev)):\(gnu_dev_minor(status.st_dev))"
    for line in (contents("/proc/self/mountinfo") ?? "").split(separator: "\n") {
      let fields = line.split(separator: " ")
      guard fields.count > 5, let separator = fields.firstIndex(of: "-"),
        separator + 1 < fields.count
      else { continue }
      let matches = id.map { fields[0] == "\($0)" } ?? (fields[2] == device)
      if matches { return (String(fields[separator + 1]), String(fields[4])) }
    }
    return nil
  }
}

extension Probe.Handle {
  /// The inode number and the generation in the handle, or nil where the
  /// filesystem, the type and the length together are not known.
  func identity(magic: UInt32) -> NodeID? {
    switch (Int(magic), type, bytes.count) {
    case (Int(hw_magic_ext4), 0x01, 8):
      NodeID(nodeid: number(0, 4), generation: number(4, 4))
    case (Int(hw_magic_tmpfs), 0x01, 12):
      NodeID(nodeid: number(8, 4) << 32 | number(4, 4), generation: number(0, 4))
    case (Int(hw_magic_xfs), 0x81, 12):
      NodeID(nodeid: number(0, 8), generation: number(8, 4))
    case (Int(hw_magic_btrfs), 0x4d, 20):
      NodeID(nodeid: number(0, 8), generation: number(16, 4))
    default:
      nil
    }
  }

  /// In host byte order; the caller has checked the length.
  private func number(_ offset: Int, _ size: Int) -> UInt64 {
    let part = bytes[offset..<offset + size]
    let ordered = UInt16(1).littleEndian == 1 ? Array(part.reversed()) : Array(part)
    return ordered.reduce(0) { $0 << 8 | UInt64($1) }
  }
}
