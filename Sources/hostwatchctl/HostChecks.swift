import CFanotify
import Glibc
import HostWatch

/// The kernel, this process's privileges and fanotify's limits.
enum HostChecks {
  static func all() -> [Check] {
    [kernel(), group()] + capabilities() + limits()
  }

  /// FAN_REPORT_TARGET_FID, which tells both sides of a rename: Linux 5.17.
  private static func kernel() -> Check {
    let release = Probe.contents("/proc/sys/kernel/osrelease") ?? "unknown"
    let numbers = release.split { !$0.isNumber }.prefix(2).compactMap { Int($0) }
    guard numbers.count == 2 else {
      return .warn("kernel", "Linux \(release)", "Linux 5.17 or later is needed")
    }
    guard (numbers[0], numbers[1]) >= (5, 17) else {
      return .fail("kernel", "Linux \(release)", "Linux 5.17 or later is needed")
    }
    return .ok("kernel", "Linux \(release)")
  }

  private static func group() -> Check {
    let name = "fanotify-group"
    switch Probe.group() {
    case .success:
      return .ok(name, "the kernel makes groups that report names, handles and renames")
    case .failure(let error):
      switch error.code {
      case EINVAL:
        return .fail(
          name, error.description, "this kernel is too old; Linux 5.17 or later is needed")
      case ENOSYS:
        return .fail(name, error.description, "use a kernel built with CONFIG_FANOTIFY=y")
      case EMFILE:
        return .fail(
          name, error.description,
          "raise fs.fanotify.max_user_groups, or the limit of open files of this process")
      case EPERM:
        return untried(name, error.description)
      default:
        return .fail(name, error.description, "see fanotify_init(2)")
      }
    }
  }

  /// What could not be tried: a failure for root alone, who should be able to.
  static func untried(_ name: String, _ finding: String) -> Check {
    geteuid() == 0
      ? .fail(
        name, finding,
        "root lacks CAP_SYS_ADMIN or CAP_DAC_READ_SEARCH here; run on the host, not in a container")
      : .warn(name, finding, "run doctor as root to try this")
  }

  // MARK: Capabilities

  /// What the daemon needs. Numbers of linux/capability.h.
  static let needed: [(name: String, constant: String, bit: UInt64)] = [
    ("cap-sys-admin", "CAP_SYS_ADMIN", 21), ("cap-dac-read-search", "CAP_DAC_READ_SEARCH", 2),
  ]

  private static func capabilities() -> [Check] {
    needed.map { name, constant, bit in
      guard let effective = effectiveCapabilities(of: "self") else {
        return .warn(name, "/proc/self/status cannot be read", "mount /proc")
      }
      return effective & (1 << bit) != 0
        ? .ok(name, "this process has \(constant)")
        : untried(name, "this process lacks \(constant)")
    }
  }

  /// Of a process, by what /proc calls it; nil when it is gone or hidden.
  static func effectiveCapabilities(of process: String) -> UInt64? {
    let line = Probe.contents("/proc/\(process)/status")?
      .split(separator: "\n").first { $0.hasPrefix("CapEff:") }
    return line.flatMap { UInt64($0.dropFirst(7).drop { $0 == "\t" || $0 == " " }, radix: 16) }
  }

  // MARK: Limits

  private static func limits() -> [Check] {
    [
      limit(
        "max_queued_events", least: 1_048_576,
        "the kernel drops events when a burst is longer; the daemon raises it to its queue-events "
          + "where it may"),
      limit("max_user_groups", least: 64, "one group is used per filesystem"),
      limit("max_user_marks", least: 1024, "one mark is used per filesystem"),
    ]
  }

  private static func limit(_ name: String, least: Int, _ why: String) -> Check {
    let key = "fs.fanotify.\(name)"
    guard let text = Probe.contents("/proc/sys/fs/fanotify/\(name)"), let value = Int(text) else {
      return .warn(key, "not there", "Linux 5.13 or later lets it be set")
    }
    guard value < least else { return .ok(key, "\(value)") }
    return .warn(key, "\(value): \(why)", "sysctl -w \(key)=\(least)")
  }
}
