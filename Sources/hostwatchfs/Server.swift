import CFuse
import CHostWatchFS
import Glibc
import HostWatch

/// The passthrough filesystem: requests of the kernel come in on libfuse's
/// threads, each is performed on SOURCE and answered.
///
/// Of each object that the kernel is told of, this holds: it is entered in the
/// view, then registered with the daemon (a directory before it is told, a
/// file without waiting), then told with timeouts that the view gives.
final class Server: Sendable {
  struct Settings: Sendable {
    var isReadOnly = false
    /// Files are opened with direct I/O: nothing of them is cached.
    var isDirectIO = false
    /// Ids, groups and umask of callers are taken on: the server is root.
    var becomesCaller = true
    /// Open files keep their pages while in step.
    var keepsPages = true
  }

  let view: View
  let backing: Backing
  let daemon: Daemon?
  let settings: Settings
  let statistics: Statistics
  let log: Log
  let files = OpenFiles()
  let locks: LockTable
  /// What the kernel has wrong after an answer.
  let misplaced: Misplaced
  /// Set before the first request, not changed after.
  let interceptor: (any Interceptor)?

  init(
    view: View, backing: Backing, daemon: Daemon?, settings: Settings, statistics: Statistics,
    interceptor: (any Interceptor)?, misplaced: Misplaced, log: Log
  ) throws(Failure) {
    locks = try LockTable()
    self.view = view
    self.backing = backing
    self.daemon = daemon
    self.settings = settings
    self.statistics = statistics
    self.interceptor = interceptor
    self.misplaced = misplaced
    self.log = log
  }

  /// An O_PATH descriptor of a node.
  func open(_ id: UInt64) throws(Failure) -> Descriptor {
    guard let node = view.node(id) else { throw Failure(ESTALE) }
    return try backing.open(node)
  }

  /// A node's attributes as the host has them now.
  func status(of id: UInt64) throws(Failure) -> stat { try open(id).status() }

  // MARK: - Telling the kernel of an object

  /// An object that was found or made and is about to be told: it has its
  /// lookup in the view. Ends in `tell` or `withdraw`.
  struct Found {
    let node: View.Node
    let descriptor: Descriptor
    let status: stat
    /// Of the name under which it is told, if any.
    let stamp: View.Stamp?
    /// Others may have told the kernel of it before.
    var isNew: Bool { node.lookups == 1 }
  }

  func find(_ entry: View.Entry, in directory: Descriptor, told: View.Entry?) throws(Failure)
    -> Found
  {
    let stamp = told.map { view.stamp(of: $0.parent) }
    return try found(try backing.open(entry.name, in: directory), told: told, stamp)
  }

  func found(
    _ descriptor: Descriptor, told: View.Entry?, _ stamp: View.Stamp?
  ) throws(Failure) -> Found {
    var status = try descriptor.status()
    let object = try backing.object(descriptor, status)
    let node = view.enter(object, type: status.st_mode, as: told)
    if daemon != nil, node.following == .yes {
      // Another thread may have registered it since: a change between is in no record.
      do throws(Failure) {
        status = try descriptor.status()
      } catch {
        withdraw(node.id)
        throw error
      }
    }
    return Found(node: node, descriptor: descriptor, status: status, stamp: stamp)
  }

  /// Registers what is not registered yet.
  func register(_ found: [Found]) {
    guard let daemon else { return }
    Registrar(view: view, daemon: daemon, misplaced: misplaced).register(
      found.filter { $0.node.following == .pending }.map { one in
        (
          one.node,
          Daemon.Registration(
            descriptor: one.descriptor, node: one.node.id, since: one.status.st_ctim)
        )
      })
  }

  /// What the kernel is told. `takesAttributes`: the kernel takes attributes of
  /// this answer even where it was told to drop them since it asked.
  func parameters(_ found: Found, parent: UInt64?, takesAttributes: Bool = false)
    -> fuse_entry_param
  {
    let timeouts = view.timeouts(parent: parent, node: found.node.id, stamp: found.stamp)
    view.setToldLinks(found.node.id, UInt64(found.status.st_nlink))
    var parameters = fuse_entry_param()
    parameters.ino = found.node.id
    parameters.generation = View.generation
    parameters.attr = found.status
    parameters.entry_timeout = timeouts.entry
    parameters.attr_timeout = takesAttributes && !found.isNew ? 0 : timeouts.attributes
    return parameters
  }

  func tell(
    _ request: Request, _ found: Found, as entry: View.Entry?, takesAttributes: Bool = false
  ) {
    register([found])
    let parameters = parameters(found, parent: entry?.parent, takesAttributes: takesAttributes)
    if !request.reply(parameters) { withdraw(found.node.id) }
  }

  func withdraw(_ id: UInt64) { forget(id, lookups: 1) }

  func forget(_ id: UInt64, lookups: UInt64) {
    if view.forget(id, lookups: lookups) {
      backing.drop(id)
      daemon?.forget([id])
    }
  }

  /// Runs `body` with the caller's ids, groups and umask, on this thread alone.
  func asCaller(_ request: Request, _ body: () throws(Failure) -> Int32) throws(Failure) -> Int32 {
    guard settings.becomesCaller else { return try body() }
    let (uid, gid, mask) = (request.uid, request.gid, request.umask)
    let groups = uid == 0 ? [] : try request.groups()
    try check(
      unsafe groups.withUnsafeBufferPointer {
        unsafe hwfs_become(uid, gid, $0.baseAddress, $0.count, mask)
      })
    defer { hwfs_restore() }
    return try body()
  }
}
