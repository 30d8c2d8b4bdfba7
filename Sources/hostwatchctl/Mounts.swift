import CFanotify
import Glibc
import HostWatch

/// The hostwatchfs servers of this host: each answers on a socket of its own.
/// What a killed one left there is nobody's and is passed over; so are those
/// of which the user may not ask, who is not root.
enum Mounts {
  static let directory = "/run/hostwatchfs"
  /// A server that is stopped does not hold up the others for longer.
  private static let patienceSeconds = 1

  /// Their answers: a JSON object each, in the order of their pids.
  static func answers() -> [String] {
    pids().compactMap { answer("\(directory)/\($0).sock") }
  }

  /// Those that have a socket, be they there or gone, in order.
  static func pids() -> [Int] {
    guard let stream = unsafe opendir(directory) else { return [] }
    defer { _ = unsafe closedir(stream) }
    var pids: [Int] = []
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        // The kernel ends it with a NUL.
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      if name.hasSuffix(".sock"), let pid = Int(name.dropLast(5)) { pids.append(pid) }
    }
    return pids.sorted()
  }

  private static func answer(_ path: String) -> String? {
    let number = hw_socket(false)
    guard number >= 0 else { return nil }
    let peer = OwnedDescriptor(number)
    var patience = timeval(tv_sec: patienceSeconds, tv_usec: 0)
    let size = socklen_t(MemoryLayout<timeval>.size)
    for option in [SO_RCVTIMEO, SO_SNDTIMEO] {
      _ = unsafe setsockopt(peer.rawValue, SOL_SOCKET, option, &patience, size)
    }
    guard unsafe path.withCString({ unsafe hw_connect_path(peer.rawValue, $0) }) == 0 else {
      return nil
    }
    let request = Array("status".utf8)
    var answer = [UInt8](repeating: 0, count: 1 << 16)
    let count = unsafe request.withUnsafeBytes { request in
      unsafe answer.withUnsafeMutableBytes { answer -> Int in
        let flags = Int32(MSG_NOSIGNAL)
        // Both as long as they say.
        guard unsafe send(peer.rawValue, request.baseAddress, request.count, flags) > 0 else {
          return -1
        }
        return unsafe recv(peer.rawValue, answer.baseAddress, answer.count, 0)
      }
    }
    guard count > 0 else { return nil }
    return String(decoding: answer[..<count], as: UTF8.self)
  }
}
