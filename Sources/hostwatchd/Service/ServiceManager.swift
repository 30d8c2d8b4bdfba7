import CFanotify
import CSystemd
import Glibc

/// What the daemon tells the service manager (sd_notify(3)). Without one
/// every call does nothing.
///
/// READY at the start is waited for. Everything later is sent without waiting:
/// a manager that does not read must not keep the daemon from reading events,
/// and the next STATUS says what the lost one would have.
enum ServiceManager {
  /// - Returns: a negative errno when it could not be told.
  static func started(status: String) -> Int32 {
    let text = joined(["READY=1", "STATUS=\(status)"])
    return unsafe sd_notify(0, text)
  }

  /// After a reload; as `started`, but without waiting.
  static func ready(status: String) -> Int32 { send(["READY=1", "STATUS=\(status)"]) }

  static func status(_ status: String) { send(["STATUS=\(status)"]) }

  static func watchdog() { send(["WATCHDOG=1"]) }

  /// MONOTONIC_USEC lets the manager tell this reload from an earlier one.
  static func reloading() {
    send(["RELOADING=1", "MONOTONIC_USEC=\(monotonicMicroseconds())"])
  }

  static func stopping() { send(["STOPPING=1", "STATUS=stopping"]) }

  /// What `systemctl status` shows of a start that failed.
  static func failed(_ message: String) { send(["STATUS=\(message)"]) }

  @discardableResult
  private static func send(_ assignments: [String]) -> Int32 {
    guard let socket = unsafe getenv("NOTIFY_SOCKET") else { return 0 }
    let text = Array(joined(assignments).utf8)
    // The kernel reads `count` bytes of the array and a string that ends.
    return unsafe text.withUnsafeBytes { unsafe hw_notify(socket, $0.baseAddress, $0.count) }
  }

  /// A line is an assignment: a newline in a value would begin another.
  private static func joined(_ assignments: [String]) -> String {
    assignments.map(escapingControls).joined(separator: "\n")
  }
}
