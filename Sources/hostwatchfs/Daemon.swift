import CHostWatch
import Glibc
import HostWatch

/// The session with hostwatchd. Any thread may call.
@safe final class Daemon: @unchecked Sendable {
  // CHostWatch's handle: its calls may come from any thread, and it lives as
  // long as this.
  private let handle: OpaquePointer

  /// Why there is no session.
  struct Refusal: Error {
    let code: Int32
    let text: String
  }

  /// What is registered: an open descriptor, and the ctime that the kernel was
  /// told (nil: no check whether it has changed since).
  struct Registration {
    let descriptor: Descriptor
    let node: UInt64
    let since: timespec?
  }

  /// Registers what the server holds in a session that knows none of it, with
  /// `since`; 0 or a negative errno. Called in `next`.
  typealias Reregister = @Sendable (_ since: timespec) -> Int32

  /// HOSTWATCH_RECONNECT, a macro that Swift does not import.
  private static let reconnectFlag: UInt32 = 1

  private final class Reregistration: Sendable {
    let body = Locked<Reregister?>(nil)
  }
  private let reregistration = Reregistration()

  /// With `access` each reading on the host is told as well.
  init(socket: String, root: Descriptor, access: Bool) throws(Refusal) {
    var options = unsafe hostwatch_options()
    unsafe hostwatch_options_init(&options, MemoryLayout<hostwatch_options>.size)
    unsafe options.mode = UInt32(HW_MODE_NODES)
    unsafe options.options = UInt32(HW_SUPPRESS_ECHO)
    if access { unsafe options.events = UInt64(HW_EVENTS_DEFAULT | HW_ACCESS) }
    unsafe options.flags = Self.reconnectFlag
    // The handle is closed in deinit, before this goes.
    unsafe options.argument = unsafe Unmanaged.passUnretained(reregistration).toOpaque()
    unsafe options.reregister = { _, since, argument in
      // The library passes what it was given.
      let this = unsafe Unmanaged<Reregistration>.fromOpaque(argument!).takeUnretainedValue()
      let since = unsafe since!.pointee
      return this.body.withLock { $0 }?(since) ?? 0
    }
    var opened: OpaquePointer?
    let result = root.use { root in
      unsafe socket.withCString { path in
        unsafe options.root_fd = root
        unsafe options.socket_path = path
        return unsafe hostwatch_open(&options, &opened)
      }
    }
    guard result == 0, let opened = unsafe opened else {
      throw Refusal(code: -result, text: Self.errorText)
    }
    unsafe handle = opened
  }

  deinit { unsafe hostwatch_close(handle) }

  /// Before the first call of `next`.
  func setReregister(_ body: @escaping Reregister) { reregistration.body.withLock { $0 = body } }

  static var errorText: String { unsafe String(cString: hostwatch_error_text()) }

  /// Registers and waits: 0 or a negative errno for each.
  func register(_ nodes: [Registration]) -> [Int32] {
    guard !nodes.isEmpty else { return [] }
    var statuses = [Int32](repeating: -ECONNRESET, count: nodes.count)
    _ = unsafe statuses.withUnsafeMutableBufferPointer { statuses in
      unsafe send(nodes) { entries, descriptors in
        // All three have nodes.count elements.
        unsafe hostwatch_register_many(
          handle, entries, descriptors, nodes.count, statuses.baseAddress!)
      }
    }
    return statuses
  }

  /// Registers without waiting: false if the connection is lost. A refusal
  /// comes as HOSTWATCH_REGISTER_FAILED.
  func registerLater(_ nodes: [Registration]) -> Bool {
    guard !nodes.isEmpty else { return true }
    return unsafe send(nodes) { entries, descriptors in
      unsafe hostwatch_register_send(handle, entries, descriptors, nodes.count)
    } == 0
  }

  private func send(
    _ nodes: [Registration],
    _ body: (UnsafePointer<hw_register_entry>, UnsafePointer<Int32>) -> Int32
  ) -> Int32 {
    let entries = nodes.map {
      hw_register_entry(
        nodeid: $0.node, generation: View.generation, interest: 0,
        since_sec: Int64($0.since?.tv_sec ?? 0), since_nsec: UInt32($0.since?.tv_nsec ?? 0),
        reserved: 0)
    }
    return Descriptor.use(nodes.map(\.descriptor)) { descriptors in
      unsafe entries.withUnsafeBufferPointer { entries in
        unsafe descriptors.withUnsafeBufferPointer { descriptors in
          // Neither is empty.
          unsafe body(entries.baseAddress!, descriptors.baseAddress!)
        }
      }
    }
  }

  func forget(_ nodes: [UInt64]) {
    guard !nodes.isEmpty else { return }
    let nodes = nodes.map { hw_node(nodeid: $0, generation: View.generation) }
    unsafe nodes.withUnsafeBufferPointer {
      // It is not empty. If the connection is lost, nothing is registered.
      _ = unsafe hostwatch_forget(handle, $0.baseAddress!, $0.count)
    }
  }

  /// Waits until everything before it has been told; a negative errno if the
  /// connection is lost.
  func sync() -> Int32 { unsafe hostwatch_sync(handle) }

  /// The next event: 1, 0 if none came in time, or a negative errno.
  func next(_ event: inout hostwatch_event, timeoutMilliseconds: Int32) -> Int32 {
    unsafe hostwatch_next(handle, &event, timeoutMilliseconds)
  }

  /// Readable when `next` has something to do; a negative errno without one.
  var pollDescriptor: Int32 { unsafe hostwatch_fd(handle) }

  /// Lets `next` try again after it has given up.
  func reconnect() -> Int32 { unsafe hostwatch_reconnect(handle) }

  /// Wakes every thread that waits in a call, for good.
  func shutDown() { unsafe hostwatch_shutdown(handle) }
}
