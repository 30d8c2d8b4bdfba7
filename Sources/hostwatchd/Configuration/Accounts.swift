import CFanotify
import HostWatch

/// Turns users' and groups' names into ids: nil for one that is not known. What throws says
/// nothing of that. Tests put their own in its place.
struct Accounts: Sendable {
  var user: @Sendable (String) throws(SystemError) -> UInt32?
  var group: @Sendable (String) throws(SystemError) -> UInt32?

  /// The host's: what getpwnam(3) and getgrnam(3) know, or digits.
  static let host = Accounts(user: userID, group: groupID)

  /// (uid_t)-1 and (gid_t)-1 mean "nobody in particular" to the kernel.
  private static func numericID(_ text: String) -> UInt32? {
    guard text.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let id = UInt32(text),
      id != UInt32.max
    else { return nil }
    return id
  }

  private static func userID(_ name: String) throws(SystemError) -> UInt32? {
    if let id = numericID(name) { return id }
    return try unsafe withGrowingBuffer("getpwnam_r") { buffer, size in
      var entry = unsafe passwd()
      var found: UnsafeMutablePointer<passwd>?
      // The entry's strings live in `buffer`; only the number leaves.
      let result = unsafe getpwnam_r(name, &entry, buffer, size, &found)
      return (result, unsafe found == nil ? nil : entry.pw_uid)
    }
  }

  private static func groupID(_ name: String) throws(SystemError) -> UInt32? {
    if let id = numericID(name) { return id }
    return try unsafe withGrowingBuffer("getgrnam_r") { buffer, size in
      var entry = unsafe CFanotify.group()
      var found: UnsafeMutablePointer<CFanotify.group>?
      let result = unsafe getgrnam_r(name, &entry, buffer, size, &found)
      return (result, unsafe found == nil ? nil : entry.gr_gid)
    }
  }

  /// A group with many members needs a large buffer: ERANGE says so.
  private static func withGrowingBuffer(
    _ call: String, _ look: (UnsafeMutablePointer<CChar>, Int) -> (result: Int32, id: UInt32?)
  ) throws(SystemError) -> UInt32? {
    var size = 4096
    while size <= 1 << 20 {
      let buffer = UnsafeMutablePointer<CChar>.allocate(capacity: size)
      let answer = unsafe look(buffer, size)
      unsafe buffer.deallocate()
      guard answer.result == ERANGE else {
        // Of a name that is not known the C library says nothing, or one of several errnos.
        let error = SystemError(call, answer.result)
        if error.isPassing { throw error }
        return answer.result == 0 ? answer.id : nil
      }
      size *= 4
    }
    throw SystemError(call, ERANGE)
  }
}
