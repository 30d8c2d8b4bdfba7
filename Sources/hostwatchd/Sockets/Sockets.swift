import HostWatch

/// What the daemon listens on: the service manager's sockets, or one it binds
/// itself if it was passed none.
struct Sockets: ~Copyable {
  /// Each is given away once, to the hub.
  let listeners: [Int32]
  /// For the log.
  let place: String
  private var own: OwnSocket?

  static func open(_ configuration: Configuration) throws(StartFailure) -> Sockets {
    let inherited = try InheritedSockets.take()
    if !inherited.isEmpty {
      let count = inherited.count
      let place = "\(count) socket\(count == 1 ? "" : "s") of the service manager"
      return Sockets(listeners: inherited, place: place, own: nil)
    }
    let path = configuration.socketPath
    let own = try OwnSocket.open(path, mode: configuration.socketMode)
    return Sockets(listeners: [own.listener], place: path, own: own)
  }

  /// Removes a socket of our own; the service manager's stay.
  consuming func remove() {
    own.take()?.remove()
  }
}
