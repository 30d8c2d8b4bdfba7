import CFanotify
import CHostWatch
import Glibc

extension WatchedFilesystem {
  /// Marks the filesystem that `directory` is on.
  convenience init(directory: Int32, report: @escaping (Diagnostic) -> Void) throws(WatchError) {
    // The filesystem's top level, where it is mounted anywhere: from there every
    // directory can be found, and a btrfs subvolume can be marked only so.
    let topLevel: DescriptorList?
    do throws(SystemError) {
      topLevel = try Self.topLevel(of: directory)
    } catch {
      throw WatchError(error, "\(error).")
    }
    defer { withExtendedLifetime(topLevel) {} }
    let markable = topLevel?.numbers.first ?? directory
    let group = try FanotifyGroup(marking: markable)
    let lastEmpty = Syscall.coarseNow()
    let mount: DetachedMount
    let magic: UInt32
    let knownDevice: UInt64?
    let isInMountTable: Bool
    do throws(SystemError) {
      magic = try Syscall.filesystemMagic(of: directory)
      knownDevice = try Self.knownDevice(of: directory, magic: magic)
      isInMountTable = try MountTable.devices().contains(group.device)
      mount = try Self.openMount(markable)
    } catch {
      throw WatchError(error, "\(error).")
    }
    self.init(
      group: group, mount: mount, magic: magic, knownDevice: knownDevice,
      isInMountTable: isInMountTable, lastEmpty: lastEmpty, report: report)
  }

  /// The st_dev of a filesystem's objects; btrfs has one for each subvolume.
  static func knownDevice(of directory: Int32, magic: UInt32) throws(SystemError) -> UInt64? {
    magic == UInt32(hw_magic_btrfs) ? nil : try Syscall.status(of: directory).device
  }

  /// The root directory of the filesystem, through any mount that shows it.
  private static func topLevel(of directory: Int32) throws(SystemError) -> DescriptorList? {
    let status = try Syscall.status(of: directory)
    let table = try MountTable.entries()
    guard let device = table.first(where: { $0.id == status.mountID })?.device else { return nil }
    for entry in table where entry.device == device && entry.root == [0x2f] {
      do throws(SystemError) {
        let open = try Syscall.openDirectory(entry.mountPoint)
        guard try Syscall.status(of: open.rawValue).mountID == entry.id else { continue }
        return DescriptorList([open.take()])
      } catch {
        // Unreachable from here. What may be otherwise the next time must not decide.
        if [EMFILE, ENFILE, ENOMEM].contains(error.code) { throw error }
      }
    }
    return nil
  }

  /// A mount of another namespace cannot be cloned (EINVAL): it is held.
  private static func openMount(_ directory: Int32) throws(SystemError) -> DetachedMount {
    do throws(SystemError) {
      return try DetachedMount(cloning: directory)
    } catch {
      guard error.code == EINVAL else { throw error }
      return try DetachedMount(holding: directory)
    }
  }
}
