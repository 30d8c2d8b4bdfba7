/// Whose requests come next when there are more than one turn of the loop takes.
///
/// In: sessions that have used up a turn and may have more to ask, and those of users who
/// have such sessions. Out: one of them at a time: the users one after the other, and of each
/// user the session that has waited longest. So what a user's requests cost others does not
/// grow with the connections they come by. Uid 0's sessions count as a user each.
struct Turns {
  private var waiting: [UInt64: [UInt64]] = [:]
  private var users: [UInt64] = []

  var isEmpty: Bool { users.isEmpty }

  /// Whether the session has to wait, since others of its user do.
  func isWaiting(userOf session: Session) -> Bool { waiting[Self.user(of: session)] != nil }

  mutating func add(_ session: Session) {
    let user = Self.user(of: session)
    if waiting[user] == nil { users.append(user) }
    waiting[user, default: []].append(session.id)
  }

  /// The id of the session whose turn it is; it may have ended.
  mutating func next() -> UInt64? {
    guard let user = users.first, let session = waiting[user]?.removeFirst() else { return nil }
    users.removeFirst()
    if waiting[user]?.isEmpty == false {
      users.append(user)
    } else {
      waiting[user] = nil
    }
    return session
  }

  private static func user(of session: Session) -> UInt64 {
    // Uids have 32 bits.
    session.isPrivileged ? session.id | 1 << 63 : UInt64(session.peer.uid)
  }
}
