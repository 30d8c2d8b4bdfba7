import CFuse
import CHostWatchFS
import Glibc

/// A request of the kernel that has not been answered. Each is answered once.
@safe struct Request: @unchecked Sendable {
  // libfuse's request; any thread may answer it, one does.
  private let raw: OpaquePointer

  @unsafe init(_ raw: OpaquePointer) { unsafe self.raw = raw }

  /// The thread that asks, in the server's pid namespace; 0 if it is in another.
  var thread: pid_t { unsafe fuse_req_ctx(raw).pointee.pid }
  var uid: uid_t { unsafe fuse_req_ctx(raw).pointee.uid }
  var gid: gid_t { unsafe fuse_req_ctx(raw).pointee.gid }
  var umask: mode_t { unsafe fuse_req_ctx(raw).pointee.umask }
  var isInterrupted: Bool { unsafe fuse_req_interrupted(raw) != 0 }

  /// The caller's supplementary groups.
  func groups() throws(Failure) -> [gid_t] {
    var groups = [gid_t](repeating: 0, count: 32)
    while true {
      let size = Int32(groups.count)
      let count = unsafe groups.withUnsafeMutableBufferPointer {
        // As many as the buffer holds; how many there are is returned.
        unsafe fuse_req_getgroups(raw, size, $0.baseAddress!)
      }
      // A process that has ended, or in another pid namespace, shows none.
      guard count >= 0 else { return [] }
      if Int(count) <= groups.count { return Array(groups.prefix(Int(count))) }
      groups = [gid_t](repeating: 0, count: Int(count))
    }
  }

  // Each returns false when the kernel did not take the answer: the client was
  // interrupted, or the mount is gone.

  @discardableResult func fail(_ code: Int32) -> Bool { unsafe fuse_reply_err(raw, code) == 0 }
  @discardableResult func done() -> Bool { fail(0) }
  func none() { unsafe fuse_reply_none(raw) }

  func reply(_ entry: fuse_entry_param) -> Bool {
    unsafe withUnsafePointer(to: entry) { unsafe fuse_reply_entry(raw, $0) == 0 }
  }

  func reply(_ entry: fuse_entry_param, _ file: OpenReply) -> Bool {
    var info = file.info
    return unsafe withUnsafePointer(to: entry) {
      unsafe fuse_reply_create(raw, $0, &info) == 0
    }
  }

  func reply(_ file: OpenReply) -> Bool {
    var info = file.info
    return unsafe fuse_reply_open(raw, &info) == 0
  }

  @discardableResult func reply(_ attributes: stat, timeout: Double) -> Bool {
    unsafe withUnsafePointer(to: attributes) { unsafe fuse_reply_attr(raw, $0, timeout) == 0 }
  }

  func reply(written count: Int) { _ = unsafe fuse_reply_write(raw, count) }
  func reply(offset: off_t) { _ = unsafe fuse_reply_lseek(raw, offset) }
  func reply(size: Int) { _ = unsafe fuse_reply_xattr(raw, size) }
  func reply(_ lock: flock) {
    unsafe withUnsafePointer(to: lock) { _ = unsafe fuse_reply_lock(raw, $0) }
  }
  func reply(_ status: statvfs) {
    unsafe withUnsafePointer(to: status) { _ = unsafe fuse_reply_statfs(raw, $0) }
  }
  /// NUL-terminated.
  func reply(link: [CChar]) {
    unsafe link.withUnsafeBufferPointer {
      // It holds the NUL at least.
      _ = unsafe fuse_reply_readlink(raw, $0.baseAddress!)
    }
  }
  @discardableResult func reply(_ bytes: ArraySlice<CChar>) -> Bool {
    unsafe bytes.withUnsafeBufferPointer {
      unsafe fuse_reply_buf(raw, $0.baseAddress, $0.count) == 0
    }
  }
  /// Up to `size` bytes of a file, spliced where that works.
  func reply(from descriptor: Descriptor, offset: off_t, size: Int) {
    var vector = fuse_bufvec()
    vector.count = 1
    unsafe vector.buf.size = size
    unsafe vector.buf.flags = fuse_buf_flags(
      FUSE_BUF_IS_FD.rawValue | FUSE_BUF_FD_SEEK.rawValue)
    unsafe vector.buf.pos = offset
    descriptor.use {
      unsafe vector.buf.fd = $0
      _ = unsafe fuse_reply_data(raw, &vector, fuse_buf_copy_flags(0))
    }
  }

  /// Adds an entry to `buffer` from `start` on: the bytes it needs, which are
  /// more than there are if it does not fit.
  func add(
    _ name: UnsafePointer<CChar>, _ entry: fuse_entry_param, next: off_t, plus: Bool,
    to buffer: inout [CChar], at start: Int
  ) -> Int {
    unsafe buffer.withUnsafeMutableBufferPointer { buffer in
      let room = buffer.count - start
      // `start` is within the buffer.
      let place = unsafe buffer.baseAddress! + start
      if plus {
        return unsafe withUnsafePointer(to: entry) {
          unsafe fuse_add_direntry_plus(raw, place, room, name, $0, next)
        }
      }
      return unsafe withUnsafePointer(to: entry.attr) {
        unsafe fuse_add_direntry(raw, place, room, name, $0, next)
      }
    }
  }

  /// Answers with the errno that `body` throws, if it throws.
  func answer(_ body: () throws(Failure) -> Void) {
    do throws(Failure) { try body() } catch { fail(error.code) }
  }
}

/// What an open is answered with.
struct OpenReply {
  var info: fuse_file_info

  init(_ info: fuse_file_info) { self.info = info }

  var flags: Int32 { info.flags }
  var handle: UInt64 {
    get { info.fh }
    set { info.fh = newValue }
  }
}
