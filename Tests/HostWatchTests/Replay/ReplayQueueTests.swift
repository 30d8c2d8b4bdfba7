import HostWatch
import Testing

@testable import HostWatchReplay

/// What the waiting records say of a name and of an object.
@Suite struct ReplayQueueTests {
  typealias Record = HostWatchClient.Record

  let directory = NodeID(nodeid: 10, generation: 0)
  let other = NodeID(nodeid: 11, generation: 0)

  func place(_ name: String) -> Place { Place(directory, Array(name.utf8)) }

  func record(_ mask: EventMask, _ name: String, node: UInt64 = 0) -> Record {
    Record(
      sequence: 0, mask: mask, directory: directory, node: id(node), name: .init(name))
  }

  func rename(_ name: String, to newName: String?, node: UInt64 = 0) -> Record {
    Record(
      sequence: 0, mask: .rename, directory: directory, node: id(node),
      newDirectory: newName == nil ? .none : directory, name: .init(name),
      newName: .init(newName ?? ""))
  }

  func id(_ node: UInt64) -> NodeID { node == 0 ? .none : NodeID(nodeid: node, generation: 0) }

  func queue(_ records: Record...) -> ReplayQueue {
    var queue = ReplayQueue()
    for record in records { queue.append(record, arrived: 0) }
    return queue
  }

  @Test func withoutRecordsANameStays() {
    #expect(queue().fate(of: place("a")) == .stays(place("a")))
    #expect(queue(record(.create, "b")).fate(of: place("a")) == .stays(place("a")))
  }

  @Test func renamesAreFollowed() {
    let queue = queue(rename("a", to: "b"), record(.create, "a"), rename("b", to: "c"))
    #expect(queue.fate(of: place("a")) == .stays(place("c")))
    #expect(queue.fate(of: place("b")) == .gone)
  }

  @Test func aRecordThatKnowsTheObjectSaysSo() {
    #expect(queue(record(.modify, "a", node: 7)).fate(of: place("a")) == .known(id(7)))
    #expect(
      queue(rename("a", to: "b"), record(.delete, "b", node: 7)).fate(of: place("a"))
        == .known(id(7)))
  }

  @Test func whatIsRemovedOrOverwrittenOrLeavesIsGone() {
    #expect(queue(record(.delete, "a")).fate(of: place("a")) == .gone)
    #expect(queue(rename("b", to: "a")).fate(of: place("a")) == .gone)
    #expect(queue(rename("a", to: nil)).fate(of: place("a")) == .gone)
    #expect(queue(record(.create, "a")).fate(of: place("a")) == .gone)
  }

  @Test func changesOfAnUnknownObjectTellNothing() {
    let queue = queue(record(.modify, "a"), rename("a", to: "b"), record(.closeWrite, "b"))
    #expect(queue.fate(of: place("a")) == .stays(place("b")))
  }

  @Test func aCircleEnds() {
    let queue = queue(rename("a", to: "b"), rename("b", to: "a"), rename("a", to: "b"))
    #expect(queue.fate(of: place("a")) == .stays(place("b")))
  }

  @Test func recordsComeOutInOrderAndAreForgotten() {
    var queue = queue(record(.create, "a"), record(.delete, "a", node: 3), record(.create, "b"))
    #expect(queue.pendingDeletions(of: id(3)) == 1)
    #expect(queue.popFirst()?.record.mask == .create)
    #expect(queue.fate(of: place("a")) == .known(id(3)))
    #expect(queue.popFirst()?.record.mask == .delete)
    #expect(queue.pendingDeletions(of: id(3)) == 0)
    #expect(!queue.isNamed(place("a")))
    #expect(queue.count == 1)
    #expect(queue.popFirst()?.record.name == .init("b"))
    #expect(queue.popFirst() == nil)
  }

  @Test func takingFromTheMiddleLeavesTheRest() {
    var queue = queue(record(.create, "a"), record(.modify, "b"), record(.create, "c"))
    #expect(queue.take(within: 1) { $0.mask == .modify } == nil)
    #expect(queue.take(within: 2) { $0.mask == .modify }?.name == .init("b"))
    #expect(queue.count == 2)
    #expect(queue.popFirst()?.record.name == .init("a"))
    #expect(queue.first?.name == .init("c"))
    #expect(queue.popFirst()?.record.name == .init("c"))
    #expect(queue.first == nil)
  }

  @Test func aLongQueueKeepsItsIndex() {
    var queue = ReplayQueue()
    for number in 0..<20_000 { queue.append(record(.create, "\(number)"), arrived: 0) }
    queue.append(rename("19999", to: "last"), arrived: 0)
    for _ in 0..<20_000 { _ = queue.popFirst() }
    #expect(queue.fate(of: place("19999")) == .stays(place("last")))
    #expect(queue.popFirst()?.record.mask == .rename)
    #expect(queue.count == 0)
  }
}
