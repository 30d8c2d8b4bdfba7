import Testing

@testable import HostWatch

@Suite struct ResyncTests {
  /// Registering and forgetting in turn while a resync cannot go on must not make its list
  /// grow without end.
  @Test func whatIsForgottenDoesNotPileUp() {
    let resync = Resync([1, 2, 3], since: .zero)
    for turn in 0..<100_000 {
      // 1 and 2 stay; the others are forgotten, and their places used again.
      resync.add(UInt32(4 + turn % 5), live: 3) { $0 <= 2 || $0 == UInt32(4 + turn % 5) }
    }
    #expect(resync.unchecked.count <= 2 * 3 + 1024)
    #expect(resync.unchecked.starts(with: [1, 2]))
    #expect(resync.unchecked.contains(8))
  }

  @Test func whatWasCheckedIsNotKept() {
    let resync = Resync(Array(1...5000), since: .zero)
    resync.add(5001, live: 5001) { _ in true }
    #expect(resync.unchecked.count == 5001)
    resync.add(5002, live: 10) { $0 > 4990 }
    #expect(Array(resync.unchecked) == Array(4991...5002))
  }
}
