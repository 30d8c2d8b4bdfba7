import CFanotify
import Glibc
import HostWatch

/// Whether a directory's filesystem can be watched, and its objects be told
/// apart. Every answer comes from trying.
struct FilesystemChecks {
  let path: String

  func all() -> [Check] {
    // O_RDONLY, for FS_IOC_GETVERSION does not work with O_PATH.
    switch Probe.openDirectory(path, O_RDONLY) {
    case .failure(let error):
      let advice =
        error.code == EACCES ? "run doctor as root" : "name a directory that is there"
      return [.fail("path", error.description, advice)]
    case .success(let number):
      let directory = OwnedDescriptor(number)
      return checks(directory)
    }
  }

  private func checks(_ directory: borrowing OwnedDescriptor) -> [Check] {
    let fd = directory.rawValue
    let handle: Probe.Handle
    switch Probe.handle(of: fd) {
    case .failure(let error):
      return [
        filesystem(fd, nil), mark(fd), .fail("handle", error.description, handleAdvice(fd, error)),
      ]
    case .success(let found): handle = found
    }
    return [
      filesystem(fd, handle.mountID), mark(fd),
      .ok("handle", "type 0x\(String(handle.type, radix: 16)), \(handle.bytes.count) bytes"),
      identity(fd, handle), opening(fd, handle),
    ]
  }

  private func filesystem(_ fd: Int32, _ mountID: Int32?) -> Check {
    let mounted = Probe.mount(of: fd, id: mountID)
    let magic = Probe.magic(of: fd).map { "0x" + String($0, radix: 16) } ?? "unknown"
    guard let mounted else { return .ok("filesystem", "f_type \(magic)") }
    return .ok("filesystem", "\(mounted.type), f_type \(magic), mounted on \(mounted.point)")
  }

  private func handleAdvice(_ fd: Int32, _ error: SystemError) -> String {
    guard error.code == EOPNOTSUPP else { return "see name_to_handle_at(2)" }
    guard Probe.magic(of: fd) != UInt32(hw_magic_overlay) else {
      return "mount the overlay with \"index=on,nfs_export=on\""
    }
    return "this filesystem has no file handles; share a directory of one that has, such as "
      + "ext4, xfs, btrfs or tmpfs"
  }

  // MARK: The mark

  private func mark(_ fd: Int32) -> Check {
    switch Probe.mark(fd) {
    case .success: return .ok("filesystem-mark", "the whole filesystem can be marked")
    case .failure(let error):
      if error.code == EPERM { return HostChecks.untried("filesystem-mark", error.description) }
      return .fail("filesystem-mark", error.description, Self.advice(error.code))
    }
  }

  static func advice(_ code: Int32) -> String {
    switch code {
    case EXDEV:
      "this is a btrfs subvolume: mount the top level with \"mount -o subvolid=5 DEVICE DIRECTORY\" "
        + "where nobody else uses it, and share the directory there"
    case EOPNOTSUPP:
      "an overlay must be mounted with \"index=on,nfs_export=on\"; proc, sysfs and other "
        + "filesystems without file handles cannot be watched"
    case ENODEV:
      "this filesystem has no identity (FUSE, or an fsid of zero): watch the filesystem behind "
        + "it, on the machine that has it"
    case ENOSPC: "raise fs.fanotify.max_user_marks"
    case EINVAL:
      "this kernel does not know an event that is asked for; Linux 5.17 or later is needed"
    default: "see fanotify_mark(2)"
    }
  }

  // MARK: The handle

  /// TREE mode takes nodeid and generation from the handle.
  private func identity(_ fd: Int32, _ handle: Probe.Handle) -> Check {
    let name = "handle-identity"
    if Probe.magic(of: fd) == UInt32(hw_magic_overlay), handle.type == 0xf8 {
      return .ok(name, "the handle wraps that of the layer which holds the object")
    }
    guard let magic = Probe.magic(of: fd),
      let found = handle.identity(magic: magic)
    else {
      return .warn(
        name, "how this filesystem's handles hold the inode number is not known",
        "NODES sessions work; TREE sessions (hostwatchctl watch) are refused here")
    }
    let inode = Probe.inode(of: fd)
    guard inode == found.nodeid else {
      return .fail(
        name,
        "the handle says inode \(found.nodeid), stat says \(inode.map(String.init) ?? "nothing")",
        "do not use TREE sessions here, and report this filesystem")
    }
    let text = "inode \(found.nodeid), generation \(found.generation)"
    switch Probe.generation(of: fd) {
    case .failure: return .ok(name, "\(text); the filesystem does not tell it otherwise")
    case .success(let generation) where UInt64(generation) == found.generation:
      return .ok(name, "\(text), as FS_IOC_GETVERSION says")
    case .success(let generation):
      return .fail(
        name, "\(text), but FS_IOC_GETVERSION says \(generation)",
        "do not use TREE sessions here, and report this filesystem")
    }
  }

  private func opening(_ fd: Int32, _ handle: Probe.Handle) -> Check {
    let name = "open-by-handle"
    switch Probe.open(handle, mount: fd) {
    case .failure(let error) where error.code == EPERM:
      return HostChecks.untried(name, error.description)
    case .failure(let error):
      return .fail(
        name, error.description,
        "objects cannot be looked up by handle here; see open_by_handle_at(2)")
    case .success(let number):
      let opened = OwnedDescriptor(number)
      return Probe.inode(of: opened.rawValue) == Probe.inode(of: fd)
        ? .ok(name, "the handle opens the directory it was taken from")
        : .fail(
          name, "the handle opens another object", "do not share this filesystem, and report it")
    }
  }
}
