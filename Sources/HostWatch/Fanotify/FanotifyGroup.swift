import CFanotify
import CHostWatch
import Glibc

/// Why a filesystem cannot be watched: what the kernel said, and what to do.
public struct WatchError: Error, Sendable, CustomStringConvertible {
  /// The system call that said no.
  public let cause: SystemError
  /// Sentences for an operator or a client.
  public let description: String

  init(_ cause: SystemError, _ description: String) {
    self.cause = cause
    self.description = description
  }
}

/// One fanotify group and its one filesystem mark.
///
/// Groups go by superblock, not by fsid: copies of an image have the same fsid,
/// and a btrfs subvolume one of its own.
struct FanotifyGroup: ~Copyable {
  /// For reading events; non-blocking.
  let descriptor: OwnedDescriptor
  /// The superblock's device number, as /proc/self/fdinfo of the group says.
  let device: UInt64
  /// Events that the kernel queues before it drops them, as the sysctl was when the group
  /// was made; 0: not known.
  let queueLimit: UInt32
  /// What the mark asks for.
  private(set) var mask: EventMask

  /// What the mark asks for when no session asks for anything: seldom, and
  /// passed to nobody (FAN_MOVE_SELF). It keeps the mark.
  static let idleMask = EventMask(rawValue: 0x800)
  private static let onDirectories: UInt64 = 0x4000_0000

  /// Makes a group and marks the filesystem that `directory` is on.
  init(marking directory: Int32) throws(WatchError) {
    queueLimit = Syscall.fanotifyQueueLimit()
    let result = hw_fanotify_init(
      UInt32(hw_group_flags), UInt32(O_RDONLY | O_CLOEXEC | O_LARGEFILE))
    guard result >= 0 else { throw WatchAdvice.initFailed(-result) }
    let group = OwnedDescriptor(result)
    do {
      try Self.mark(group, directory, FAN_MARK_ADD, Self.idleMask)
      device = try Self.markedDevice(group)
    } catch {
      throw WatchAdvice.markFailed(error, directory)
    }
    mask = Self.idleMask
    descriptor = group
  }

  /// Takes over a group that another process has made. Throws unless its one
  /// mark is on `device`; what that asks for is read from the kernel.
  init(
    adopting group: consuming OwnedDescriptor, device: UInt64, queueLimit: UInt32
  ) throws(SystemError) {
    self.queueLimit = queueLimit
    let mark = try Self.mark(of: group)
    guard let mark, mark.device == device else {
      throw SystemError("a fanotify group that was handed over", ENODEV)
    }
    descriptor = group
    self.device = device
    mask = mark.mask
  }

  /// Makes the mark ask for `wanted` and nothing else.
  mutating func setMask(_ wanted: EventMask, directory: Int32) throws(SystemError) {
    let new = wanted.isEmpty ? Self.idleMask : wanted
    let added = new.subtracting(mask)
    let removed = mask.subtracting(new)
    if !added.isEmpty { try Self.mark(descriptor, directory, FAN_MARK_ADD, added) }
    mask.formUnion(added)
    if !removed.isEmpty { try Self.mark(descriptor, directory, FAN_MARK_REMOVE, removed) }
    mask.subtract(removed)
  }

  private static func mark(
    _ group: borrowing OwnedDescriptor, _ directory: Int32, _ operation: Int32, _ mask: EventMask
  ) throws(SystemError) {
    // Removing must leave FAN_ONDIR, or the rest would go deaf on directories.
    let bits = operation == FAN_MARK_ADD ? mask.rawValue | onDirectories : mask.rawValue
    let flags = UInt32(operation | FAN_MARK_FILESYSTEM)
    // "." since an O_PATH descriptor cannot be marked by itself.
    try checked(
      unsafe hw_fanotify_mark(group.rawValue, flags, bits, directory, "."), "fanotify_mark")
  }

  /// `sdev` of the one mark: the kernel's own device number, major << 20 | minor.
  private static func markedDevice(_ group: borrowing OwnedDescriptor) throws(SystemError) -> UInt64
  {
    guard let mark = try mark(of: group) else {
      throw SystemError("fdinfo of the fanotify group: no mark", ENOENT)
    }
    return mark.device
  }

  private static func mark(of group: borrowing OwnedDescriptor) throws(SystemError)
    -> (device: UInt64, mask: EventMask)?
  {
    let path = "/proc/self/fdinfo/\(group.rawValue)"
    let text = String(decoding: try Syscall.contents(of: path), as: UTF8.self)
    for line in text.split(separator: "\n") where line.hasPrefix("fanotify sdev:") {
      let digits = line.dropFirst("fanotify sdev:".count).prefix { $0 != " " }
      if let number = UInt64(digits, radix: 16) {
        let mask = line.split(separator: " ").first { $0.hasPrefix("mask:") }
        let bits = mask.flatMap { UInt64($0.dropFirst("mask:".count), radix: 16) } ?? 0
        return (
          UInt64(gnu_dev_makedev(UInt32(number >> 20), UInt32(number & 0xfffff))),
          EventMask(rawValue: bits).intersection(EventMask.allEvents.union(idleMask))
        )
      }
    }
    return nil
  }
}

/// What to do about what the kernel refused.
enum WatchAdvice {
  static func initFailed(_ code: Int32) -> WatchError {
    let cause = SystemError("fanotify_init", code)
    switch code {
    case EPERM:
      return WatchError(
        cause, "\(cause): the daemon needs CAP_SYS_ADMIN in the first user namespace.")
    case EINVAL, ENOSYS:
      return WatchError(
        cause,
        "\(cause): the kernel has no fanotify with FAN_REPORT_TARGET_FID: Linux 5.17 with CONFIG_FANOTIFY is needed."
      )
    case EMFILE:
      return WatchError(
        cause, "\(cause): raise fs.fanotify.max_user_groups or the descriptor limit.")
    default:
      return WatchError(cause, "\(cause).")
    }
  }

  static func markFailed(_ cause: SystemError, _ directory: Int32) -> WatchError {
    let magic = (try? Syscall.filesystemMagic(of: directory)) ?? 0
    let name = FilesystemName.name(magic: magic)
    return WatchError(cause, "\(name): \(cause): \(remedy(cause.code, magic))")
  }

  private static func remedy(_ code: Int32, _ magic: UInt32) -> String {
    let overlay = "mount the overlay with index=on,nfs_export=on."
    switch (code, Int(magic)) {
    case (EXDEV, _):
      return
        "this is a btrfs subvolume; mount the filesystem's top level somewhere private (mount -o subvolid=5) and share the directory there."
    case (EOPNOTSUPP, Int(hw_magic_overlay)): return overlay
    case (EOPNOTSUPP, _):
      return
        "the filesystem has no file handles, so changes on it cannot be told apart; share the filesystem below it."
    case (ENODEV, Int(hw_magic_overlay)): return overlay
    case (ENODEV, _):
      return
        "the filesystem has no id (FUSE has none); share the filesystem that is behind it on this host."
    case (EPERM, _): return "the daemon needs CAP_SYS_ADMIN in the first user namespace."
    case (ENOSPC, _): return "raise fs.fanotify.max_user_marks."
    case (ENOMEM, _): return "the system is out of memory."
    default: return "the filesystem cannot be watched."
    }
  }
}

/// Filesystems by their magic number, for messages.
public enum FilesystemName {
  /// `"ext4"`, or the number of statfs(2)'s `f_type` in hexadecimal.
  public static func name(magic: UInt32) -> String {
    switch Int(magic) {
    case Int(hw_magic_ext4): "ext4"
    case Int(hw_magic_tmpfs): "tmpfs"
    case Int(hw_magic_xfs): "xfs"
    case Int(hw_magic_btrfs): "btrfs"
    case Int(hw_magic_overlay): "overlay"
    case Int(hw_magic_fuse): "fuse"
    case 0x9fa0: "proc"
    case 0x6265_6572: "sysfs"
    case 0x6969: "nfs"
    default: "filesystem 0x" + String(magic, radix: 16)
    }
  }
}
