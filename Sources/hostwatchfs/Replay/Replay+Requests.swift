import CFuse
import CHostWatchFS
import Glibc
import HostWatch
import HostWatchReplay

/// The replayer's requests, answered without touching SOURCE.
extension Replay: Interceptor {
  /// The engine, if the request is its replayer's.
  private func engine(for request: Request) -> ReplayEngine? {
    guard let engine, engine.replayerID != 0, request.thread == engine.replayerID else {
      return nil
    }
    return engine
  }

  func lookup(_ request: Request, _ entry: View.Entry) -> Bool {
    guard let engine = engine(for: request) else { return false }
    switch engine.ghostLookup(entry.parent, entry.name.bytes) {
    case .ordinary: return false
    case .absent: request.fail(ENOENT)
    case .node(let node, let lasting): _ = tell(request, engine, node, entry, lasting)
    }
    return true
  }

  private func tell(
    _ request: Request, _ engine: ReplayEngine, _ node: NodeID, _ entry: View.Entry,
    _ lasting: Bool
  ) -> Bool {
    var parameters = fuse_entry_param()
    let (status, isReal): (stat, Bool)
    do throws(Failure) {
      (status, isReal) = try attributes(engine, node.nodeid)
    } catch {
      request.fail(error.code)
      return false
    }
    view.enter(node.nodeid, as: entry)
    parameters.ino = node.nodeid
    parameters.generation = View.generation
    parameters.attr = status
    if lasting, isReal {
      let timeouts = view.timeouts(parent: entry.parent, node: node.nodeid)
      parameters.entry_timeout = timeouts.entry
      parameters.attr_timeout = timeouts.attributes
    }
    view.setToldLinks(node.nodeid, UInt64(parameters.attr.st_nlink))
    guard !request.reply(parameters) else { return true }
    if view.forget(node.nodeid, lookups: 1) {
      backing.drop(node.nodeid)
      daemon.forget([node.nodeid])
    }
    return false
  }

  /// The host's, with the link count that the kernel is to see; made up for what
  /// is gone.
  private func attributes(
    _ engine: ReplayEngine, _ id: UInt64
  ) throws(Failure) -> (stat, isReal: Bool) {
    var status = stat()
    var isReal = false
    do throws(Failure) {
      guard let node = view.node(id) else { throw Failure(ESTALE) }
      status = try backing.open(node).status()
      isReal = true
    } catch {
      guard error.isGone else { throw error }
      let type = view.node(id)?.type ?? S_IFREG
      // No inode number of a real object's.
      status.st_ino = numericCast(1 << 63 | id)
      status.st_mode = type | (type == S_IFDIR ? 0o700 : 0o600)
      status.st_nlink = type == S_IFDIR ? 2 : 0
      status.st_blksize = 4096
    }
    let links = Int(clamping: status.st_nlink) + engine.linkBias(of: id)
    status.st_nlink = numericCast(max(0, links))
    return (status, isReal)
  }

  func attributes(_ request: Request, of node: UInt64) -> Bool {
    guard let engine else { return false }
    // While a link count is to be counted down, all see what the kernel needs.
    guard engine.linkBias(of: node) != 0 || self.engine(for: request) != nil else { return false }
    request.answer { () throws(Failure) in
      request.reply(try attributes(engine, node).0, timeout: 0)
    }
    return true
  }

  func setAttributes(_ request: Request, of node: UInt64) -> Bool {
    guard let engine = engine(for: request) else { return false }
    if engine.ghostTouch(node) {
      request.answer { () throws(Failure) in
        let (status, isReal) = try attributes(engine, node)
        let timeout = isReal ? view.timeouts(parent: nil, node: node).attributes : 0
        request.reply(status, timeout: timeout)
      }
    } else {
      request.fail(EBUSY)
    }
    return true
  }

  func create(_ request: Request, _ entry: View.Entry, source: UInt64?) -> Bool {
    guard let engine = engine(for: request) else { return false }
    if let made = engine.ghostCreate(entry.parent, entry.name.bytes) {
      if !tell(request, engine, made.node, entry, made.lasting) {
        // The engine takes it for told.
        engine.guestChanged(Place(entry), to: nil)
      }
    } else {
      request.fail(EBUSY)
    }
    return true
  }

  func remove(_ request: Request, _ entry: View.Entry, isDirectory: Bool) -> Bool {
    guard let engine = engine(for: request) else { return false }
    request.fail(engine.ghostRemove(entry.parent, entry.name.bytes) ? 0 : EBUSY)
    return true
  }

  func rename(_ request: Request, _ old: View.Entry, to new: View.Entry, flags: UInt32) -> Bool {
    guard let engine = engine(for: request) else { return false }
    let done = engine.ghostRename(old.parent, old.name.bytes, new.parent, new.name.bytes)
    request.fail(done ? 0 : EBUSY)
    return true
  }

  func open(_ request: Request, _ node: UInt64, _ file: inout OpenReply) -> Bool {
    guard let engine = engine(for: request) else {
      // __FMODE_EXEC of Linux' include/linux/fs.h, which execve passes on.
      if file.flags & 0x20 != 0 { self.engine?.guestExecutes(node) }
      return false
    }
    guard engine.ghostOpen(node) else {
      request.fail(EBUSY)
      return true
    }
    // Nothing comes of it but RELEASE, of a file that nobody has.
    file.handle = 0
    file.info.direct_io = 1
    file.info.noflush = 1
    file.info.keep_cache = 1
    _ = request.reply(file)
    return true
  }

  func clientChanged(_ entry: View.Entry, to node: UInt64) {
    engine?.guestChanged(Place(entry), to: node == 0 ? nil : NodeID(node))
  }

  func clientUnlinked(_ node: UInt64, then: @escaping @Sendable () -> Void) {
    guard let engine else { return then() }
    engine.guestUnlinked(NodeID(node), then: then)
  }

  func clientRemoved(_ directory: UInt64) { engine?.guestRemoved(NodeID(directory)) }
}
