import CFanotify
import TestSupport
import Testing

@testable import HostWatch

@Suite struct NodeTableTests {
  private func longHandle(_ number: UInt32) -> FileHandle {
    var raw = hw_file_handle()
    raw.bytes = 64
    raw.type = 0xf8
    unsafe withUnsafeMutableBytes(of: &raw.data) {
      unsafe $0.storeBytes(of: number, toByteOffset: 56, as: UInt32.self)
    }
    return FileHandle(raw)
  }

  @Test func oneLookupFindsEverySession() {
    var table = NodeTable(seed: 3)
    let handle = KernelSimulator.handle(9)
    for session in 0..<5 {
      _ = table.insert(
        handle, id: NodeID(nodeid: UInt64(100 + session), generation: 1), session: UInt32(session),
        interest: .modify)
    }
    var sessions: Set<UInt32> = []
    var index = handle.withView { table.firstRegistration(of: $0) }
    while index != 0 {
      let entry = table.registration(index)
      sessions.insert(entry.session)
      #expect(entry.id.value.nodeid == UInt64(100 + entry.session))
      index = entry.next
    }
    #expect(sessions == [0, 1, 2, 3, 4])
    #expect(table.count == 1)
  }

  /// Random insertions and removals against a dictionary, with handles of
  /// both kinds of storage.
  @Test func itHoldsWhatADictionaryWould() {
    var generator = SeededGenerator(state: 5)
    var table = NodeTable(seed: 17)
    var identities = IdentityIndex(seed: 17)
    var truth: [FileHandle: (index: UInt32, id: NodeID)] = [:]
    for step in 0..<30_000 {
      let number = UInt32.random(in: 1...2000, using: &generator)
      let handle = number % 3 == 0 ? longHandle(number) : KernelSimulator.handle(number)
      if let known = truth[handle] {
        identities.remove(known.id, known.index)
        table.remove(known.index)
        truth[handle] = nil
        #expect(handle.withView { table.firstRegistration(of: $0) } == 0)
        #expect(identities.find(known.id, in: table) == 0)
      } else {
        let id = NodeID(nodeid: UInt64(number), generation: UInt64(step))
        let index = table.insert(handle, id: id, session: 1, interest: .allEvents)
        identities.insert(id, index)
        truth[handle] = (index, id)
      }
    }
    #expect(table.count == truth.count)
    for (handle, known) in truth {
      #expect(handle.withView { table.registration(of: $0, session: 1) } == known.index)
      #expect(identities.find(known.id, in: table) == known.index)
      #expect(table.handle(of: known.index) == handle)
    }
  }

  /// The same with several sessions on few objects, so that the registration beside an
  /// object goes before the others, and its place is taken again.
  @Test func itHoldsWhoeverComesAndGoes() {
    var generator = SeededGenerator(state: 11)
    var table = NodeTable(seed: 23)
    var truth: [UInt32: [UInt32: (index: UInt32, id: NodeID)]] = [:]
    for step in 0..<30_000 {
      let number = UInt32.random(in: 1...200, using: &generator)
      let session = UInt32.random(in: 0..<5, using: &generator)
      let handle = number % 3 == 0 ? longHandle(number) : KernelSimulator.handle(number)
      if let known = truth[number]?[session] {
        table.remove(known.index)
        truth[number]?[session] = nil
        #expect(table.registration(known.index).session == NodeTable.noSession)
      } else {
        let id = NodeID(nodeid: UInt64(number), generation: UInt64(step))
        let index = table.insert(handle, id: id, session: session, interest: .modify)
        truth[number, default: [:]][session] = (index, id)
        table.setInterest(index, .allEvents)
      }
      let known = truth[number] ?? [:]
      var found: [UInt32: UInt32] = [:]
      var index = handle.withView { table.firstRegistration(of: $0) }
      while index != 0 {
        let entry = table.registration(index)
        #expect(found.updateValue(index, forKey: entry.session) == nil)
        #expect(entry.id.value == known[entry.session]?.id)
        #expect(entry.interest == UInt32(truncatingIfNeeded: EventMask.allEvents.rawValue))
        #expect(table.handle(of: index) == handle)
        index = entry.next
      }
      #expect(found == known.mapValues(\.index))
    }
    #expect(table.count == truth.values.filter { !$0.isEmpty }.count)
  }

  @Test func whatIsRemovedIsNobodys() {
    var table = NodeTable(seed: 1)
    let index = table.insert(
      KernelSimulator.handle(4), id: NodeID(nodeid: 4, generation: 0), session: 2,
      interest: .modify)
    table.remove(index)
    #expect(table.registration(index).session == NodeTable.noSession)
    #expect(table.count == 0)
  }

  @Test func aDeadRegistrationStaysDeadWhateverItsInterest() {
    var table = NodeTable(seed: 1)
    let index = table.insert(
      KernelSimulator.handle(4), id: NodeID(nodeid: 4, generation: 0), session: 2,
      interest: .modify)
    table.markDead(index)
    table.setInterest(index, .allEvents)
    #expect(table.registration(index).isDead)
  }

  @Test func anObjectIsNotDeadUnderAnotherIdentity() {
    var table = NodeTable(seed: 1)
    let index = table.insert(
      KernelSimulator.handle(4), id: NodeID(nodeid: 4, generation: 0), session: 2,
      interest: .modify)
    table.markDead(index)
    table.setID(index, NodeID(nodeid: 5, generation: 0))
    #expect(!table.registration(index).isDead)
    #expect(table.registration(index).interest == UInt32(EventMask.modify.rawValue))
  }
}

@Suite struct InodeLayoutTests {
  private func handle(type: Int32, _ bytes: [UInt8]) -> FileHandle {
    var raw = hw_file_handle()
    raw.bytes = UInt32(bytes.count)
    raw.type = type
    unsafe withUnsafeMutableBytes(of: &raw.data) { unsafe $0.copyBytes(from: bytes) }
    return FileHandle(raw)
  }

  private func identity(_ layout: InodeLayout, _ type: Int32, _ bytes: [UInt8]) -> NodeID? {
    handle(type: type, bytes).withView { layout.identity(in: $0) }
  }

  @Test func layoutsOfTheFilesystems() {
    let bytes = (1...20).map { UInt8($0) }
    #expect(
      identity(.ext4, 1, Array(bytes.prefix(8)))
        == NodeID(nodeid: 0x0403_0201, generation: 0x0807_0605))
    #expect(
      identity(.tmpfs, 1, Array(bytes.prefix(12)))
        == NodeID(nodeid: 0x0c0b_0a09_0807_0605, generation: 0x0403_0201))
    #expect(
      identity(.xfs, 0x81, Array(bytes.prefix(12)))
        == NodeID(nodeid: 0x0807_0605_0403_0201, generation: 0x0c0b_0a09))
    #expect(
      identity(.btrfs, 0x4d, bytes)
        == NodeID(nodeid: 0x0807_0605_0403_0201, generation: 0x1413_1211))
  }

  @Test func aHandleOfAnotherKindIsNoIdentity() {
    #expect(identity(.tmpfs, 1, [1, 0, 0, 0] + [UInt8](repeating: 0, count: 8)) == nil)
    #expect(identity(.ext4, 0x81, [UInt8](repeating: 1, count: 12)) == nil)
    #expect(identity(.xfs, 1, [UInt8](repeating: 1, count: 8)) == nil)
    #expect(identity(.btrfs, 0x4d, [UInt8](repeating: 1, count: 12)) == nil)
    #expect(identity(.overlay, 0xf8, [UInt8](repeating: 1, count: 32)) == nil)
  }
}

@Suite struct MountTableTests {
  @Test func aLineIsTakenApart() {
    let text = """
      36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
      37 35 0:45 / /a\\040b\\134c rw - tmpfs none rw
      nonsense
      """
    let entries = MountTable.parse(Array(text.utf8))
    #expect(entries.count == 2)
    #expect(entries[0].id == 36 && entries[0].root == Array("/mnt1".utf8))
    #expect(MountTable.text(entries[0].device) == "98:0")
    #expect(entries[1].mountPoint == Array("/a b\\c".utf8))
  }
}
