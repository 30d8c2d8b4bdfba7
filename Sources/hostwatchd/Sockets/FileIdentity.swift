import CFanotify
import HostWatch

/// Which file a path or a descriptor means, whatever its name.
struct FileIdentity: Equatable {
  /// As st_dev has it.
  let device: UInt64
  let inode: UInt64
  let isSocket: Bool

  init?(descriptor: Int32) {
    self.init(descriptor, "", AT_EMPTY_PATH)
  }

  /// Of the path itself, not of what a symbolic link there points to.
  init?(path: String) {
    guard let found = try? Self.find(path) else { return nil }
    self = found
  }

  /// The same; nil only where there is nothing.
  static func find(_ path: String) throws(SystemError) -> FileIdentity? {
    var status = statx()
    let result = unsafe hw_statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, wanted, &status)
    if result == -ENOENT { return nil }
    guard result == 0 else { throw SystemError("statx(\(path))", -result) }
    return FileIdentity(status)
  }

  private static let wanted = UInt32(STATX_TYPE | STATX_INO)

  private init?(_ descriptor: Int32, _ path: String, _ flags: Int32) {
    var status = statx()
    guard unsafe hw_statx(descriptor, path, flags, Self.wanted, &status) == 0 else { return nil }
    self.init(status)
  }

  private init(_ status: statx) {
    device = UInt64(gnu_dev_makedev(status.stx_dev_major, status.stx_dev_minor))
    inode = status.stx_ino
    isSocket = UInt32(status.stx_mode) & UInt32(S_IFMT) == UInt32(S_IFSOCK)
  }
}
