import CFuse
import CHostWatchFS
import Glibc

/// Operations on names. What the view is told is what the kernel does with its
/// dentries once it has the answer.
extension Server {
  enum Creation {
    case node(mode_t, dev_t)
    case directory(mode_t)
    case symbolicLink(Name)

    /// In S_IFMT.
    var type: mode_t {
      switch self {
      case .node(let mode, _): mode & S_IFMT
      case .directory: S_IFDIR
      case .symbolicLink: S_IFLNK
      }
    }
  }

  func create(_ request: Request, _ entry: View.Entry, _ what: Creation) {
    if let interceptor, interceptor.create(request, entry, source: nil) { return }
    request.answer { () throws(Failure) in
      try checkWritable()
      let parent = try open(entry.parent)
      _ = try asCaller(request) { () throws(Failure) in
        try unsafe entry.name.withCString { name throws(Failure) in
          switch what {
          case .node(let mode, let device):
            try check(parent.use { fd in unsafe hwfs_mknod(fd, name, mode, device) })
          case .directory(let mode):
            try check(parent.use { fd in unsafe hwfs_mkdir(fd, name, mode) })
          case .symbolicLink(let target):
            try unsafe target.withCString { target throws(Failure) in
              try check(parent.use { fd in unsafe hwfs_symlink(target, fd, name) })
            }
          }
        }
      }
      let found = try made(entry) { () throws(Failure) in
        let stamp = view.stamp(of: entry.parent)
        let object = try backing.open(entry.name, in: parent)
        // Somebody else's by now: the kernel would make EIO of another type, and looks the
        // name up again for this.
        guard try object.status().st_mode & S_IFMT == (what.type == 0 ? S_IFREG : what.type) else {
          throw Failure(ESTALE)
        }
        return try self.found(object, told: entry, stamp)
      }
      interceptor?.clientChanged(entry, to: found.node.id)
      tell(request, found, as: entry, takesAttributes: true)
    }
  }

  func link(_ request: Request, _ source: UInt64, _ entry: View.Entry) {
    if let interceptor, interceptor.create(request, entry, source: source) { return }
    request.answer { () throws(Failure) in
      try checkWritable()
      let parent = try open(entry.parent)
      let object = try open(source)
      try check(
        unsafe entry.name.withCString { name in
          object.use { fd in parent.use { other in unsafe hwfs_link(fd, other, name) } }
        })
      let found = try made(entry, from: source) { () throws(Failure) in
        try find(entry, in: parent, told: entry)
      }
      interceptor?.clientChanged(entry, to: found.node.id)
      tell(request, found, as: entry, takesAttributes: true)
    }
  }

  /// Finds what has just been made on the host. If that fails so does the request: the
  /// kernel takes it that nothing was made, and the daemon does not tell the server of
  /// what it did itself. So the name is looked up anew, and `source`, to which a
  /// link was made, is asked for.
  func made(
    _ entry: View.Entry, from source: UInt64? = nil, _ find: () throws(Failure) -> Found
  ) throws(Failure) -> Found {
    do throws(Failure) {
      return try find()
    } catch {
      misplaced.add(entry)
      if let source { misplaced.add(source) }
      interceptor?.clientChanged(entry, to: 0)
      throw error
    }
  }

  func remove(_ request: Request, _ entry: View.Entry, isDirectory: Bool) {
    if let interceptor, interceptor.remove(request, entry, isDirectory: isDirectory) { return }
    request.answer { () throws(Failure) in
      try checkWritable()
      let parent = try open(entry.parent)
      let going = try victim(entry)
      try check(
        unsafe entry.name.withCString { name in
          parent.use { fd in unsafe hwfs_unlink(fd, name, isDirectory ? AT_REMOVEDIR : 0) }
        })
      settle(going) { [self] in
        view.remove(entry)
        interceptor?.clientChanged(entry, to: 0)
        request.done()
      }
    }
  }

  func rename(_ request: Request, _ old: View.Entry, to new: View.Entry, flags: UInt32) {
    if let interceptor, interceptor.rename(request, old, to: new, flags: flags) { return }
    request.answer { () throws(Failure) in
      try checkWritable()
      let (from, to) = (try open(old.parent), try open(new.parent))
      let exchange = flags & 2 != 0  // RENAME_EXCHANGE
      let going = exchange ? nil : try victim(new)
      try check(
        unsafe old.name.withCString { name in
          unsafe new.name.withCString { newName in
            from.use { fd in to.use { other in unsafe hwfs_rename(fd, name, other, newName, flags) }
            }
          }
        })
      settle(going) { [self] in
        let moved = view.child(old.name, of: old.parent) ?? 0
        let other = view.child(new.name, of: new.parent) ?? 0
        view.rename(old, to: new, exchange: exchange)
        if !leads(new, in: to, to: moved) { misplaced.add(new) }
        if exchange, !leads(old, in: from, to: other) { misplaced.add(old) }
        interceptor?.clientChanged(old, to: exchange ? other : 0)
        interceptor?.clientChanged(new, to: moved)
        request.done()
      }
    }
  }

  /// Whether the name leads to this node on the host. After a rename the kernel has the node
  /// there that it knew by the other name, whatever the host has put under that since. What is
  /// told of that drops the other name alone.
  private func leads(_ entry: View.Entry, in directory: Descriptor, to id: UInt64) -> Bool {
    guard let object = view.node(id)?.object else { return false }
    do throws(Failure) {
      let found = try backing.open(entry.name, in: directory)
      return try backing.object(found, try found.status()).key == object.key
    } catch {
      return false
    }
  }

  /// A node one of whose names is about to go, and a descriptor of it.
  private struct Victim {
    let id: UInt64
    let descriptor: Descriptor
    let isDirectory: Bool
    /// A client may go on using it, as its working directory for one, and a handle does
    /// not open a removed object.
    let isLastName: Bool
  }

  /// Nil if the kernel knows none there, or what it knows is gone already. What cannot
  /// be kept for any other reason is not to go.
  private func victim(_ entry: View.Entry) throws(Failure) -> Victim? {
    guard let id = view.child(entry.name, of: entry.parent), id != 0, let node = view.node(id)
    else { return nil }
    let descriptor: Descriptor
    do throws(Failure) {
      descriptor = try backing.open(node)
    } catch {
      guard error.isGone else { throw error }
      return nil
    }
    return Victim(
      id: id, descriptor: descriptor, isDirectory: node.isDirectory,
      isLastName: node.isDirectory || (try? descriptor.status().st_nlink) == 1)
  }

  /// After its name has gone: what was the last one's is kept until the kernel has
  /// forgotten the node. `answer` may be called later, on another thread.
  private func settle(_ victim: Victim?, _ answer: @escaping @Sendable () -> Void) {
    guard let victim else { return answer() }
    if victim.isLastName {
      view.keep(victim.descriptor, for: victim.id)
      backing.drop(victim.id)
    }
    if let interceptor, !victim.isDirectory,
      let links = try? victim.descriptor.status().st_nlink, links > 0
    {
      return interceptor.clientUnlinked(victim.id, then: answer)
    }
    if victim.isDirectory { interceptor?.clientRemoved(victim.id) }
    answer()
  }

  func checkWritable() throws(Failure) {
    if settings.isReadOnly { throw Failure(EROFS) }
  }
}
