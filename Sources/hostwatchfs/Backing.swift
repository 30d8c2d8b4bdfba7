import CHostWatchFS
import Glibc
import HostWatch

/// An open descriptor; closed with the last reference to it.
final class Descriptor: Sendable {
  private let number: Int32

  /// `number` is the caller's to give away.
  init(_ number: Int32) { self.number = number }

  /// What a call returned, or its errno thrown.
  convenience init(checking result: Int32) throws(Failure) {
    self.init(try check(result))
  }

  deinit { close(number) }

  /// Calls `body` with the number, open for the time of the call. It is not to
  /// be had otherwise: a number outlives the last use of its owner by nothing.
  func use<Result, Failure: Error>(_ body: (Int32) throws(Failure) -> Result) throws(Failure)
    -> Result
  {
    defer { withExtendedLifetime(self) {} }
    return try body(number)
  }

  /// The same for several.
  static func use<Result>(_ descriptors: [Descriptor], _ body: ([Int32]) -> Result) -> Result {
    defer { withExtendedLifetime(descriptors) {} }
    return body(descriptors.map(\.number))
  }

  func status() throws(Failure) -> stat {
    var status = stat()
    try check(use { unsafe hwfs_stat($0, &status) })
    return status
  }
}

/// An object below SOURCE, and how it is opened again.
///
/// It is known by its file handle and no descriptor of it is kept: a million
/// nodes need a million handles. Where the kernel does not let a handle be
/// opened (no CAP_DAC_READ_SEARCH, a filesystem without handles, another
/// filesystem mounted below SOURCE) an O_PATH descriptor stays open for as long
/// as the node lives. That keeps a removed object from going away: its
/// DELETE_SELF is late.
struct BackingObject: Sendable {
  /// Two objects are the same if these are equal. A handle is unique on its
  /// filesystem for ever, an inode number only while the object is kept open.
  struct Key: Hashable, Sendable {
    let device: UInt64
    let type: Int32
    let bytes: [UInt8]
  }

  let key: Key
  let kept: Descriptor?
}

/// The directory that is exported.
///
/// In come nodes, out go descriptors. Those of directories are kept for a while
/// (`capacity`); those of other objects are not, since an open one delays the
/// end of a removed object.
final class Backing: Sendable {
  /// How many descriptors of directories are kept, about.
  static let capacity = 512

  let root: BackingObject
  let rootDescriptor: Descriptor
  /// Whether a handle can be opened; if not, why.
  let handleFault: Failure?

  private let device: UInt64
  private struct Recent: Sendable {
    var young: [UInt64: Descriptor] = [:]
    var old: [UInt64: Descriptor] = [:]
  }
  private let recent = Locked(Recent())

  init(path: String) throws(Failure) {
    let flags = O_RDONLY | O_DIRECTORY
    let result = unsafe path.withCString { unsafe hwfs_open(AT_FDCWD, $0, flags, 0) }
    let directory = try Descriptor(checking: result)
    rootDescriptor = directory
    let status = try directory.status()
    device = UInt64(status.st_dev)
    var fault: Failure?
    var raw = hwfs_handle()
    do throws(Failure) {
      try check(directory.use { fd in unsafe hwfs_handle_of(fd, &raw) })
      _ = try Descriptor(
        checking: directory.use { fd in unsafe hwfs_open_handle(fd, &raw, Int32(hwfs_o_path)) })
    } catch {
      fault = error
    }
    handleFault = fault
    let key =
      fault == nil ? Self.key(raw, device) : Self.key(inode: UInt64(status.st_ino), device)
    root = BackingObject(key: key, kept: directory)
  }

  /// What an O_PATH descriptor, with its status, is.
  func object(_ descriptor: Descriptor, _ status: stat) throws(Failure) -> BackingObject {
    let device = UInt64(status.st_dev)
    guard device == self.device, handleFault == nil else {
      return BackingObject(
        key: Self.key(inode: UInt64(status.st_ino), device), kept: descriptor)
    }
    var raw = hwfs_handle()
    try check(descriptor.use { fd in unsafe hwfs_handle_of(fd, &raw) })
    return BackingObject(key: Self.key(raw, device), kept: nil)
  }

  /// An O_PATH descriptor of a node's object. ESTALE when it is gone.
  func open(_ node: View.Node) throws(Failure) -> Descriptor {
    guard let object = node.object else { throw Failure(ESTALE) }
    if let kept = object.kept { return kept }
    if node.isDirectory, let found = find(node.id) { return found }
    var raw = hwfs_handle()
    raw.type = object.key.type
    raw.bytes = UInt32(object.key.bytes.count)
    unsafe withUnsafeMutableBytes(of: &raw.data) {
      // A key has at most as many bytes as a handle has room for.
      unsafe $0.copyBytes(from: object.key.bytes)
    }
    let descriptor = try Descriptor(
      checking: rootDescriptor.use { fd in
        unsafe hwfs_open_handle(
          fd, &raw, Int32(hwfs_o_path) | O_NOFOLLOW)
      })
    if node.isDirectory { keep(descriptor, for: node.id) }
    return descriptor
  }

  /// An O_PATH descriptor of an entry, the link itself if it is one.
  func open(_ name: Name, in directory: Descriptor) throws(Failure) -> Descriptor {
    let flags = Int32(hwfs_o_path) | O_NOFOLLOW
    return try Descriptor(
      checking: unsafe name.withCString { name in
        directory.use { fd in unsafe hwfs_open(fd, name, flags, 0) }
      })
  }

  /// Keeps a directory's descriptor. One that was removed before this is not kept: who
  /// removed it has called `drop` already, and an open one would not end.
  func keep(_ descriptor: Descriptor, for id: UInt64) {
    // What falls out is closed after the lock is given back.
    let dropped = recent.withLock { recent -> [UInt64: Descriptor] in
      recent.young[id] = descriptor
      guard recent.young.count > Self.capacity / 2 else { return [:] }
      let dropped = recent.old
      recent.old = recent.young
      recent.young = [:]
      return dropped
    }
    withExtendedLifetime(dropped) {}
    // Looked at when it is in there: who removes it from now on finds it.
    if (try? descriptor.status().st_nlink) ?? 0 == 0 { drop(id) }
  }

  /// Closes the descriptor of a directory that was removed.
  func drop(_ id: UInt64) {
    let dropped = recent.withLock {
      ($0.young.removeValue(forKey: id), $0.old.removeValue(forKey: id))
    }
    withExtendedLifetime(dropped) {}
  }

  private func find(_ id: UInt64) -> Descriptor? {
    recent.withLock { recent in
      if let found = recent.young[id] { return found }
      guard let found = recent.old.removeValue(forKey: id) else { return nil }
      recent.young[id] = found
      return found
    }
  }

  private static func key(_ raw: hwfs_handle, _ device: UInt64) -> BackingObject.Key {
    let count = min(Int(raw.bytes), Int(hwfs_handle_max))
    let bytes = unsafe withUnsafeBytes(of: raw.data) { unsafe Array($0.prefix(count)) }
    return .init(device: device, type: raw.type, bytes: bytes)
  }

  private static func key(inode: UInt64, _ device: UInt64) -> BackingObject.Key {
    .init(device: device, type: -1, bytes: unsafe withUnsafeBytes(of: inode) { unsafe Array($0) })
  }
}
