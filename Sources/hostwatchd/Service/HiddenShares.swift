import CFanotify
import Glibc
import HostWatch

/// Notices that a directive of the unit hides a share: what the daemon would
/// watch there is not what the host has, and nothing would ever happen on it.
enum HiddenShares {
  struct Finding {
    let share: String
    let message: String
  }

  /// A mount table is not longer.
  private static let tableLimit = 64 << 20

  /// What is wrong with `shares` as this process sees them; nothing when it was not started
  /// by the service manager. `warn` is called where a mount table cannot be read and so
  /// nothing is known.
  static func find(_ shares: [ShareConfiguration], warn: (String) -> Void) -> [Finding] {
    guard getppid() == 1, !shares.isEmpty else { return [] }
    let host: [UInt8]
    let own: [UInt8]
    do throws(SystemError) {
      host = try hostTable()
      own = try ConfigurationSource.contents(of: "/proc/self/mountinfo", atMost: tableLimit).get()
    } catch {
      warn("it is not known whether the unit hides a share: \(error)")
      return []
    }
    return shares.compactMap { share in
      // As written: a link is followed where it can be, and what hides it
      // cannot be followed.
      let path = resolved(share.path) ?? share.path
      guard let hidden = HostView.hidden(path, own: own, host: host) else { return nil }
      return Finding(share: share.name, message: message(share, hidden))
    }
  }

  static func message(_ share: ShareConfiguration, _ hidden: HostView.Hidden) -> String {
    "share \(share.name): the unit hides \(share.path): at \(hidden.mountPoint) the daemon sees another directory than the host, and would see none of its changes; \(advice(hidden)) with \"systemctl edit hostwatchd\""
  }

  /// Which directive did it, from what systemd mounts for each.
  static func advice(_ hidden: HostView.Hidden) -> String {
    let isHome = ["/home", "/root", "/run/user"].contains(hidden.mountPoint)
    if hidden.mountPoint == "/" { return "remove RootDirectory= or RootImage=" }
    if hidden.root.contains("/systemd-private-") || hidden.root.contains("systemd/private-tmp") {
      return "set PrivateTmp=no"
    }
    if hidden.root.contains("systemd/inaccessible/") {
      return isHome
        ? "set ProtectHome=read-only"
        : "remove \(hidden.mountPoint) from InaccessiblePaths="
    }
    if hidden.mountPoint == "/dev" { return "set PrivateDevices=no" }
    if hidden.type == "tmpfs" && hidden.root == "/" {
      return isHome
        ? "set ProtectHome=read-only, or remove \(hidden.mountPoint) from TemporaryFileSystem="
        : "remove \(hidden.mountPoint) from TemporaryFileSystem="
    }
    return "remove \(hidden.mountPoint) from BindPaths= and BindReadOnlyPaths="
  }

  private static func resolved(_ path: String) -> String? {
    guard let text = unsafe realpath(path, nil) else { return nil }
    defer { unsafe free(text) }
    return unsafe String(cString: text)
  }

  /// Mountinfo of the host's namespace: the unit passes it as standard input,
  /// because /proc may hide pid 1; else pid 1's is tried.
  private static func hostTable() throws(SystemError) -> [UInt8] {
    // Only a file that begins again when it is read from the start.
    if lseek(STDIN_FILENO, 0, SEEK_SET) == 0 {
      let passed = try ConfigurationSource.contents(
        of: STDIN_FILENO, "standard input", atMost: tableLimit)
      // What is not a mount table has no root in it.
      if !passed.isEmpty { return passed }
    }
    return try ConfigurationSource.contents(of: "/proc/1/mountinfo", atMost: tableLimit).get()
  }
}
