import CFanotify
import CSystemd
import Glibc
import HostWatch

/// The sockets the service manager listens on for us (sd_listen_fds(3)).
enum InheritedSockets {
  /// Takes them all over; an empty array when there are none.
  ///
  /// Each must be an AF_UNIX SOCK_SEQPACKET socket that listens: another one
  /// is a mistake in the .socket unit, and better said than served wrongly.
  static func take() throws(StartFailure) -> [Int32] {
    var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
    // 1: unset the variables, so that nothing we might start inherits them.
    let count = unsafe sd_listen_fds_with_names(1, &names)
    defer { unsafe freeNames(names) }
    guard count >= 0 else {
      throw StartFailure(
        .unavailable,
        "\(SystemError("sd_listen_fds", -count)); LISTEN_FDS holds what no service manager passes")
    }
    var descriptors: [Int32] = []
    for offset in 0..<count {
      let descriptor = SD_LISTEN_FDS_START + offset
      // The array has `count` names and a NULL.
      let name = unsafe names?[Int(offset)].map { unsafe String(cString: $0) } ?? "unnamed"
      guard sd_is_socket(descriptor, AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 1) > 0 else {
        throw StartFailure(
          .configuration,
          "descriptor \(descriptor) (\(escapingControls(name))) from the service manager is not a listening AF_UNIX socket of type SOCK_SEQPACKET; use ListenSequentialPacket= in the .socket unit"
        )
      }
      // A client that hangs up before it is accepted must not block the loop.
      _ = fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK)
      descriptors.append(descriptor)
    }
    return descriptors
  }

  private static func freeNames(
    _ names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
  ) {
    guard let names = unsafe names else { return }
    var index = 0
    // malloc'ed by libsystemd, ended by a NULL.
    while let name = unsafe names[index] {
      unsafe free(name)
      index += 1
    }
    unsafe free(names)
  }
}
