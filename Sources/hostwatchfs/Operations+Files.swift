import CFuse
import CHostWatchFS
import Glibc

/// Open files.
extension Server {
  /// Flags of open(2) that are not the host's: the kernel has done O_NOFOLLOW,
  /// O_CREAT, O_EXCL and O_TRUNC, O_APPEND is in the offset of each write, and
  /// O_DIRECT would demand alignments of our buffers.
  private static let foreignFlags = O_CREAT | O_EXCL | O_TRUNC | O_NOCTTY | O_APPEND
  private static let directFlag: Int32 = 0o40000
  private static let noFollowFlag: Int32 = 0o400000

  private func hostFlags(_ flags: Int32) -> Int32 {
    flags & ~(Self.foreignFlags | Self.directFlag | Self.noFollowFlag)
  }

  private func cacheFlags(_ file: inout OpenReply) {
    let direct = settings.isDirectIO || file.flags & Self.directFlag != 0
    file.info.direct_io = direct ? 1 : 0
    file.info.keep_cache = !direct && settings.keepsPages && view.isInStep ? 1 : 0
  }

  func openFile(_ request: Request, _ id: UInt64, _ info: fuse_file_info) {
    var reply = OpenReply(info)
    if let interceptor, interceptor.open(request, id, &reply) { return }
    request.answer { () throws(Failure) in
      if reply.flags & O_ACCMODE != O_RDONLY { try checkWritable() }
      let descriptor = try open(id)
      let file = try Descriptor(
        checking: descriptor.use { fd in hwfs_reopen(fd, hostFlags(reply.flags)) })
      cacheFlags(&reply)
      if view.node(id)?.following != .yes { reply.info.keep_cache = 0 }
      reply.handle = files.add(file)
      if !request.reply(reply) { files.remove(reply.handle) }
    }
  }

  /// CREATE: makes a file and opens it, or opens the one that is there by now.
  func createFile(_ request: Request, _ entry: View.Entry, _ mode: mode_t, _ info: fuse_file_info) {
    var reply = OpenReply(info)
    request.answer { () throws(Failure) in
      try checkWritable()
      let parent = try open(entry.parent)
      // Without O_TRUNC: if the file is there the kernel truncates it itself.
      let flags = hostFlags(reply.flags) | O_CREAT | (reply.flags & O_EXCL) | O_NOFOLLOW
      let number = try asCaller(request) { () throws(Failure) in
        try unsafe entry.name.withCString { name throws(Failure) in
          try check(parent.use { fd in unsafe hwfs_open(fd, name, flags, mode) })
        }
      }
      let file = Descriptor(number)
      // Through the file itself: the name may be another object's by now.
      let found = try made(entry) { () throws(Failure) in
        let path = try Descriptor(checking: file.use { fd in hwfs_reopen(fd, Int32(hwfs_o_path)) })
        // That it still has the name is looked up after this.
        return try self.found(path, told: entry, self.view.stamp(of: entry.parent))
      }
      interceptor?.clientChanged(entry, to: found.node.id)
      register([found])
      var parameters = parameters(found, parent: entry.parent, takesAttributes: true)
      if !isStill(found, at: entry, in: parent) { parameters.entry_timeout = 0 }
      cacheFlags(&reply)
      reply.handle = files.add(file)
      if !request.reply(parameters, reply) {
        files.remove(reply.handle)
        withdraw(found.node.id)
      }
    }
  }

  private func isStill(_ found: Found, at entry: View.Entry, in parent: Descriptor) -> Bool {
    guard let descriptor = try? backing.open(entry.name, in: parent),
      let status = try? descriptor.status()
    else { return false }
    return status.st_ino == found.status.st_ino && status.st_dev == found.status.st_dev
  }

  func read(_ request: Request, _ file: UInt64, size: Int, offset: off_t) {
    request.answer { () throws(Failure) in
      request.reply(from: try files.requireFile(file), offset: offset, size: size)
    }
  }

  /// An append goes to the end that the file has on the host. The kernel takes
  /// it to be at `offset`, the end it knows: if that was another, because the
  /// host has just appended, too, its pages are dropped.
  func write(
    _ request: Request, _ id: UInt64, _ info: fuse_file_info, _ data: UnsafeRawBufferPointer,
    offset: off_t
  ) {
    request.answer { () throws(Failure) in
      let descriptor = try files.requireFile(info.fh)
      if info.flags & O_APPEND != 0, info.writepage == 0 {
        var position = offset
        let written = try check(
          descriptor.use { fd in
            unsafe hwfs_append(fd, data.baseAddress, data.count, &position)
          })
        if position != offset { misplaced.add(id) }
        request.reply(written: written)
        return
      }
      let written = try check(
        descriptor.use { fd in unsafe hwfs_pwrite(fd, data.baseAddress, data.count, offset) })
      request.reply(written: written)
    }
  }

  /// Each close(2) of a client; POSIX locks of its owner end.
  func flush(_ request: Request, _ id: UInt64, _ info: fuse_file_info) {
    request.answer { () throws(Failure) in
      let descriptor = try files.requireFile(info.fh)
      locks.release(node: id, owner: info.lock_owner)
      try check(descriptor.use { fd in hwfs_flush(fd) })
      request.done()
    }
  }

  func release(_ request: Request, _ id: UInt64, _ info: fuse_file_info) {
    locks.released(file: info.fh)
    files.remove(info.fh)
    request.done()
  }

  func synchronize(_ request: Request, _ file: UInt64, dataOnly: Bool) {
    request.answer { () throws(Failure) in
      let descriptor = try files.requireFile(file)
      try check(descriptor.use { fd in hwfs_fsync(fd, dataOnly) })
      request.done()
    }
  }

  func allocate(_ request: Request, _ file: UInt64, _ mode: Int32, _ offset: off_t, _ length: off_t)
  {
    request.answer { () throws(Failure) in
      let descriptor = try files.requireFile(file)
      try check(descriptor.use { fd in hwfs_fallocate(fd, mode, offset, length) })
      request.done()
    }
  }

  func seek(_ request: Request, _ file: UInt64, _ offset: off_t, _ whence: Int32) {
    request.answer { () throws(Failure) in
      let descriptor = try files.requireFile(file)
      request.reply(
        offset: try check(descriptor.use { fd in hwfs_lseek(fd, offset, whence) }))
    }
  }

  func copyRange(
    _ request: Request, from source: (file: UInt64, offset: off_t),
    to target: (file: UInt64, offset: off_t), size: Int, flags: UInt32
  ) {
    request.answer { () throws(Failure) in
      let input = try files.requireFile(source.file)
      let output = try files.requireFile(target.file)
      request.reply(
        written: try check(
          input.use { fd in
            output.use { other in
              hwfs_copy_range(
                fd, source.offset, other, target.offset, size, flags)
            }
          }))
    }
  }
}
