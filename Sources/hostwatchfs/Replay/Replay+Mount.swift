import CReplay
import Glibc
import HostWatch
import HostWatchReplay

/// What the engine needs of the server.
extension Replay: ReplayMount {
  func isKnown(_ node: NodeID) -> Bool {
    view.isKnown(node.nodeid) || node == engine?.orphanage
  }

  func entry(_ place: Place) -> NodeID? {
    guard let id = view.child(Name(place.name), of: place.directory.nodeid), id != 0 else {
      return nil
    }
    return NodeID(id)
  }

  func places(of node: NodeID) -> [Place] {
    view.node(node.nodeid)?.names.map { Place($0) } ?? []
  }

  func entries(in directory: NodeID) -> [(name: [UInt8], node: NodeID)] {
    view.children(of: directory.nodeid).compactMap { name, id in
      id == 0 ? nil : (name.bytes, NodeID(id))
    }
  }

  func setEntry(_ place: Place, to node: NodeID) { view.set(View.Entry(place), to: node.nodeid) }
  func removeEntry(_ place: Place) { view.remove(View.Entry(place)) }
  func kind(of node: NodeID) -> UInt32? { view.node(node.nodeid)?.type }

  /// Nil for what is gone; what cannot be seen is not.
  private func look<Seen>(_ body: () throws(Failure) -> Seen) throws(SystemError) -> Seen? {
    do throws(Failure) {
      return try body()
    } catch {
      guard error.isGone else { throw SystemError("open", error.code) }
      return nil
    }
  }

  func status(of node: NodeID) throws(SystemError) -> ObjectStatus? {
    guard let node = view.node(node.nodeid),
      let status = try look({ () throws(Failure) in try backing.open(node).status() })
    else { return nil }
    return ObjectStatus(
      mode: status.st_mode, links: UInt32(clamping: status.st_nlink),
      deviceMajor: replay_major(UInt64(status.st_rdev)),
      deviceMinor: replay_minor(UInt64(status.st_rdev)),
      accessed: .init(
        seconds: Int64(status.st_atim.tv_sec), nanoseconds: Int64(status.st_atim.tv_nsec)),
      modified: .init(
        seconds: Int64(status.st_mtim.tv_sec), nanoseconds: Int64(status.st_mtim.tv_nsec)))
  }

  private func object(
    _ place: Place
  ) throws(SystemError) -> (BackingObject, stat, Descriptor)? {
    guard let directory = view.node(place.directory.nodeid) else { return nil }
    return try look { () throws(Failure) in
      let parent = try backing.open(directory)
      let descriptor = try backing.open(Name(place.name), in: parent)
      let status = try descriptor.status()
      return (try backing.object(descriptor, status), status, descriptor)
    }
  }

  func isOnHost(_ node: NodeID, _ place: Place) throws(SystemError) -> Bool {
    guard let (object, _, _) = try object(place) else { return false }
    return view.node(of: object.key)?.id == node.nodeid
  }

  func toldLinks(of node: NodeID) -> UInt64 { view.node(node.nodeid)?.toldLinks ?? 0 }

  func find(_ place: Place) throws(SystemError) -> NodeID? {
    guard let (object, status, descriptor) = try object(place) else { return nil }
    let node = view.hold(object, type: status.st_mode)
    if node.following == .pending { register(node, descriptor, status) }
    return NodeID(node.id)
  }

  /// What changed before is told by the records that are on their way, or by a
  /// RECHECK.
  private func register(_ node: View.Node, _ descriptor: Descriptor, _ status: stat) {
    let registration = Daemon.Registration(
      descriptor: descriptor, node: node.id, since: status.st_ctim)
    Registrar(view: view, daemon: daemon, misplaced: misplaced).register([(node, registration)])
  }

  func makePhantom(kind: UInt32) -> NodeID { NodeID(view.hold(nil, type: kind).id) }
  func retain(_ node: NodeID) -> Bool { view.hold(node.nodeid) }

  func release(_ node: NodeID) {
    guard view.release(node.nodeid) else { return }
    backing.drop(node.nodeid)
    daemon.forget([node.nodeid])
  }

  func closeCached(_ node: NodeID) { backing.drop(node.nodeid) }

  func invalidateEntry(_ place: Place) {
    if kernel?.invalidator.drop(View.Entry(place)) == false { misplaced.wakeUp() }
  }

  func invalidateNode(_ node: NodeID, contents: Bool) {
    let isDone = kernel?.invalidator.invalidate(node.nodeid, attributesOnly: !contents)
    // The follower, whose thread this is not, sends it again.
    if isDone == false { misplaced.wakeUp() }
  }

  func expireEntry(_ place: Place) { _ = kernel?.notifier.expire(View.Entry(place)) }
}
