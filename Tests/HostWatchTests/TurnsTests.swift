import Testing

@testable import HostWatch

@Suite struct TurnsTests {
  private let one = Turns.User.uid(1000)
  private let other = Turns.User.uid(1001)

  private func all(_ turns: inout Turns) -> [UInt64] {
    var found: [UInt64] = []
    while let session = turns.next() { found.append(session) }
    return found
  }

  @Test func usersTakeTurns() {
    var turns = Turns()
    for session: UInt64 in 1...3 { turns.add(session, of: one) }
    turns.add(4, of: other)
    turns.add(5, of: other)
    turns.add(6, of: .privileged(session: 6))
    #expect(turns.next() == 1)
    turns.add(1, of: one)  // it has more to ask
    #expect(all(&turns) == [4, 6, 2, 5, 3, 1])
    #expect(turns.isEmpty)
  }

  @Test func whoHasOthersWaitingWaits() {
    var turns = Turns()
    turns.add(1, of: one)
    #expect(turns.mustWait(one) && !turns.mustWait(other))
    #expect(turns.next() == 1)
    #expect(!turns.mustWait(one))
  }

  /// Many short requests by many sessions, none of which has more to ask.
  @Test func aUsersSessionsHaveOneTurnsTimeTogether() {
    var turns = Turns()
    turns.charge(one, microseconds: Turns.microseconds - 1)
    #expect(!turns.mustWait(one))
    turns.charge(one, microseconds: 1)
    turns.charge(.privileged(session: 7), microseconds: Turns.microseconds)
    #expect(turns.mustWait(one) && !turns.mustWait(other))
    #expect(turns.mustWait(.privileged(session: 7)) && !turns.mustWait(.privileged(session: 8)))
    turns.beginRound()
    #expect(!turns.mustWait(one) && !turns.mustWait(.privileged(session: 7)))
  }

  /// Uid 0's sessions, each known by its id, come and go.
  @Test func whatIsKeptIsBounded() {
    var turns = Turns()
    turns.charge(one, microseconds: Turns.microseconds)
    for session: UInt64 in 0..<300 { turns.charge(.privileged(session: session), microseconds: 1) }
    #expect(!turns.mustWait(one))
  }
}
