import CFanotify
import HostWatch

/// Which file a path or a descriptor means, whatever its name.
struct FileIdentity: Equatable {
  /// As st_dev has it.
  let device: UInt64
  let inode: UInt64
  let isSocket: Bool

  static func find(descriptor: Int32) throws(SystemError) -> FileIdentity {
    var status = statx()
    let result = unsafe hw_statx(descriptor, "", AT_EMPTY_PATH, wanted, &status)
    guard result == 0 else { throw SystemError("statx", -result) }
    return FileIdentity(status)
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

  private init(_ status: statx) {
    device = UInt64(gnu_dev_makedev(status.stx_dev_major, status.stx_dev_minor))
    inode = status.stx_ino
    isSocket = UInt32(status.stx_mode) & UInt32(S_IFMT) == UInt32(S_IFSOCK)
  }
}
