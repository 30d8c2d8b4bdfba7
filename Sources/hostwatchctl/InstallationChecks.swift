import CFanotify
import Glibc
import HostWatch

/// What belongs to an installation beside the daemon itself: units, configuration,
/// journal catalog, hostwatchfs, and what was left behind.
struct InstallationChecks {
  static let service = "hostwatchd.service"
  static let socket = "hostwatchd.socket"
  /// The entry of the catalog for `started`.
  private static let message = "4e21ef60f8c040768818c0c24b5f8cdc"
  private static let defaultConfiguration = "/etc/hostwatchd/hostwatchd.toml"

  let socketPath: String
  /// The properties of the units; nil where systemd does not run.
  let serviceUnit: [String: String]?
  let socketUnit: [String: String]?
  /// What the daemon answered; nil if none did.
  let status: JSON?

  init(socketPath: String, status: JSON?) {
    self.socketPath = socketPath
    self.status = status
    serviceUnit = Self.properties(Self.service)
    socketUnit = Self.properties(Self.socket)
  }

  func all() -> [Check] {
    units() + socketRights() + configuration() + [catalog()] + hostwatchfs() + mountUnits()
      + mounts() + leftovers()
  }

  /// What `systemctl show` says. The unit exists if `LoadState` is `loaded`.
  private static func properties(_ unit: String) -> [String: String]? {
    guard Probe.isDirectory("/run/systemd/system") else { return nil }
    guard let shown = Command.run(["systemctl", "show", "--no-pager", unit]), shown.status == 0
    else { return nil }
    var found: [String: String] = [:]
    for line in shown.output.split(separator: "\n") {
      guard let equals = line.firstIndex(of: "=") else { continue }
      found[String(line[..<equals])] = String(line[line.index(after: equals)...])
    }
    return found
  }

  // MARK: Units

  private func units() -> [Check] {
    guard let serviceUnit, let socketUnit else {
      return [.ok("unit", "systemd does not run here; the daemon is started some other way")]
    }
    guard serviceUnit["LoadState"] == "loaded" else {
      return [
        .warn(
          "unit", "\(Self.service) is \(serviceUnit["LoadState"] ?? "unknown")",
          "install the package hostwatchd, or \"systemctl unmask hostwatchd\" if it is masked")
      ]
    }
    var checks = [state(serviceUnit), enabled(serviceUnit, socketUnit)]
    if serviceUnit["NeedDaemonReload"] == "yes" || socketUnit["NeedDaemonReload"] == "yes" {
      checks.append(
        .warn(
          "unit-files", "they have changed since systemd read them", "systemctl daemon-reload"))
    }
    return checks
  }

  private func state(_ unit: [String: String]) -> Check {
    let name = "unit"
    let active = unit["ActiveState"] ?? "unknown"
    switch active {
    case "active", "reloading":
      let restarts = Int(unit["NRestarts"] ?? "0") ?? 0
      guard restarts > 0 else { return .ok(name, "\(Self.service) is \(active)") }
      return .warn(
        name, "\(Self.service) is \(active), and was restarted \(restarts) times after a crash",
        "see \"journalctl -u hostwatchd -p err\"")
    case "inactive":
      return .warn(
        name, "\(Self.service) is inactive", "systemctl start hostwatchd.socket hostwatchd")
    default:
      let status = unit["StatusText"] ?? ""
      let why = status.isEmpty ? "result \(unit["Result"] ?? "unknown")" : status
      return .fail(
        name, "\(Self.service) is \(active), exit status \(unit["ExecMainStatus"] ?? "?"): \(why)",
        "see \"journalctl -x -u hostwatchd\", then \"systemctl restart hostwatchd\"")
    }
  }

  private func enabled(_ service: [String: String], _ socket: [String: String]) -> Check {
    let states = [(Self.service, service), (Self.socket, socket)].map { unit, found in
      (unit, found["UnitFileState"].flatMap { $0.isEmpty ? nil : $0 } ?? "missing")
    }
    let text = states.map { "\($0.0) is \($0.1)" }.joined(separator: ", ")
    guard states.contains(where: { $0.1.hasPrefix("enabled") }) else {
      return .warn(
        "unit-enabled", "\(text): neither is started at boot", "systemctl enable hostwatchd.socket")
    }
    return .ok("unit-enabled", text)
  }

  // MARK: The socket's rights

  private func socketRights() -> [Check] {
    var status = stat()
    // What is not there the daemon's check says.
    guard unsafe stat(socketPath, &status) == 0 else { return [] }
    let name = "socket-rights"
    guard status.st_mode & S_IFMT == S_IFSOCK else {
      return [.fail(name, "\(socketPath) is not a socket", "remove it, and restart the daemon")]
    }
    let mode = Self.octal(status.st_mode & 0o7777)
    let group = Self.group(status.st_gid) ?? "\(status.st_gid)"
    let found = "mode \(mode), user \(status.st_uid), group \(group)"
    guard let unit = socketUnit, unit["LoadState"] == "loaded",
      unit["Listen"]?.contains(socketPath + " ") ?? false
    else { return [.ok(name, found)] }
    let wantedMode = unit["SocketMode"] ?? mode
    let wantedGroup = unit["SocketGroup"].flatMap { $0.isEmpty ? nil : $0 } ?? group
    guard wantedMode == mode, wantedGroup == group || wantedGroup == "\(status.st_gid)" else {
      return [
        .warn(
          name, "\(found), but \(Self.socket) says mode \(wantedMode), group \(wantedGroup)",
          "chmod \(wantedMode) \(socketPath) && chgrp \(wantedGroup) \(socketPath)")
      ]
    }
    return [.ok(name, "\(found), as \(Self.socket) says")]
  }

  private static func octal(_ mode: mode_t) -> String {
    let text = String(mode, radix: 8)
    return String(repeating: "0", count: max(0, 4 - text.count)) + text
  }

  private static func group(_ id: gid_t) -> String? {
    guard let found = unsafe getgrgid(id) else { return nil }
    // It lives until the next call of the kind.
    return unsafe String(cString: found.pointee.gr_name)
  }

  // MARK: The configuration

  /// The daemon that the unit starts, or that is installed.
  private var program: String? {
    // ExecStart={ path=/usr/sbin/hostwatchd ; argv[]=… }
    let started = serviceUnit?["ExecStart"]?.split(separator: " ")
      .first { $0.hasPrefix("path=") }?.dropFirst(5)
    return ([started.map(String.init)].compactMap { $0 } + ["/usr/sbin/hostwatchd"])
      .first { unsafe access($0, X_OK) == 0 }
  }

  /// Of the daemon that answers, or else of the one that the unit would start.
  private var command: DaemonCommand {
    status?["pid"].integer.flatMap { DaemonCommand(pid: $0) }
      ?? serviceUnit?["ExecStart"].flatMap { DaemonCommand(execStart: $0) }
      ?? DaemonCommand([])
  }

  private func configuration() -> [Check] {
    let name = "configuration"
    let command = command
    if let given = command.configuration, command.path == nil {
      return [
        .warn(
          name, "\(given) is in a directory of the daemon's that this user may not look at",
          "run doctor as root")
      ]
    }
    let path = command.path ?? Self.defaultConfiguration
    if command.configuration == nil, unsafe access(path, F_OK) != 0 {
      let hasShares = status.map { !$0["shares"].elements.isEmpty } ?? !command.shares.isEmpty
      let rest = hasShares ? "" : ", and there is no share"
      return [.ok(name, "there is no \(path); the defaults hold\(rest)")]
    }
    if unsafe access(path, R_OK) != 0 && errno == EACCES {
      return [.warn(name, "\(path) may not be read by this user", "run doctor as root")]
    }
    guard let program,
      let outcome = Command.run([program, "--check-config"] + command.arguments)
    else {
      return [.warn(name, "hostwatchd is not there to check \(path)", "install hostwatchd")]
    }
    let lines = outcome.output.split(separator: "\n").map(String.init)
    guard outcome.status == 0 else {
      return lines.map {
        // On standard error each line begins with syslog's priority.
        let text = $0.hasPrefix("<") ? String($0.drop { $0 != ">" }.dropFirst()) : $0
        return .fail(name, text, "correct it, then \"systemctl reload hostwatchd\"")
      }
    }
    return [.ok(name, lines.first ?? "\(path) is right"), queue(lines)]
  }

  /// The kernel's queue against what the configuration asks for, which `--check-config` says.
  private func queue(_ said: [String]) -> Check {
    let name = "queue-events"
    let line = said.map { $0.split(separator: " ") }.first { $0.first == "queue-events:" }
    guard let wanted = line?.last.flatMap({ Int($0) }) else {
      return .warn(name, "hostwatchd does not say it", "install the same version of both")
    }
    let sysctl = "fs.fanotify.max_queued_events"
    guard let text = Probe.contents("/proc/sys/fs/fanotify/max_queued_events"),
      let value = Int(text)
    else { return .warn(name, "\(sysctl) cannot be read", "mount /proc") }
    guard value < wanted else { return .ok(name, "\(wanted), and \(sysctl) is \(value)") }
    return .warn(
      name, "\(wanted), but \(sysctl) is \(value)",
      "\"sysctl -w \(sysctl)=\(wanted)\", and a file in /etc/sysctl.d for the next boot; "
        + "filesystems that are watched already keep their queue")
  }

  // MARK: The journal

  private func catalog() -> Check {
    let name = "journal-catalog"
    guard serviceUnit != nil else { return .ok(name, "there is no journal") }
    guard let listed = Command.run(["journalctl", "--no-pager", "--list-catalog", Self.message])
    else { return .warn(name, "journalctl cannot be run", "install systemd's journalctl") }
    guard listed.status == 0, listed.output.contains("hostwatchd") else {
      return .warn(
        name, "it does not have hostwatchd's messages, which \"journalctl -x\" explains",
        "journalctl --update-catalog; if that does not help, install the package again")
    }
    return .ok(name, "it explains hostwatchd's messages")
  }

  // MARK: hostwatchfs

  private func hostwatchfs() -> [Check] {
    let name = "hostwatchfs"
    guard let outcome = Command.run(["hostwatchfs", "--version"]), outcome.status != 127 else {
      return [.ok(name, "it is not installed; mounts need it, other servers do not")]
    }
    let said = outcome.output.split(separator: "\n").first.map(String.init) ?? "nothing"
    guard outcome.status == 0 else {
      return [.fail(name, "it does not start: \(said)", "apt install libfuse3-3, or build it anew")]
    }
    guard said.split(separator: " ").last.map(String.init) == Hub.version else {
      return [
        .warn(
          name, "it is of version \(said), hostwatchctl of \(Hub.version)",
          "install the same version of both")
      ]
    }
    guard unsafe access("/dev/fuse", R_OK | W_OK) == 0 else {
      return [.fail(name, "/dev/fuse cannot be opened", "modprobe fuse")]
    }
    return [.ok(name, "version \(said), and /dev/fuse is there")]
  }

  /// The units that mount, for a mount that a unit failed to make is in no table.
  private func mountUnits() -> [Check] {
    let name = "mount-unit"
    guard serviceUnit != nil else { return [] }
    let command = [
      "systemctl", "list-units", "--all", "--full", "--plain", "--no-legend", "--no-pager",
      "hostwatchfs@*",
    ]
    guard let listed = Command.run(command), listed.status == 0 else {
      return [.warn(name, "systemctl does not list the units of mounts", "systemctl list-units")]
    }
    return listed.output.split(separator: "\n").compactMap { Self.mountUnit(name, String($0)) }
  }

  /// A line of `systemctl list-units`; nil for a unit that was stopped, or is none.
  static func mountUnit(_ name: String, _ line: String) -> Check? {
    let words = line.split(separator: " ").map(String.init)
    guard words.count >= 4 else { return nil }
    let unit = words[0]
    // systemd writes what a unit's name cannot have with a backslash, a shell's character.
    let shown = unit.contains("\\") ? "'\(unit)'" : unit
    let state = words[2] == words[3] ? words[2] : "\(words[2]) (\(words[3]))"
    let advice = "see \"journalctl -u \(shown)\", then \"systemctl restart \(shown)\""
    switch (words[2], words[3]) {
    case ("failed", _): return .fail(name, "\(unit) has failed: nothing is mounted", advice)
    case ("activating", "auto-restart"):
      return .warn(name, "\(unit) has ended, and is started again", advice)
    case ("inactive", _): return nil
    default: return .ok(name, "\(unit) is \(state)")
    }
  }

  /// Those of hostwatchfs in this mount namespace: whether a server is there and answers.
  private func mounts() -> [Check] {
    let name = "mount"
    let points: [String]
    do {
      points = try MountTable.mountPoints(type: "fuse.hostwatchfs")
    } catch {
      return [.warn(name, "\(error)", "mount /proc")]
    }
    return points.map { point in
      // A process of its own, since the call sleeps until the server answers.
      guard let asked = Command.run(["stat", "-f", "--", point], seconds: 2) else {
        return .warn(name, "\(point) was not looked at: stat cannot be run", "install coreutils")
      }
      switch asked.status {
      case 0:
        return .ok(name, "\(point) is served")
      case nil:
        return .fail(
          name, "\(point): the server does not answer",
          "see what its hostwatchfs does; end it, then \"umount \(point)\"")
      default:
        let reason = asked.output.split(separator: "\n").last.map(String.init) ?? "no reason given"
        return .fail(
          name, "\(point) cannot be used: \(reason)",
          "if its hostwatchfs is gone, \"umount \(point)\" and mount it again")
      }
    }
  }

  // MARK: What was left behind

  private func leftovers() -> [Check] {
    let name = "leftovers"
    var checks: [Check] = []
    for pid in Mounts.pids() where unsafe access("/proc/\(pid)", F_OK) != 0 {
      let path = "\(Mounts.directory)/\(pid).sock"
      checks.append(.warn(name, "\(path) is of a hostwatchfs that is gone", "rm \(path)"))
    }
    for suffix in [".new", ".dpkg-new", ".dpkg-dist", ".rpmnew"] {
      let path = Self.defaultConfiguration + suffix
      guard unsafe access(path, F_OK) == 0 else { continue }
      checks.append(
        .warn(
          name, "\(path) is an installation's new default",
          "take over what is wanted of it, and remove it"))
    }
    return checks.isEmpty ? [.ok(name, "none")] : checks
  }
}
