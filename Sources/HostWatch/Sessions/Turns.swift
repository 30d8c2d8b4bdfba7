/// Whose requests come next when there are more than one turn of the loop takes.
///
/// In: sessions that have used up a turn and may have more to ask, and those of users who
/// have such sessions, or whose sessions together have taken as long as a turn. Out: one of
/// them at a time: the users one after the other, and of each user the session that has waited
/// longest. So what a user's requests cost others does not grow with the connections they come
/// by. Uid 0's sessions count as a user each.
struct Turns {
  /// How long a turn may take.
  static let microseconds: UInt64 = 1000

  enum User: Hashable {
    case uid(UInt32)
    case privileged(session: UInt64)
  }

  private var waiting: [User: [UInt64]] = [:]
  private var users: [User] = []
  /// What each user's sessions have taken since the last round began.
  private var taken: [User: UInt64] = [:]

  var isEmpty: Bool { users.isEmpty }

  /// Whether a session of the user has to wait, since others of theirs do or have had the time.
  func mustWait(_ user: User) -> Bool {
    waiting[user] != nil || taken[user, default: 0] >= Self.microseconds
  }

  /// Requests of the user's have been worked on for so long.
  mutating func charge(_ user: User, microseconds: UInt64) {
    // Those who are known by a session alone end, and no round may begin for long.
    if taken.count > 256 { taken.removeAll(keepingCapacity: true) }
    taken[user, default: 0] += microseconds
  }

  mutating func add(_ session: UInt64, of user: User) {
    if waiting[user] == nil { users.append(user) }
    waiting[user, default: []].append(session)
  }

  /// All who need not wait have been served since the last one.
  mutating func beginRound() { taken.removeAll(keepingCapacity: true) }

  /// The session whose turn it is; it may have ended.
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
}

extension Session {
  /// Whose turns its requests take.
  var turnTaker: Turns.User { isPrivileged ? .privileged(session: id) : .uid(peer.uid) }
}
