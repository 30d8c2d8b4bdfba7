import CFanotify

/// Turns users' and groups' names into ids. Tests put their own in its place.
struct Accounts: Sendable {
  var user: @Sendable (String) -> UInt32?
  var group: @Sendable (String) -> UInt32?

  /// The host's: what getpwnam(3) and getgrnam(3) know, or digits.
  static let host = Accounts(user: userID, group: groupID)

  /// (uid_t)-1 and (gid_t)-1 mean "nobody in particular" to the kernel.
  private static func numericID(_ text: String) -> UInt32? {
    guard text.utf8.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }), let id = UInt32(text),
      id != UInt32.max
    else { return nil }
    return id
  }

  private static func userID(_ name: String) -> UInt32? {
    if let id = numericID(name) { return id }
    return unsafe withGrowingBuffer { buffer, size in
      var entry = unsafe passwd()
      var found: UnsafeMutablePointer<passwd>?
      // The entry's strings live in `buffer`; only the number leaves.
      let result = unsafe getpwnam_r(name, &entry, buffer, size, &found)
      return (result, unsafe found == nil ? nil : entry.pw_uid)
    }
  }

  private static func groupID(_ name: String) -> UInt32? {
    if let id = numericID(name) { return id }
    return unsafe withGrowingBuffer { buffer, size in
      var entry = unsafe CFanotify.group()
      var found: UnsafeMutablePointer<CFanotify.group>?
      let result = unsafe getgrnam_r(name, &entry, buffer, size, &found)
      return (result, unsafe found == nil ? nil : entry.gr_gid)
    }
  }

  /// A group with many members needs a large buffer: ERANGE says so.
  private static func withGrowingBuffer(
    _ look: (UnsafeMutablePointer<CChar>, Int) -> (result: Int32, id: UInt32?)
  ) -> UInt32? {
    var size = 4096
    while size <= 1 << 20 {
      let buffer = UnsafeMutablePointer<CChar>.allocate(capacity: size)
      let answer = unsafe look(buffer, size)
      unsafe buffer.deallocate()
      if answer.result != ERANGE { return answer.result == 0 ? answer.id : nil }
      size *= 4
    }
    return nil
  }
}
