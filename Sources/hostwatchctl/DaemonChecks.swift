import Glibc
import HostWatch

/// The daemon's socket, and whether something answers there.
enum DaemonChecks {
  static func all(socketPath: String) -> [Check] {
    let connection: HostWatchClient.Connection
    do throws(HostWatchClient.Failure) {
      connection = try HostWatchClient.Connection(path: socketPath)
    } catch {
      return [unreachable(error, socketPath)]
    }
    let socket = Check.ok("socket", "\(socketPath) takes connections")
    do throws(HostWatchClient.Failure) {
      let text = try connection.status(timeoutMilliseconds: 5000)
      guard let status = try? JSONParser.parse(text) else {
        return [
          socket,
          .fail("daemon", "its status is not JSON", "install the same version of both programs"),
        ]
      }
      return [socket, answers(status)] + shares(status)
    } catch {
      return [
        socket,
        .fail(
          "daemon", "it does not answer: \(error)",
          "see \"journalctl -u hostwatchd\"; \"systemctl restart hostwatchd\" starts it anew"),
      ]
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
        "\"systemctl enable --now hostwatchd.socket\", or name the socket with --socket")
    case ECONNREFUSED:
      return .fail(
        "socket", "nobody listens on \(path)", "\"systemctl restart hostwatchd.socket\"")
    case EACCES, EPERM:
      return .fail(
        "socket", "\(path) may not be opened by this user",
        "become root, or join the group that owns the socket")
    default:
      return .fail("socket", failure.description, "see \"systemctl status hostwatchd.socket\"")
    }
  }

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

  /// What the daemon itself says about shares that it cannot watch.
  private static func shares(_ status: JSON) -> [Check] {
    status["shares"].elements.compactMap { share in
      guard let state = share["state"].text, state != "ready" else { return nil }
      return .fail(
        "share",
        "\(share["name"].text ?? "?") is \(state): \(share["error"].text ?? "no reason given")",
        "\"hostwatchctl doctor \(share["path"].text ?? "PATH")\" says more")
    }
  }
}
