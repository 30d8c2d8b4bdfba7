import CFanotify

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
    self.init(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW)
  }

  private init?(_ descriptor: Int32, _ path: String, _ flags: Int32) {
    var status = statx()
    let wanted = UInt32(STATX_TYPE | STATX_INO)
    guard unsafe hw_statx(descriptor, path, flags, wanted, &status) == 0 else { return nil }
    device = UInt64(gnu_dev_makedev(status.stx_dev_major, status.stx_dev_minor))
    inode = status.stx_ino
    isSocket = UInt32(status.stx_mode) & UInt32(S_IFMT) == UInt32(S_IFSOCK)
  }
}
