import CHostWatch
import Glibc

/// The seam at which `-o events=` plugs in.
///
/// `Follower` is the one thread that takes what the daemon says. It calls an
/// Applier for each record, in order, one at a time, and never from a FUSE
/// handler. What an Applier may rely on:
///
/// - Calls come from that thread alone, so its own state needs no lock against
///   itself. Handlers run meanwhile, on other threads.
/// - No lock of the server is held during a call: it may notify the kernel, and
///   make system calls on the mount, which wait for handlers. A handler never
///   waits for this thread, nor for an Applier; that is what makes it safe.
/// - The view says what the kernel was told. It locks itself; nothing read from
///   it stays true unless the node is held (`View.hold`).
/// - A record may name nodes that the view has no more (forgotten meanwhile)
///   and names that it never had.
/// - Between `outOfStep` and `inStep` the follower has set the view out of step
///   and expired everything cached. Records still come then: those that make up
///   for the gap (RECHECK, DELETE_SELF) and new ones.
///
/// An Applier that raises events by performing a change again on the mount also
/// is the `Interceptor` that answers the requests which come of that. Whatever
/// it cannot perform it hands to `Invalidator.apply`, which is always right.
protocol Applier: AnyObject, Sendable {
  /// Before the first record, once the mount serves requests.
  func start()
  /// Makes the kernel agree with a change that has happened on the host.
  func apply(_ change: Change)
  /// From here on something may be missing.
  func outOfStep()
  /// What was missing has been told.
  func inStep()
  /// Called when no record waits: work that is due. Returns after how many
  /// milliseconds it wants to be called again if no record comes, -1 for never.
  func settle() -> Int32
  /// Waits until everything that was given to `apply` is done. From any thread but
  /// the follower's and handlers'.
  func finishApplying()
  /// After the last record; the mount may be gone.
  func stop()
}

extension Applier {
  func start() {}
  func outOfStep() {}
  func inStep() {}
  func settle() -> Int32 { -1 }
  func finishApplying() {}
  func stop() {}
}

/// A record of the daemon, copied. Nodeids are 0 where the session knows none,
/// names nil where there is none.
struct Change: Sendable {
  var sequence: UInt64 = 0
  /// HW_CREATE …; HW_ISDIR says that the object is a directory.
  var mask: UInt64 = 0
  /// HW_RECHECK …
  var flags: UInt32 = 0
  var directory: UInt64 = 0
  var node: UInt64 = 0
  var newDirectory: UInt64 = 0
  var name: Name?
  var newName: Name?
  var origin: UInt64 = 0

  func has(_ bits: some BinaryInteger) -> Bool { mask & UInt64(bits) != 0 }
  func hasFlag(_ bit: some BinaryInteger) -> Bool { flags & UInt32(bit) != 0 }
  var isDirectory: Bool { has(HW_ISDIR) }
}

extension Change {
  init(_ event: hostwatch_event) {
    sequence = unsafe event.sequence
    mask = unsafe event.mask
    flags = unsafe event.flags
    directory = unsafe event.dir.nodeid
    node = unsafe event.node.nodeid
    newDirectory = unsafe event.new_dir.nodeid
    origin = unsafe event.origin
    // A name is valid until the next call of hostwatch_next().
    if unsafe event.name_size > 0 {
      name = unsafe Name(event.name, count: Int(event.name_size))
    }
    if unsafe event.new_name_size > 0 {
      newName = unsafe Name(event.new_name, count: Int(event.new_name_size))
    }
  }
}

/// Sees requests before the server does, on the handler's thread. True means
/// that it has answered the request. It must neither notify the kernel nor wait
/// for the follower's thread.
protocol Interceptor: AnyObject, Sendable {
  func lookup(_ request: Request, _ entry: View.Entry) -> Bool
  func attributes(_ request: Request, of node: UInt64) -> Bool
  func setAttributes(_ request: Request, of node: UInt64) -> Bool
  /// MKNOD, MKDIR, SYMLINK and LINK; `source` is LINK's node.
  func create(_ request: Request, _ entry: View.Entry, source: UInt64?) -> Bool
  /// UNLINK and RMDIR.
  func remove(_ request: Request, _ entry: View.Entry, isDirectory: Bool) -> Bool
  func rename(_ request: Request, _ old: View.Entry, to new: View.Entry, flags: UInt32) -> Bool
  func open(_ request: Request, _ node: UInt64, _ file: inout OpenReply) -> Bool
  /// A client's own operation on names was done and is about to be answered:
  /// what its watchers will be told. 0 stands for absent.
  func clientChanged(_ entry: View.Entry, to node: UInt64)
  /// A client's own operation has removed this directory.
  func clientRemoved(_ directory: UInt64)
  /// It has removed one of this file's names, others are left, and it is about to be answered:
  /// by `then`, which is called here or later on another thread.
  func clientUnlinked(_ node: UInt64, then: @escaping @Sendable () -> Void)
}

extension Interceptor {
  func lookup(_ request: Request, _ entry: View.Entry) -> Bool { false }
  func attributes(_ request: Request, of node: UInt64) -> Bool { false }
  func setAttributes(_ request: Request, of node: UInt64) -> Bool { false }
  func create(_ request: Request, _ entry: View.Entry, source: UInt64?) -> Bool { false }
  func remove(_ request: Request, _ entry: View.Entry, isDirectory: Bool) -> Bool { false }
  func rename(_ request: Request, _ old: View.Entry, to new: View.Entry, flags: UInt32) -> Bool {
    false
  }
  func open(_ request: Request, _ node: UInt64, _ file: inout OpenReply) -> Bool { false }
  func clientChanged(_ entry: View.Entry, to node: UInt64) {}
  func clientRemoved(_ directory: UInt64) {}
  func clientUnlinked(_ node: UInt64, then: @escaping @Sendable () -> Void) { then() }
}
