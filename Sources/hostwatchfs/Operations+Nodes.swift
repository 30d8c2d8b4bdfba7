import CFuse
import CHostWatchFS
import Glibc

/// Lookups and attributes.
extension Server {
  func lookup(_ request: Request, _ entry: View.Entry) {
    if let interceptor, interceptor.lookup(request, entry) { return }
    request.answer { () throws(Failure) in
      // Only an NFS server asks for these, and the mount is not for export.
      if entry.name == .dot || entry.name == .dotDot { throw Failure(ESTALE) }
      let stamp = view.stamp(of: entry.parent)
      do throws(Failure) {
        tell(request, try find(entry, in: try open(entry.parent), told: entry), as: entry)
      } catch {
        guard error == Failure(ENOENT) else { throw error }
        tellAbsent(request, entry, stamp)
      }
    }
  }

  func tellAbsent(_ request: Request, _ entry: View.Entry, _ stamp: View.Stamp) {
    let timeout = view.enterAbsent(entry, stamp: stamp)
    guard timeout > 0 else {
      request.fail(ENOENT)
      return
    }
    var parameters = fuse_entry_param()
    parameters.entry_timeout = timeout
    _ = request.reply(parameters)
  }

  func attributes(_ request: Request, of id: UInt64, _ file: UInt64?) {
    if let interceptor, interceptor.attributes(request, of: id) { return }
    request.answer { () throws(Failure) in
      let open = file.flatMap { files.file($0) }
      // What is followed only since the file was looked at says nothing of a change before.
      let before = view.timeouts(parent: nil, node: id).attributes
      let status = if let open { try open.status() } else { try status(of: id) }
      view.setToldLinks(id, UInt64(status.st_nlink))
      let after = view.timeouts(parent: nil, node: id).attributes
      request.reply(status, timeout: min(before, after))
    }
  }

  func setAttributes(
    _ request: Request, of id: UInt64, _ wanted: stat, _ which: Int32, _ file: UInt64?
  ) {
    if let interceptor, interceptor.setAttributes(request, of: id) { return }
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      let has = { (bit: Int32) in which & bit != 0 }
      if has(FUSE_SET_ATTR_UID) || has(FUSE_SET_ATTR_GID) {
        let uid = has(FUSE_SET_ATTR_UID) ? wanted.st_uid : uid_t.max
        let gid = has(FUSE_SET_ATTR_GID) ? wanted.st_gid : gid_t.max
        try check(descriptor.use { fd in hwfs_chown(fd, uid, gid) })
      }
      if has(FUSE_SET_ATTR_SIZE) {
        if let open = file.flatMap({ files.file($0) }) {
          try check(open.use { fd in hwfs_ftruncate(fd, wanted.st_size) })
        } else {
          try check(descriptor.use { fd in hwfs_truncate(fd, wanted.st_size) })
        }
      }
      // After chown and truncate, which drop the set-id bits.
      if has(FUSE_SET_ATTR_MODE) {
        try check(descriptor.use { fd in hwfs_chmod(fd, wanted.st_mode & 0o7777) })
      }
      if has(FUSE_SET_ATTR_ATIME) || has(FUSE_SET_ATTR_MTIME) {
        let omitted = timespec(tv_sec: 0, tv_nsec: Int(hwfs_utime_omit))
        let now = timespec(tv_sec: 0, tv_nsec: Int(hwfs_utime_now))
        let times = [
          has(FUSE_SET_ATTR_ATIME_NOW) ? now : has(FUSE_SET_ATTR_ATIME) ? wanted.st_atim : omitted,
          has(FUSE_SET_ATTR_MTIME_NOW) ? now : has(FUSE_SET_ATTR_MTIME) ? wanted.st_mtim : omitted,
        ]
        try check(
          unsafe times.withUnsafeBufferPointer { buffer in
            // Two, as utimensat wants.
            descriptor.use { fd in unsafe hwfs_utimens(fd, buffer.baseAddress!) }
          })
      }
      let status = try descriptor.status()
      view.setToldLinks(id, UInt64(status.st_nlink))
      // The kernel takes these even if it was told to drop them meanwhile.
      request.reply(status, timeout: 0)
    }
  }

  func readLink(_ request: Request, _ id: UInt64) {
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      var target = [CChar](repeating: 0, count: Int(PATH_MAX) + 1)
      let count = try check(
        unsafe target.withUnsafeMutableBufferPointer { buffer in
          // One byte stays for the NUL.
          descriptor.use { fd in unsafe hwfs_readlink(fd, buffer.baseAddress!, buffer.count - 1) }
        })
      target[count] = 0
      request.reply(link: target)
    }
  }

  func statistics(_ request: Request, _ id: UInt64) {
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      var status = statvfs()
      try check(descriptor.use { fd in unsafe hwfs_statvfs(fd, &status) })
      request.reply(status)
    }
  }

  // MARK: - Extended attributes

  /// The largest value and list that Linux has (XATTR_SIZE_MAX, XATTR_LIST_MAX).
  private static let maxAttributeSize = 65536

  func getAttribute(_ request: Request, _ id: UInt64, _ name: Name, size: Int) {
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      unsafe try reply(request, size: size) { buffer, size in
        unsafe name.withCString { name in
          descriptor.use { fd in unsafe hwfs_getxattr(fd, name, buffer, size) }
        }
      }
    }
  }

  func listAttributes(_ request: Request, _ id: UInt64, size: Int) {
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      unsafe try reply(request, size: size) { buffer, size in
        descriptor.use { fd in unsafe hwfs_listxattr(fd, buffer, size) }
      }
    }
  }

  /// With size 0 the size that is needed, else as much as there is.
  private func reply(
    _ request: Request, size: Int, _ read: (UnsafeMutablePointer<CChar>?, Int) -> Int
  ) throws(Failure) {
    guard size > 0 else {
      request.reply(size: try check(read(nil, 0)))
      return
    }
    var buffer = [CChar](repeating: 0, count: min(size, Self.maxAttributeSize))
    let count = try check(
      unsafe buffer.withUnsafeMutableBufferPointer { unsafe read($0.baseAddress, $0.count) })
    request.reply(buffer[..<count])
  }

  func setAttribute(
    _ request: Request, _ id: UInt64, _ name: Name, _ value: [UInt8], _ flags: Int32
  ) {
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      try check(
        unsafe name.withCString { name in
          unsafe value.withUnsafeBufferPointer { buffer in
            descriptor.use { fd in
              unsafe hwfs_setxattr(fd, name, buffer.baseAddress, buffer.count, flags)
            }
          }
        })
      request.done()
    }
  }

  func removeAttribute(_ request: Request, _ id: UInt64, _ name: Name) {
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      try check(
        unsafe name.withCString { name in descriptor.use { fd in unsafe hwfs_removexattr(fd, name) }
        })
      request.done()
    }
  }
}
