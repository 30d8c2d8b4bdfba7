import CSystemd

/// What the daemon tells the service manager (sd_notify(3)). Without one
/// every call does nothing.
enum ServiceManager {
  static func ready(status: String) { send(["READY=1", "STATUS=\(status)"]) }

  static func status(_ status: String) { send(["STATUS=\(status)"]) }

  /// MONOTONIC_USEC lets the manager tell this reload from an earlier one.
  static func reloading() {
    send(["RELOADING=1", "MONOTONIC_USEC=\(monotonicMicroseconds())"])
  }

  static func stopping() { send(["STOPPING=1", "STATUS=stopping"]) }

  /// What `systemctl status` shows of a start that failed.
  static func failed(_ message: String) { send(["STATUS=\(message)"]) }

  private static func send(_ assignments: [String]) {
    // A line is an assignment: a newline in a value would begin another.
    _ = unsafe sd_notify(0, assignments.map(escapingControls).joined(separator: "\n"))
  }
}
