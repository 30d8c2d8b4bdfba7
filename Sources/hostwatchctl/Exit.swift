import ArgumentParser
import Glibc
import HostWatch

/// How the command ends: sysexits(3), with one line on the standard error.
enum Exit {
  static let failed = ExitCode(1)
  static let unavailable = ExitCode(69)
  static let `protocol` = ExitCode(76)
  static let permission = ExitCode(77)

  /// Says on the standard error what is wrong and returns the exit code.
  static func because(_ failure: HostWatchClient.Failure, socketPath: String) -> ExitCode {
    say(explanation(failure, socketPath: socketPath))
    return code(failure)
  }

  static func code(_ failure: HostWatchClient.Failure) -> ExitCode {
    switch failure {
    case .system(let error): code(error.code)
    case .refused(let refusal): code(refusal.code)
    case .malformed: `protocol`
    case .disconnected: unavailable
    }
  }

  private static func code(_ code: Int32) -> ExitCode {
    switch code {
    case EACCES, EPERM: permission
    case EPROTO: `protocol`
    default: unavailable
    }
  }

  /// The failure, and what to do about it where that is known.
  static func explanation(_ failure: HostWatchClient.Failure, socketPath: String) -> String {
    guard case .system(let error) = failure, error.call.hasPrefix("connect(") else {
      return failure.description
    }
    switch error.code {
    case ENOENT, ECONNREFUSED:
      return "no daemon answers on \(socketPath) (\(SystemError.text(error.code))); "
        + "start it with \"systemctl start hostwatchd.socket\" or name its socket with --socket"
    case EACCES, EPERM:
      return "\(socketPath) may not be opened by this user; become root or join the group "
        + "that owns the socket"
    default:
      return failure.description
    }
  }

  static func say(_ text: String) {
    Output.write(Array("hostwatchctl: \(Line.text(text))\n".utf8), to: STDERR_FILENO)
  }
}
