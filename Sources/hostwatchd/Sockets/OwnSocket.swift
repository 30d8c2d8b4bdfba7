import CFanotify
import CSystemd
import Glibc
import HostWatch

/// The listening socket of a daemon that binds it itself.
///
/// A lock beside the socket (`PATH.lock`) is held as long as this value lives.
/// Only its holder touches PATH, so that of two daemons that start at once one
/// serves and the other says so; a socket that a killed daemon left behind is
/// recognised by ECONNREFUSED and replaced.
struct OwnSocket: ~Copyable {
  let path: String
  /// Listens; whoever serves it closes it.
  let listener: Int32
  private let identity: FileIdentity
  private let lock: LockFile

  /// Binds and listens. The value has to be kept, and removed at the end.
  ///
  /// - Parameter kept: the listener of an earlier process; it is used if it
  ///   still is the one at `path`.
  static func open(_ path: String, mode: UInt32, kept: consuming OwnedDescriptor? = nil)
    throws(StartFailure) -> OwnSocket
  {
    try makeParents(of: path)
    let lock = try LockFile.take(forSocket: path)
    if let kept = kept.take(), let identity = try find(path, for: path), identity.isSocket,
      try isBound(kept, to: path)
    {
      guard unsafe chmod(path, mode) == 0 else {
        throw StartFailure(creating: path, SystemError("chmod", errno))
      }
      return OwnSocket(path: path, listener: kept.take(), identity: identity, lock: lock)
    }
    try clearStale(path)
    let listener = try bind(path, mode: mode)
    guard let identity = try find(path, for: path) else {
      throw StartFailure(.unavailable, "\(path) vanished while it was bound")
    }
    return OwnSocket(path: path, listener: listener.take(), identity: identity, lock: lock)
  }

  private static func isBound(_ listener: borrowing OwnedDescriptor, to path: String)
    throws(StartFailure) -> Bool
  {
    let result = unsafe sd_is_socket_unix(
      listener.rawValue, Int32(SOCK_SEQPACKET.rawValue), 1, path, 0)
    guard result >= 0 else {
      throw StartFailure(creating: path, SystemError("sd_is_socket_unix", -result))
    }
    return result > 0
  }

  private static func find(_ path: String, for socket: String) throws(StartFailure)
    -> FileIdentity?
  {
    do throws(SystemError) {
      return try FileIdentity.find(path)
    } catch {
      throw StartFailure(creating: socket, error)
    }
  }

  /// Takes the socket away, if the path still is the socket bound here.
  consuming func remove() {
    if FileIdentity(path: path) == identity { _ = unsafe unlink(path) }
    lock.remove()
  }

  /// Leaves the socket where it is, and gives up the lock on it.
  consuming func leave() { lock.remove() }

  private static func makeParents(of path: String) throws(StartFailure) {
    var parent = ""
    for part in path.split(separator: "/").dropLast() {
      parent += "/" + part
      let result = unsafe mkdir(parent, 0o755)
      guard result == 0 || errno == EEXIST || errno == EROFS || errno == EISDIR else {
        throw StartFailure(creating: path, SystemError("mkdir(\(parent))", errno))
      }
    }
  }

  /// Removes a socket on which nobody listens; leaves everything else alone.
  private static func clearStale(_ path: String) throws(StartFailure) {
    guard let present = try find(path, for: path) else { return }
    guard present.isSocket else {
      throw StartFailure(
        .configuration, "\(path) exists and is not a socket; remove it or choose another --socket")
    }
    let number = hw_socket(true)
    guard number >= 0 else { throw StartFailure(creating: path, SystemError("socket", -number)) }
    let probe = OwnedDescriptor(number)
    switch -(unsafe hw_connect_path(probe.rawValue, path)) {
    case 0, EAGAIN:
      throw StartFailure.alreadyServed(path, by: peer(of: probe))
    case ECONNREFUSED:
      guard unsafe unlink(path) == 0 || errno == ENOENT else {
        throw StartFailure(creating: path, SystemError("unlink(\(path))", errno))
      }
    case ENOENT: return
    case EPROTOTYPE:
      throw StartFailure(
        .configuration,
        "another program listens on \(path), and not with SOCK_SEQPACKET; choose another --socket")
    case let code: throw StartFailure(creating: path, SystemError("connect(\(path))", code))
    }
  }

  /// Who listens at the other end; a connection waiting to be accepted has
  /// the listener's credentials.
  private static func peer(of probe: borrowing OwnedDescriptor) -> Int32? {
    var peer = hw_peer()
    guard unsafe hw_peer_credentials(probe.rawValue, &peer) == 0, peer.pid > 0 else { return nil }
    return peer.pid
  }

  private static func bind(_ path: String, mode: UInt32) throws(StartFailure) -> OwnedDescriptor {
    let number = hw_socket(true)
    guard number >= 0 else { throw StartFailure(creating: path, SystemError("socket", -number)) }
    let listener = OwnedDescriptor(number)
    // bind(2) applies the umask: the mode is right from the first moment.
    let previous = umask(0o777 & ~mode)
    let result = unsafe hw_bind_path(listener.rawValue, path)
    umask(previous)
    guard result == 0 else {
      throw StartFailure(creating: path, SystemError("bind(\(path))", -result))
    }
    guard listen(listener.rawValue, SOMAXCONN) == 0 else {
      throw StartFailure(creating: path, SystemError("listen(\(path))", errno))
    }
    return listener
  }
}

/// A file whose lock says "this daemon owns the socket beside it".
struct LockFile: ~Copyable {
  private let path: String
  private let descriptor: OwnedDescriptor

  static func take(forSocket socketPath: String) throws(StartFailure) -> LockFile {
    let path = socketPath + ".lock"
    while true {
      let flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK
      let number = unsafe hw_openat(AT_FDCWD, path, flags, 0o600)
      guard number >= 0 else {
        throw StartFailure(creating: socketPath, SystemError("open(\(path))", -number))
      }
      let descriptor = OwnedDescriptor(number)
      guard flock(descriptor.rawValue, LOCK_EX | LOCK_NB) == 0 else {
        guard errno == EWOULDBLOCK else {
          throw StartFailure(creating: socketPath, SystemError("flock(\(path))", errno))
        }
        throw StartFailure.alreadyServed(socketPath, by: holder(descriptor))
      }
      do throws(SystemError) {
        // The last holder may have unlinked it between our open and our lock.
        guard try FileIdentity.find(path) == FileIdentity.find(descriptor: descriptor.rawValue)
        else { continue }
      } catch {
        throw StartFailure(creating: socketPath, error)
      }
      writePID(descriptor)
      return LockFile(path: path, descriptor: descriptor)
    }
  }

  consuming func remove() {
    _ = unsafe unlink(path)
  }

  private static func writePID(_ descriptor: borrowing OwnedDescriptor) {
    let bytes = Array("\(getpid())\n".utf8)
    _ = ftruncate(descriptor.rawValue, 0)
    // At most the array's count is read from it. Whoever cannot write it is
    // only less helpful to the next one.
    _ = unsafe bytes.withUnsafeBytes {
      unsafe pwrite(descriptor.rawValue, $0.baseAddress, $0.count, 0)
    }
  }

  private static func holder(_ descriptor: borrowing OwnedDescriptor) -> Int32? {
    var bytes = [UInt8](repeating: 0, count: 16)
    // The kernel writes at most the array's count.
    let count = unsafe bytes.withUnsafeMutableBytes {
      unsafe pread(descriptor.rawValue, $0.baseAddress, $0.count, 0)
    }
    guard count > 0 else { return nil }
    return Int32(String(decoding: bytes[..<count], as: UTF8.self).prefix { $0.isNumber })
  }
}
