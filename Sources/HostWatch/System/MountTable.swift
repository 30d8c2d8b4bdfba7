import CFanotify

/// The mount table of the daemon's mount namespace.
package enum MountTable {
  static let path = "/proc/self/mountinfo"

  /// One line of mountinfo, as far as it is needed (proc(5)).
  struct Entry: Equatable {
    var id: UInt64
    /// The mount it is on.
    var parent: UInt64
    /// The superblock's device number.
    var device: UInt64
    /// The directory of the filesystem that is the mount's root.
    var root: [UInt8]
    var mountPoint: [UInt8]
    /// The filesystem's type: "ext4", "fuse.sshfs".
    var type: [UInt8]
  }

  /// Whether calls on such a filesystem wait for a server.
  static func isRemote(_ type: String) -> Bool {
    type == "fuse" || type == "fuseblk" || type.hasPrefix("fuse.") || type.hasPrefix("nfs")
      || ["9p", "afs", "ceph", "cifs", "smb3", "virtiofs", "autofs"].contains(type)
  }

  static func entries() throws(SystemError) -> [Entry] {
    try parse(Syscall.contents(of: path))
  }

  /// Where filesystems of a type are mounted, in the order of the table: the last is on top.
  package static func mountPoints(type: String) throws(SystemError) -> [String] {
    try entries().filter { $0.type == Array(type.utf8) }
      .map { String(decoding: $0.mountPoint, as: UTF8.self) }
  }

  /// Lines that are not of that form are left out.
  static func parse(_ text: [UInt8]) -> [Entry] {
    text.split(separator: 0x0a).compactMap { line in
      let fields = line.split(separator: 0x20, maxSplits: 5)
      guard fields.count == 6, let id = UInt64(String(decoding: fields[0], as: UTF8.self)),
        let parent = UInt64(String(decoding: fields[1], as: UTF8.self)),
        let device = device(fields[2])
      else { return nil }
      return Entry(
        id: id, parent: parent, device: device, root: unescape(fields[3]),
        mountPoint: unescape(fields[4]), type: type(in: fields[5]))
    }
  }

  /// The superblocks' device numbers of all mounts.
  static func devices() throws(SystemError) -> Set<UInt64> {
    Set(try entries().map(\.device))
  }

  /// `"8:1"`.
  static func text(_ device: UInt64) -> String {
    "\(gnu_dev_major(dev_t(device))):\(gnu_dev_minor(dev_t(device)))"
  }

  /// The field behind the one that is "-".
  private static func type(in rest: ArraySlice<UInt8>) -> [UInt8] {
    let fields = rest.split(separator: 0x20)
    guard let dash = fields.firstIndex(of: [0x2d]), dash + 1 < fields.count else { return [] }
    return Array(fields[dash + 1])
  }

  private static func device(_ field: ArraySlice<UInt8>) -> UInt64? {
    let parts = String(decoding: field, as: UTF8.self).split(separator: ":")
    guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
      return nil
    }
    return UInt64(gnu_dev_makedev(major, minor))
  }

  /// Space, tab, newline and backslash stand as `\` and three octal digits.
  private static func unescape(_ field: ArraySlice<UInt8>) -> [UInt8] {
    var result: [UInt8] = []
    var index = field.startIndex
    while index < field.endIndex {
      let digits = field[index...].dropFirst().prefix(3)
      if field[index] == 0x5c, digits.count == 3, digits.allSatisfy({ (0x30...0x37).contains($0) })
      {
        result.append(digits.reduce(0) { $0 &* 8 &+ ($1 - 0x30) })
        index += 4
      } else {
        result.append(field[index])
        index += 1
      }
    }
    return result
  }
}
