import CFanotify
import Glibc

/// The system calls the library makes, each once. Nothing else calls the
/// kernel, but for the receive and send of `PacketSocket`, the group's read and the queues'
/// memory.
enum Syscall {
  /// What statx(2) tells, as far as the daemon wants to know it.
  struct Status {
    var device: UInt64
    var inode: UInt64
    var mode: UInt32
    var links: UInt32
    /// Of 512 bytes.
    var blocks: UInt64
    var ctime: Timestamp
    var mountID: UInt64

    /// S_IFMT is 0o170000, S_IFDIR 0o040000.
    var isDirectory: Bool { mode & 0o170000 == 0o040000 }
    /// S_IFREG is 0o100000.
    var isRegular: Bool { mode & 0o170000 == 0o100000 }
  }

  /// An O_PATH descriptor of a directory.
  static func openDirectory(_ path: String) throws(SystemError) -> OwnedDescriptor {
    try openDirectory(Array(path.utf8))
  }

  /// The same by a path that need not be UTF-8.
  static func openDirectory(_ path: [UInt8]) throws(SystemError) -> OwnedDescriptor {
    let terminated = path.map { CChar(bitPattern: $0) } + [0]
    let fd = unsafe terminated.withUnsafeBufferPointer {
      // The buffer is not empty and ends with a NUL.
      unsafe hw_openat(AT_FDCWD, $0.baseAddress!, O_PATH | O_DIRECTORY, 0)
    }
    return OwnedDescriptor(try checked(fd, "open(\(String(decoding: path, as: UTF8.self)))"))
  }

  /// An O_PATH descriptor of `name` in a directory, the link itself if it is one.
  static func openEntry(
    of directory: borrowing OwnedDescriptor, name: [UInt8]
  ) throws(SystemError) -> OwnedDescriptor {
    let terminated = name.map { CChar(bitPattern: $0) } + [0]
    let fd = unsafe terminated.withUnsafeBufferPointer {
      // The buffer is not empty and ends with a NUL.
      unsafe hw_openat(directory.rawValue, $0.baseAddress!, O_PATH | O_NOFOLLOW, 0)
    }
    return OwnedDescriptor(try checked(fd, "openat"))
  }

  /// The same if the kernel has the name in memory, else nil. It waits for no lock.
  static func openCachedEntry(
    of directory: borrowing OwnedDescriptor, name: [UInt8]
  ) throws(SystemError) -> OwnedDescriptor? {
    let terminated = name.map { CChar(bitPattern: $0) } + [0]
    var fd = -EAGAIN
    // The kernel gives up as well where something is renamed at the moment.
    for _ in 0..<cachedAttempts where fd == -EAGAIN {
      fd = unsafe terminated.withUnsafeBufferPointer {
        // The buffer is not empty and ends with a NUL.
        unsafe hw_open_cached(directory.rawValue, $0.baseAddress!)
      }
    }
    return fd == -EAGAIN ? nil : OwnedDescriptor(try checked(fd, "openat2"))
  }

  private static let cachedAttempts = 8

  /// A detached clone of the mount that `descriptor` is on, with the
  /// directory as its root. It does not keep the mount busy.
  static func cloneMount(_ descriptor: Int32) throws(SystemError) -> OwnedDescriptor {
    OwnedDescriptor(try checked(hw_clone_mount(descriptor), "open_tree(OPEN_TREE_CLONE)"))
  }

  /// The directory itself, open for reading.
  static func openRoot(_ directory: Int32) throws(SystemError) -> OwnedDescriptor {
    let fd = unsafe ".".withCString { unsafe hw_openat(directory, $0, O_RDONLY | O_DIRECTORY, 0) }
    return OwnedDescriptor(try checked(fd, "open"))
  }

  /// The handle of the object behind a descriptor.
  static func handle(of descriptor: Int32) throws(SystemError) -> FileHandle {
    try handle(at: descriptor, "", AT_EMPTY_PATH)
  }

  /// The handle of the directory above a directory. ENOENT where that is
  /// outside the mount.
  static func parentHandle(of directory: borrowing OwnedDescriptor) throws(SystemError)
    -> FileHandle
  {
    try handle(at: directory.rawValue, "..", 0)
  }

  private static func handle(at descriptor: Int32, _ path: StaticString, _ flags: Int32)
    throws(SystemError) -> FileHandle
  {
    var raw = hw_file_handle()
    var mountID: Int32 = 0
    let result = unsafe path.utf8Start.withMemoryRebound(
      to: CChar.self, capacity: path.utf8CodeUnitCount + 1
    ) { unsafe hw_name_to_handle_at(descriptor, $0, flags, &raw, &mountID) }
    try checked(result, "name_to_handle_at")
    return FileHandle(raw)
  }

  /// An O_PATH descriptor of the object that has this handle, on the
  /// filesystem that `mount` belongs to. ESTALE when it is gone.
  static func open(_ handle: FileHandle, on mount: borrowing DetachedMount)
    throws(SystemError) -> OwnedDescriptor
  {
    try open(handle, onMount: mount.descriptor)
  }

  static func open(_ handle: FileHandle, onMount mount: Int32) throws(SystemError)
    -> OwnedDescriptor
  {
    var raw = handle.raw
    var result = unsafe hw_open_by_handle_path(mount, &raw)
    // ext4 answers ENOMEM while the inode is being freed, and ESTALE after that.
    for _ in 0..<openAttempts where result == -ENOMEM {
      sched_yield()
      result = unsafe hw_open_by_handle_path(mount, &raw)
    }
    return OwnedDescriptor(try checked(result, "open_by_handle_at"))
  }

  private static let openAttempts = 1000

  static func status(of descriptor: Int32) throws(SystemError) -> Status {
    var raw = statx()
    // 0x1000 is STATX_MNT_ID (Linux 5.8).
    let wanted = UInt32(STATX_BASIC_STATS) | 0x1000
    // What the kernel knows: a server behind FUSE or a network is not asked,
    // since it might never answer.
    let flags = AT_EMPTY_PATH | AT_STATX_DONT_SYNC
    let result = unsafe hw_statx(descriptor, "", flags, wanted, &raw)
    try checked(result, "statx")
    return Status(
      device: UInt64(gnu_dev_makedev(raw.stx_dev_major, raw.stx_dev_minor)),
      inode: raw.stx_ino, mode: UInt32(raw.stx_mode), links: raw.stx_nlink,
      blocks: raw.stx_blocks,
      ctime: Timestamp(seconds: raw.stx_ctime.tv_sec, nanoseconds: raw.stx_ctime.tv_nsec),
      mountID: raw.stx_mnt_id)
  }

  /// Looks a name up that no filesystem can hold, in `directory`: the kernel
  /// takes the directory's lock for that, so a rename that holds it has
  /// queued all its events when this returns. It leaves nothing behind.
  static func waitForDirectoryLock(_ directory: borrowing OwnedDescriptor) {
    var ignored = statx()
    unsafe overlongName.withUnsafeBufferPointer { name in
      // The buffer is not empty and ends with a NUL.
      _ = unsafe hw_statx(directory.rawValue, name.baseAddress!, 0, 0, &ignored)
    }
  }

  private static let overlongName = [CChar](repeating: 0x78, count: 300) + [0]

  /// f_type of the filesystem.
  static func filesystemMagic(of descriptor: Int32) throws(SystemError) -> UInt32 {
    var raw = statfs()
    guard unsafe fstatfs(descriptor, &raw) == 0 else { throw SystemError("fstatfs", errno) }
    return UInt32(truncatingIfNeeded: raw.f_type)
  }

  /// Where the descriptor is, seen through its mount: "/" for the mount's
  /// root and for what is outside it. Raw bytes.
  static func path(of descriptor: borrowing OwnedDescriptor) throws(SystemError) -> [UInt8] {
    var failure: Int32 = 0
    let bytes = unsafe [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
      // The buffer has 4096 bytes, as PATH_MAX.
      let result = unsafe buffer.withMemoryRebound(to: CChar.self) {
        unsafe hw_readlink_descriptor(descriptor.rawValue, $0.baseAddress!, $0.count)
      }
      count = result < 0 ? 0 : Int(result)
      failure = result < 0 ? -result : 0
    }
    guard failure == 0 else { throw SystemError("readlink", failure) }
    return bytes
  }

  /// All bytes of a small file, as procfs has them.
  static func contents(of path: String) throws(SystemError) -> [UInt8] {
    let fd = unsafe path.withCString { unsafe hw_openat(AT_FDCWD, $0, O_RDONLY, 0) }
    let file = OwnedDescriptor(try checked(fd, "open(\(path))"))
    return try contents(of: file.rawValue, path)
  }

  private static func contents(of fd: Int32, _ path: String) throws(SystemError) -> [UInt8] {
    var all: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    while true {
      let got = unsafe chunk.withUnsafeMutableBytes { unsafe read(fd, $0.baseAddress, $0.count) }
      if got < 0 && errno == EINTR { continue }
      guard got >= 0 else { throw SystemError("read(\(path))", errno) }
      if got == 0 { return all }
      all.append(contentsOf: chunk[0..<got])
    }
  }

  /// The real uid of a process.
  static func owner(ofProcess pid: Int32) throws(SystemError) -> UInt32 {
    let text = String(decoding: try contents(of: "/proc/\(pid)/status"), as: UTF8.self)
    for line in text.split(separator: "\n") where line.hasPrefix("Uid:") {
      let fields = line.split { $0 == "\t" || $0 == " " }
      if fields.count > 1, let uid = UInt32(fields[1]) { return uid }
    }
    throw SystemError("read(/proc/\(pid)/status)", ESRCH)
  }

  /// fs.fanotify.max_queued_events; 0 where it cannot be read.
  static func fanotifyQueueLimit() -> UInt32 {
    guard let text = try? contents(of: "/proc/sys/fs/fanotify/max_queued_events") else { return 0 }
    return UInt32(String(decoding: text, as: UTF8.self).prefix { $0.isNumber }) ?? 0
  }

  /// Whether poll(2) says so at once: of a pidfd, that its process has ended. Where it cannot
  /// tell (EINTR, ENOMEM) it says yes: a read finds nothing then, and a process counts as ended.
  static func isReadable(_ descriptor: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return unsafe poll(&entry, 1, 0) != 0
  }

  /// Whether a socket's peer has closed it.
  static func hasHungUp(_ socket: Int32) -> Bool {
    var entry = pollfd(fd: socket, events: 0, revents: 0)
    return unsafe poll(&entry, 1, 0) > 0 && entry.revents & Int16(POLLHUP) != 0
  }

  /// Microseconds on CLOCK_MONOTONIC.
  static func monotonicMicroseconds() -> UInt64 {
    var now = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000 + UInt64(now.tv_nsec) / 1000
  }

  /// The moment that may be compared with ctimes: CLOCK_REALTIME_COARSE less
  /// one nanosecond.
  static func coarseNow() -> Timestamp {
    var now = timespec()
    _ = unsafe clock_gettime(CLOCK_REALTIME_COARSE, &now)
    return Timestamp(seconds: Int64(now.tv_sec), nanoseconds: UInt32(now.tv_nsec))
      .earlier(byNanoseconds: 1)
  }
}

/// A moment on CLOCK_REALTIME, as filesystems stamp their inodes.
struct Timestamp: Comparable {
  var seconds: Int64
  var nanoseconds: UInt32

  static let zero = Timestamp(seconds: 0, nanoseconds: 0)

  /// Less than a second earlier.
  func earlier(byNanoseconds span: UInt32) -> Timestamp {
    nanoseconds >= span
      ? Timestamp(seconds: seconds, nanoseconds: nanoseconds - span)
      : Timestamp(seconds: seconds - 1, nanoseconds: nanoseconds + 1_000_000_000 - span)
  }

  /// Whether a ctime is later than a moment. A filesystem that stores whole
  /// seconds says no more than the second.
  func isLater(than moment: Timestamp) -> Bool {
    nanoseconds == 0 ? seconds >= moment.seconds : self > moment
  }

  static func < (a: Timestamp, b: Timestamp) -> Bool {
    a.seconds != b.seconds ? a.seconds < b.seconds : a.nanoseconds < b.nanoseconds
  }
}
