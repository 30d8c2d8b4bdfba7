import Glibc
import HostWatch

/// The daemon's socket, and whether something answers there.
enum DaemonChecks {
  /// The status is nil if there is none to be read.
  static func all(socketPath: String) -> (checks: [Check], status: JSON?) {
    let connection: HostWatchClient.Connection
    do throws(HostWatchClient.Failure) {
      connection = try HostWatchClient.Connection(path: socketPath)
    } catch {
      return ([unreachable(error, socketPath)], nil)
    }
    let socket = Check.ok("socket", "\(socketPath) takes connections")
    do throws(HostWatchClient.Failure) {
      let text = try connection.status(timeoutMilliseconds: 5000)
      guard let status = try? JSONParser.parse(text) else {
        let foreign = Check.fail(
          "daemon", "its status is not JSON", "install the same version of both programs")
        return ([socket, foreign], nil)
      }
      let checks =
        [socket, answers(status)] + version(status) + reload(status) + capabilities(status)
        + shares(status)
      return (checks, status)
    } catch {
      let silent = Check.fail(
        "daemon", "it does not answer: \(error)",
        "see \"journalctl -u hostwatchd\"; \"systemctl restart hostwatchd\" starts it anew")
      return ([socket, silent], nil)
    }
  }

  private static func unreachable(_ failure: HostWatchClient.Failure, _ path: String) -> Check {
    guard case .system(let error) = failure else {
      return .fail("socket", failure.description, "see \"journalctl -u hostwatchd\"")
    }
    switch error.code {
    case ENOENT:
      return .fail(
        "socket", "\(path) is not there",
        "\"\(Self.renew)\", or name the socket with --socket")
    case ECONNREFUSED:
      return .fail(
        "socket", "nobody listens on \(path)", "\"\(Self.renew)\"")
    case EACCES, EPERM:
      return .fail(
        "socket", "\(path) may not be opened by this user",
        "become root, or join the group that owns the socket")
    default:
      return .fail("socket", failure.description, "see \"systemctl status hostwatchd.socket\"")
    }
  }

  /// A socket unit that is active has its file made again by this alone.
  private static let renew =
    "systemctl stop hostwatchd.socket && systemctl restart hostwatchd.service"

  private static func answers(_ status: JSON) -> Check {
    let lost = status["totals"]["lost"].double ?? 0
    let version = status["version"].text ?? "?"
    guard lost > 0 else { return .ok("daemon", "hostwatchd \(version) answers") }
    return .warn(
      "daemon",
      "hostwatchd \(version) answers; \(Int(clamping: Int64(min(lost, 1e15)))) gaps so far",
      "see DROPPED and OVERFLOWS in \"hostwatchctl status\": raise queue-per-session or queue-events"
    )
  }

  private static func version(_ status: JSON) -> [Check] {
    let version = status["version"].text ?? "?"
    guard version != Hub.version else { return [] }
    return [
      .warn(
        "version", "hostwatchd is \(version), hostwatchctl \(Hub.version)",
        "\"systemctl restart hostwatchd\" if it was upgraded; no session ends by that")
    ]
  }

  private static func reload(_ status: JSON) -> [Check] {
    guard let why = status["reload"]["error"].text else { return [] }
    return [
      .fail(
        "reload", "the last reload was refused, and the configuration before it holds: \(why)",
        "correct it, then \"systemctl reload hostwatchd\"")
    ]
  }

  /// What the unit, or whoever started it, has left to the daemon.
  private static func capabilities(_ status: JSON) -> [Check] {
    guard let pid = status["pid"].integer,
      let held = HostChecks.effectiveCapabilities(of: "\(pid)")
    else { return [] }
    let name = "daemon-capabilities"
    let missing = HostChecks.needed.filter { held & (1 << $0.bit) == 0 }.map(\.constant)
    guard missing.isEmpty else {
      return [
        .fail(
          name, "the daemon lacks \(missing.joined(separator: " and "))",
          "leave them in CapabilityBoundingSet= with \"systemctl edit hostwatchd\"")
      ]
    }
    let more = held & ~HostChecks.needed.reduce(0) { $0 | 1 << $1.bit }
    return more == 0
      ? [.ok(name, "CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH, and no other")]
      : [
        .warn(
          name, "it holds more than it needs: 0x\(String(more, radix: 16))",
          "report this; it gives up all others at its start")
      ]
  }

  /// What the daemon itself says about its shares, and whether what it sees of
  /// each is what this process sees.
  private static func shares(_ status: JSON) -> [Check] {
    let pid = status["pid"].integer ?? 0
    let tables = [Probe.contents("/proc/\(pid)/mountinfo"), Probe.contents("/proc/self/mountinfo")]
      .compactMap { $0.map { Array(($0 + "\n").utf8) } }
    let shares = status["shares"].elements
    let checks = shares.map { share -> Check in
      let name = share["name"].text ?? "?"
      let path = share["path"].text ?? "?"
      guard share["state"].text == "ready" else {
        return .fail(
          "share",
          "\(name) is \(share["state"].text ?? "?"): \(share["error"].text ?? "no reason given")",
          "\"hostwatchctl doctor \(path)\" says more")
      }
      if tables.count == 2,
        let hidden = HostView.hidden(path, own: tables[0], host: tables[1])
      {
        return .fail(
          "share",
          "\(name): at \(hidden.mountPoint) the daemon sees another directory than the host, "
            + "and none of the changes to \(path)",
          "ProtectHome=read-only, PrivateTmp=no or the like with \"systemctl edit hostwatchd\", "
            + "then \"systemctl restart hostwatchd\"")
      }
      return .ok("share", "\(name) is watched: \(path)")
    }
    return checks.isEmpty
      ? [.ok("share", "none is configured; clients pass descriptors of their directories")] : checks
  }
}
