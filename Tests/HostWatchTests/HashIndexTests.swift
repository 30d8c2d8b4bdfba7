import Testing

@testable import HostWatch

@Suite struct HashIndexTests {
  /// Insertions, removals and lookups in the midst of several growths, compared with
  /// a plain dictionary; many hashes are equal.
  @Test(arguments: [1 as UInt64, 2, 3]) func agreesWithADictionary(seed: UInt64) {
    var index = HashIndex()
    var truth: [UInt32: UInt32] = [:]
    var state = seed
    func next(_ bound: UInt64) -> UInt64 {
      state = fold(state &+ 0x9E37_79B9_7F4A_7C15)
      return state % bound
    }
    func hash(_ record: UInt32) -> UInt32 {
      UInt32(truncatingIfNeeded: fold(UInt64(record / 3) ^ seed) >> 20)
    }
    for step in 0..<30_000 {
      let record = UInt32(next(20_000) + 1)
      // It grows first, shrinks in between, and grows again.
      let isRemoval = next(100) < (step / 10_000 == 1 ? 70 : 20)
      if isRemoval {
        index.remove(hash(record), record)
        truth[record] = nil
      } else if truth[record] == nil {
        index.insert(hash(record), record)
        truth[record] = hash(record)
      }
      let other = UInt32(next(20_000) + 1)
      let found = index.find(hash(other)) { $0 == other }
      #expect(found == (truth[other] == nil ? 0 : other))
      #expect(index.count == truth.count)
      if step % 5_000 == 17 {
        var all: [UInt32] = []
        var position = 0
        while index.visit(from: &position, atMost: 100, { all.append($0) }) {}
        #expect(all.sorted() == truth.keys.sorted())
      }
    }
  }

  @Test func anEmptyOneHasNothing() {
    var index = HashIndex()
    index.remove(1, 1)
    #expect(index.find(1) { _ in true } == 0)
    index.insert(0, 1)
    index.remove(0, 1)
    #expect(index.find(0) { _ in true } == 0)
    index.visit { _ in Issue.record("it is empty") }
  }
}
