import CHostWatchFS
import Glibc
import HostWatch

/// A socket on which the server says how it is, for `hostwatchctl status`:
/// /run/hostwatchfs/PID.sock, for root. When the server is killed nobody
/// answers there, so nothing it says is ever out of date.
///
/// A client sends one word and gets one answer:
///
///     status      a JSON object
///     sync        "done" once what had happened on the host before is applied
///
/// Anything else is answered with "unknown". A client that does not read or
/// write for a second is cut off.
@safe final class Control: @unchecked Sendable {
  static let directory = "/run/hostwatchfs"

  private let listener: Descriptor
  private let name: String
  private let status: @Sendable () -> String
  private let sync: @Sendable () -> Bool
  private let isEnded = Locked(false)

  init(
    status: @escaping @Sendable () -> String, sync: @escaping @Sendable () -> Bool
  ) throws(Failure) {
    let name = "\(getpid()).sock"
    listener = try Descriptor(
      checking: unsafe Self.directory.withCString { directory in
        unsafe name.withCString { unsafe hwfs_listen(directory, $0) }
      })
    self.name = name
    self.status = status
    self.sync = sync
  }

  /// Begins to answer. `stop` is to be called in any case.
  func start() throws(Failure) {
    try startThread(named: "control") {
      while true {
        guard let peer = try? Descriptor(checking: self.listener.use { fd in hwfs_accept(fd) })
        else {
          if self.isEnded.withLock({ $0 }) { return }
          usleep(100_000)  // no descriptor is free
          continue
        }
        // A sync may wait, and others want to know meanwhile. Whom no thread can
        // serve is hung up on.
        try? startThread(named: "control") { self.serve(peer) }
      }
    }
  }

  func stop() {
    isEnded.withLock { $0 = true }
    _ = unsafe unlink("\(Self.directory)/\(name)")
    _ = listener.use { shutdown($0, Int32(SHUT_RDWR)) }
  }

  private func serve(_ peer: Descriptor) {
    var buffer = [CChar](repeating: 0, count: 64)
    while true {
      let count = unsafe buffer.withUnsafeMutableBufferPointer { buffer in
        // It is not empty.
        peer.use { fd in unsafe hwfs_receive(fd, buffer.baseAddress!, buffer.count) }
      }
      guard count > 0 else { return }
      let word = String(decoding: buffer[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self)
      let answer =
        switch word.split(separator: "\n").first {
        case "status": status()
        case "sync": sync() ? "done" : "failed"
        default: "unknown"
        }
      let bytes = answer.utf8.map { CChar(bitPattern: $0) }
      let sent = unsafe bytes.withUnsafeBufferPointer { buffer in
        // No answer is empty.
        peer.use { fd in unsafe hwfs_send(fd, buffer.baseAddress!, buffer.count) }
      }
      guard sent == bytes.count else { return }
    }
  }
}

/// What `status` answers.
struct MountStatus: Sendable {
  let source: String
  let mountpoint: String
  let events: String
  let isFollowing: Bool
  let isInStep: Bool
  let nodes: Int
  /// For how long records have been applied without a pause: nothing that was
  /// told earlier is still to be applied.
  let lagMicroseconds: UInt64
  let counters: Counters

  var json: String {
    let failures = counters.failures.sorted { $0.key < $1.key }
      .map { "\(Self.quoted($0.key)):\($0.value)" }.joined(separator: ",")
    return "{"
      + [
        "\"pid\":\(getpid())", "\"source\":\(Self.quoted(source))",
        "\"mountpoint\":\(Self.quoted(mountpoint))", "\"events\":\(Self.quoted(events))",
        "\"state\":\(Self.quoted(!isFollowing ? "alone" : isInStep ? "in-step" : "out-of-step"))",
        "\"nodes\":\(nodes)", "\"records\":\(counters.records)",
        "\"replayed\":\(counters.replayed)", "\"invalidated\":\(counters.invalidated)",
        "\"superseded\":\(counters.superseded)", "\"settled\":\(counters.settled)",
        "\"out_of_step\":\(counters.outOfStep)", "\"lag_microseconds\":\(lagMicroseconds)",
        "\"failures\":{\(failures)}",
      ].joined(separator: ",") + "}"
  }

  private static func quoted(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\"", "\\": result += "\\\(scalar)"
      case _ where scalar.value < 0x20 || scalar.value == 0x7f:
        result += "\\u" + String(scalar.value + 0x10000, radix: 16).dropFirst()
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}
