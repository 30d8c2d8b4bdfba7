import CFanotify
import Glibc
import HostWatch

/// fs.fanotify.max_queued_events: how many events the kernel keeps for a
/// group before it drops them. It is sampled when a group is made.
enum QueueSize {
  static let path = "/proc/sys/fs/fanotify/max_queued_events"

  struct Outcome {
    /// What new groups get, in events.
    var effective: Int
    /// Why it is less than wanted; nil when it is not.
    var shortfall: String?
  }

  /// Raises the limit to `wanted` if it is lower; never lowers it.
  static func ensure(_ wanted: Int, path: String = QueueSize.path) -> Outcome {
    guard let present = current(path) else {
      return Outcome(
        effective: wanted,
        shortfall: "\(path) cannot be read; the queue's size is the kernel's choice")
    }
    guard present < wanted else { return Outcome(effective: present, shortfall: nil) }
    let error = write(wanted, to: path)
    let now = current(path) ?? present
    guard now < wanted else { return Outcome(effective: now, shortfall: nil) }
    let reason = error.map { ": \(SystemError.text($0.code))" } ?? ""
    return Outcome(
      effective: now,
      shortfall:
        "fs.fanotify.max_queued_events is \(now) and could not be raised to \(wanted)\(reason); under load events may be lost sooner and clients resynced; set it with sysctl, or lower queue-events"
    )
  }

  private static func current(_ path: String) -> Int? {
    guard case .success(let bytes) = ConfigurationSource.contents(of: path) else { return nil }
    return Int(String(decoding: bytes, as: UTF8.self).prefix { $0.isNumber })
  }

  private static func write(_ value: Int, to path: String) -> SystemError? {
    let number = unsafe hw_openat(AT_FDCWD, path, O_WRONLY, 0)
    guard number >= 0 else { return SystemError("open(\(path))", -number) }
    let file = OwnedDescriptor(number)
    let bytes = Array("\(value)\n".utf8)
    // At most the array's count is read from it.
    let count = unsafe bytes.withUnsafeBytes {
      unsafe Glibc.write(file.rawValue, $0.baseAddress, $0.count)
    }
    return count < 0 ? SystemError("write(\(path))", errno) : nil
  }
}
