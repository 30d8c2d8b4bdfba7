import CFanotify
import Glibc
import HostWatch

/// What the daemon needs of the process and the kernel, looked at before
/// anything else is done.
enum Requirements {
  /// Throws unless fanotify can be used as the daemon uses it.
  static func check() throws(StartFailure) {
    try checkCapabilities()
    let group = hw_fanotify_init(UInt32(hw_group_flags), UInt32(O_RDONLY | O_CLOEXEC))
    guard group < 0 else {
      _ = close(group)
      return
    }
    let error = SystemError("fanotify_init", -group)
    switch error.code {
    case EPERM:
      throw StartFailure(
        .noPermission, "\(error): fanotify needs CAP_SYS_ADMIN in the host's own user namespace")
    case EINVAL, ENOSYS:
      throw StartFailure(
        .unavailable,
        "\(error): hostwatchd needs Linux 5.17 or newer, built with CONFIG_FANOTIFY")
    default: throw StartFailure(.unavailable, "\(error)")
    }
  }

  /// CAP_SYS_ADMIN: groups and marks on whole filesystems, also of shares that
  /// come later, and detached mounts. CAP_DAC_READ_SEARCH: open_by_handle_at(2).
  private static let needed = [("CAP_SYS_ADMIN", UInt64(21)), ("CAP_DAC_READ_SEARCH", UInt64(2))]

  /// Gives up every other capability for good. The socket has been bound and the
  /// queue's size and the descriptor limit have been raised before.
  static func dropTheRest() throws(StartFailure) {
    let result = hw_keep_capabilities(needed.reduce(0) { $0 | 1 << $1.1 })
    guard result == 0 else {
      throw StartFailure(
        .noPermission,
        "capabilities cannot be given up: \(SystemError("capset", -result)); give the unit CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH, or allow capset and prctl in SystemCallFilter="
      )
    }
  }

  /// Named capabilities rather than uid 0: a service may run without the rest.
  private static func checkCapabilities() throws(StartFailure) {
    guard let effective = effectiveCapabilities() else { return }
    let missing = needed.filter { effective & (1 << $0.1) == 0 }.map(\.0)
    guard !missing.isEmpty else { return }
    throw StartFailure(
      .noPermission,
      "\(missing.joined(separator: " and ")) \(missing.count == 1 ? "is" : "are") missing; start hostwatchd as root or as its systemd service"
    )
  }

  /// CapEff of /proc/self/status; nil where there is no /proc, and then
  /// fanotify_init tells.
  private static func effectiveCapabilities() -> UInt64? {
    guard case .success(let bytes) = ConfigurationSource.contents(of: "/proc/self/status") else {
      return nil
    }
    for line in bytes.split(separator: UInt8(ascii: "\n")) {
      let text = String(decoding: line, as: UTF8.self)
      guard text.hasPrefix("CapEff:") else { continue }
      return UInt64(text.dropFirst(7).drop { $0 == " " || $0 == "\t" }, radix: 16)
    }
    return nil
  }
}

/// What the process sets up for itself before the loop runs.
enum ProcessSetup {
  /// The signals the loop takes care of.
  static let signals = [SIGTERM, SIGINT, SIGHUP]

  static func prepare() {
    // A peer that hangs up shows as EPIPE, not as death.
    _ = Glibc.signal(SIGPIPE, SIG_IGN)
    blockSignals()
    raiseDescriptorLimit()
  }

  /// Blocked before the first thread could start, so that only the loop's
  /// signalfd sees them.
  private static func blockSignals() {
    var set = sigset_t()
    unsafe sigemptyset(&set)
    for signal in signals { unsafe sigaddset(&set, signal) }
    unsafe pthread_sigmask(SIG_BLOCK, &set, nil)
  }

  /// Each session, group and share is a descriptor; the soft limit of 1,024
  /// is meant for programs that use select(2).
  private static func raiseDescriptorLimit() {
    var limit = rlimit()
    guard unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return }
    limit.rlim_cur = limit.rlim_max
    _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  }
}
