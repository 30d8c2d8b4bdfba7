import HostWatch

/// What the daemon listens on: the service manager's sockets, or one it binds
/// itself if it was passed none.
struct Sockets: ~Copyable {
  /// Each is given away once, to the hub.
  let listeners: [Int32]
  /// For the log.
  let place: String
  private var own: OwnSocket?

  private let store: SystemdStore?

  static func open(
    _ configuration: Configuration, inherited: [Int32], store: SystemdStore?
  ) throws(StartFailure) -> Sockets {
    if !inherited.isEmpty {
      let count = inherited.count
      let place = "\(count) socket\(count == 1 ? "" : "s") of the service manager"
      return Sockets(listeners: inherited, place: place, own: nil, store: nil)
    }
    let path = configuration.socketPath
    let own = try OwnSocket.open(
      path, mode: configuration.socketMode, kept: store?.take(SystemdStore.listener))
    // Connections that nobody has accepted yet live in it.
    _ = store?.add(own.listener, name: SystemdStore.listener)
    return Sockets(listeners: [own.listener], place: path, own: own, store: store)
  }

  /// Removes a socket of our own; the service manager's stay.
  consuming func remove() {
    guard let own = own.take() else { return }
    store?.remove(SystemdStore.listener)
    own.remove()
  }

  /// Leaves a socket of our own to the next process.
  consuming func leave() {
    own.take()?.leave()
  }
}
