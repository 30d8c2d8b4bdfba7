import CFanotify
import CSystemd
import Glibc
import HostWatch

/// What the service manager passes (sd_listen_fds(3)): the sockets it listens on
/// for us, and the descriptors that an earlier process has stored with it.
struct InheritedSockets {
  var listeners: [Int32] = []
  /// By name. Closed by whoever takes them.
  var stored: [String: [Int32]] = [:]

  /// Takes them all over.
  ///
  /// They are told apart by name. Each socket must be an AF_UNIX SOCK_SEQPACKET socket that listens: another one
  /// is a mistake in the .socket unit, and better said than served wrongly.
  static func take() throws(StartFailure) -> InheritedSockets {
    var names: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?
    // 1: unset the variables, so that nothing we might start inherits them.
    let count = unsafe sd_listen_fds_with_names(1, &names)
    defer { unsafe freeNames(names) }
    guard count >= 0 else {
      throw StartFailure(
        .unavailable,
        "\(SystemError("sd_listen_fds", -count)); LISTEN_FDS holds what no service manager passes")
    }
    var result = InheritedSockets()
    for offset in 0..<count {
      let descriptor = SD_LISTEN_FDS_START + offset
      // The array has `count` names and a NULL.
      let name = unsafe names?[Int(offset)].map { unsafe String(cString: $0) } ?? "unnamed"
      guard !isStored(descriptor, name) else {
        result.stored[name, default: []].append(descriptor)
        continue
      }
      guard sd_is_socket(descriptor, AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 1) > 0 else {
        throw StartFailure(
          .configuration,
          "descriptor \(descriptor) (\(escapingControls(name))) from the service manager is not a listening AF_UNIX socket of type SOCK_SEQPACKET; use ListenSequentialPacket= in the .socket unit"
        )
      }
      // A client that hangs up before it is accepted must not block the loop.
      guard fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK) == 0 else {
        throw StartFailure(
          .systemCall,
          "\(SystemError("fcntl(F_SETFL)", errno)): the service manager's socket cannot be used")
      }
      result.listeners.append(descriptor)
    }
    return result
  }

  /// Ours by their prefix; "stored" is the name of what was stored without one. What
  /// does not listen at all is from no .socket unit either.
  private static func isStored(_ descriptor: Int32, _ name: String) -> Bool {
    name.hasPrefix(SystemdStore.prefix) || name == "stored"
      || sd_is_socket(descriptor, AF_UNSPEC, 0, 1) <= 0 && sd_is_fifo(descriptor, nil) <= 0
        && !name.hasSuffix(".socket")
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
