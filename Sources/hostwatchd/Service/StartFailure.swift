import CFanotify
import Glibc
import HostWatch

/// Why the daemon does not start, and the exit code that says so.
struct StartFailure: Error {
  /// The codes of sysexits.h that scripts may rely on. A wrong command line
  /// is 64 (EX_USAGE), which the argument parser gives.
  enum Code: Int32 {
    case unavailable = 69
    case bug = 70
    case systemCall = 71
    case noPermission = 77
    case configuration = 78

    /// After `configuration` a service manager does not start it again; what passes
    /// deserves that.
    init(_ refused: ConfigurationRefused) {
      self = refused.isPassing ? .systemCall : .configuration
    }
  }

  let code: Code
  let message: String
  var messageID = MessageID.startFailed

  init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }

  /// The socket could not be made for a reason that is the host's.
  init(creating socketPath: String, _ error: SystemError) {
    let isPermission = error.code == EACCES || error.code == EPERM
    self.init(
      isPermission ? .noPermission : .unavailable,
      "the socket \(socketPath) cannot be made: \(error)")
  }

  static func alreadyServed(_ path: String, by pid: Int32?) -> StartFailure {
    if let pid, kill(pid, 0) != 0, errno == ESRCH {
      return StartFailure(
        .unavailable,
        "hostwatchd (pid \(pid)) is gone, but \(path) is held still: a process of it closes a file whose FUSE server does not answer (end that server or unmount what it serves), or it runs in another pid namespace"
      )
    }
    // What connect(2) tells is who listens: for a socket unit that is pid 1.
    let who =
      pid.map { $0 == 1 ? " (pid 1: a socket of the service manager)" : " (pid \($0))" } ?? ""
    return StartFailure(.unavailable, "another hostwatchd serves \(path)\(who)")
  }
}
