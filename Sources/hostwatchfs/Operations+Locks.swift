import CFuse
import CHostWatchFS
import Glibc

/// POSIX locks and flock(2).
extension Server {
  func getLock(_ request: Request, _ id: UInt64, _ info: fuse_file_info, _ wanted: flock) {
    request.answer { () throws(Failure) in
      var lock = wanted
      let descriptor = try locks.descriptor(
        node: id, owner: info.lock_owner, file: info.fh, try files.requireFile(info.fh))
      try check(descriptor.use { fd in unsafe hwfs_getlk(fd, &lock) })
      request.reply(lock)
    }
  }

  func setLock(
    _ request: Request, _ id: UInt64, _ info: fuse_file_info, _ wanted: flock, waits: Bool
  ) {
    request.answer { () throws(Failure) in
      let descriptor = try locks.descriptor(
        node: id, owner: info.lock_owner, file: info.fh, try files.requireFile(info.fh))
      locks.lock(request, waits: waits) {
        var lock = wanted
        return descriptor.use { fd in unsafe hwfs_setlk(fd, &lock) }
      }
    }
  }

  /// flock(2)'s locks belong to the open file, so they are the host's as they are.
  func lockFile(_ request: Request, _ file: UInt64, _ operation: Int32) {
    request.answer { () throws(Failure) in
      let descriptor = try files.requireFile(file)
      locks.lock(request, waits: operation & LOCK_NB == 0) {
        descriptor.use { fd in hwfs_flock(fd, operation | LOCK_NB) }
      }
    }
  }
}
