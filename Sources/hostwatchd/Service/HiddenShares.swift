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

  /// What is wrong with `shares` as this process sees them; nothing when it was
  /// not started by the service manager, or the host's table cannot be read.
  static func find(_ shares: [ShareConfiguration]) -> [Finding] {
    guard getppid() == 1, let host = hostTable(),
      case .success(let own) = ConfigurationSource.contents(of: "/proc/self/mountinfo")
    else { return [] }
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
  private static func hostTable() -> [UInt8]? {
    if let passed = standardInput() { return passed }
    guard case .success(let bytes) = ConfigurationSource.contents(of: "/proc/1/mountinfo") else {
      return nil
    }
    return bytes
  }

  private static func standardInput() -> [UInt8]? {
    // Only a file that begins again when it is read from the start.
    guard lseek(STDIN_FILENO, 0, SEEK_SET) == 0 else { return nil }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 65536)
    while true {
      // At most the buffer's count is written to it.
      let count = unsafe buffer.withUnsafeMutableBytes {
        unsafe read(STDIN_FILENO, $0.baseAddress, $0.count)
      }
      if count < 0 && errno == EINTR { continue }
      guard count >= 0 else { return nil }
      if count == 0 { break }
      bytes += buffer[..<count]
      guard bytes.count <= 64 << 20 else { return nil }
    }
    // What is not a mount table has no root in it.
    return bytes.isEmpty ? nil : bytes
  }
}
