import CFuse
import CHostWatchFS
import Glibc
import HostWatch

/// libfuse's session, mounted. One in a process.
@safe final class Mount: @unchecked Sendable {
  // Freed in deinit. `loop` runs on one thread, notifications come from any.
  private let session: OpaquePointer
  private let server: Server
  let notifier: Notifier

  struct Fault: Error {
    let text: String
  }

  init(server: Server, options: [String]) throws(Fault) {
    let words = ["hostwatchfs", "-o" + options.joined(separator: ",")]
    var operations = OperationTable.make()
    let userData = unsafe Unmanaged.passUnretained(server).toOpaque()
    let created = unsafe withArguments(words) { arguments in
      unsafe fuse_session_new(
        &arguments, &operations, MemoryLayout<fuse_lowlevel_ops>.size, userData)
    }
    guard let session = unsafe created else {
      throw Fault(text: "libfuse refuses the mount options \(options.joined(separator: ","))")
    }
    unsafe self.session = session
    self.server = server
    unsafe notifier = Notifier(session)
  }

  deinit { unsafe fuse_session_destroy(session) }

  func mount(at path: String) throws(Fault) {
    // Who ends this from here on unmounts it.
    hwfs_block_ends()
    guard unsafe path.withCString({ unsafe fuse_session_mount(session, $0) }) == 0 else {
      throw Fault(text: "cannot mount at \(path)")
    }
  }

  /// Lets a signal end the loop, after `body`: requests are served meanwhile.
  func endOnSignal(_ body: Ending) throws(Failure) {
    try startThread(named: "signals") {
      hwfs_await_end()
      body.run { unsafe fuse_session_exit(self.session) }
      hwfs_wake_loop()
    }
  }

  /// Serves until the mount is gone or the session was exited.
  func loop(maxThreads: UInt32) -> Int32 {
    unsafe hwfs_session_loop(session, maxThreads, min(maxThreads, 10))
  }

  /// Nobody serves it: what waits for an answer, as the follower may, is told that it is gone. Where
  /// that needs a right that is missing it is not.
  func abort(at path: String) { unsafe path.withCString { unsafe hwfs_abort($0) } }

  func unmount() {
    unsafe fuse_session_unmount(session)
  }
}

/// What is done once, before a session ends or after it has: whoever comes second waits for it.
final class Ending: Sendable {
  private let isDone = Locked(false)
  private let body: @Sendable () -> Void

  init(_ body: @escaping @Sendable () -> Void) { self.body = body }

  /// `first` is called if this is the first.
  func run(_ first: () -> Void = {}) {
    isDone.withLock { isDone in
      guard !isDone else { return }
      body()
      first()
      isDone = true
    }
  }
}

/// Calls `body` with the words as libfuse takes them.
private func withArguments<Result>(
  _ words: [String], _ body: (inout fuse_args) -> Result
) -> Result {
  var arguments = unsafe fuse_args()
  for word in words {
    _ = unsafe word.withCString { unsafe fuse_opt_add_arg(&arguments, $0) }
  }
  defer { unsafe fuse_opt_free_args(&arguments) }
  return unsafe body(&arguments)
}
