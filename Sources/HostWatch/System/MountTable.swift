import CFanotify

/// The mount table of the daemon's mount namespace.
enum MountTable {
  static let path = "/proc/self/mountinfo"

  /// The superblocks' device numbers of all mounts.
  static func devices() throws(SystemError) -> Set<UInt64> {
    var devices: Set<UInt64> = []
    for line in try Syscall.contents(of: path).split(separator: 0x0a) {
      let fields = line.split(separator: 0x20, maxSplits: 3)
      guard fields.count >= 3, let device = number(fields[2]) else { continue }
      devices.insert(device)
    }
    return devices
  }

  /// `"8:1"`.
  static func text(_ device: UInt64) -> String {
    "\(gnu_dev_major(dev_t(device))):\(gnu_dev_minor(dev_t(device)))"
  }

  private static func number(_ field: ArraySlice<UInt8>) -> UInt64? {
    let parts = String(decoding: field, as: UTF8.self).split(separator: ":")
    guard parts.count == 2, let major = UInt32(parts[0]), let minor = UInt32(parts[1]) else {
      return nil
    }
    return UInt64(gnu_dev_makedev(major, minor))
  }
}
