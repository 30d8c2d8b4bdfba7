import TestSupport
import Testing

@testable import HostWatch

@Suite struct RecordParserTests {
  private func parse(_ bytes: [UInt8]) throws(RecordError) -> [KernelEvent] {
    var events: [KernelEvent] = []
    do throws(RecordError) {
      try unsafe RecordParser.parse(bytes.span.bytes, into: &events)
    } catch { throw error }
    return events
  }

  private var rename: [UInt8] {
    RecordBytes.record(
      .init(
        mask: 0x1000_0000, pid: 42, object: 7, directory: 2, name: "from", newDirectory: 3,
        newName: "to"))
  }

  @Test func aRenameHasBothSides() throws {
    let segment = EventSegment()
    segment.fill(with: rename)
    var events: [KernelEvent] = []
    try segment.parse(into: &events, segment: 0)
    let views = segment.view
    let event = try #require(events.first)
    #expect(events.count == 1)
    #expect(event.pid == 42 && event.events == .rename)
    #expect(
      String(decoding: views.name(event.name, event.nameSize).bytes, as: UTF8.self) == "from")
    #expect(
      String(decoding: views.name(event.newName, event.newNameSize).bytes, as: UTF8.self) == "to")
    let handles = [event.object, event.directory, event.newDirectory].map {
      views.handle($0).map { KernelSimulator.number($0) }
    }
    #expect(handles == [7, 2, 3])
  }

  @Test func anOverflowHasNoParts() throws {
    let event = try #require(try parse(RecordBytes.overflow()).first)
    #expect(event.events == .queueOverflow)
    #expect(event.object == 0 && event.directory == 0)
  }

  @Test func everyTruncationIsRefused() {
    let whole = rename
    for length in 1..<whole.count {
      #expect(throws: RecordError.self) { try parse(Array(whole.prefix(length))) }
    }
  }

  @Test func anUnknownInformationRecordIsPassedOver() throws {
    var bytes = RecordBytes.record(
      .init(
        mask: 0x2, pid: 1, object: 7, directory: 0, name: "", newDirectory: 0, newName: ""))
    bytes += [99, 0, 8, 0, 1, 2, 3, 4]
    bytes[0] += 8
    #expect(try parse(bytes).first?.object != 0)
  }

  @Test(arguments: [
    (0, UInt8(200)),  // event_len beyond the buffer
    (4, 2),  // another version
    (6, 8),  // metadata shorter than its struct
    (26, 3),  // an information record shorter than its header
    (26, 255),  // or longer than the event
    (36, 200),  // a handle longer than its record
  ])
  func aWrongLengthIsRefusedWithItsOffset(_ change: (offset: Int, value: UInt8)) {
    var bytes = RecordBytes.record(
      .init(
        mask: 0x2, pid: 1, object: 7, directory: 0, name: "", newDirectory: 0, newName: ""))
    bytes[change.offset] = change.value
    #expect(throws: RecordError.self) { try parse(bytes) }
  }

  @Test func aNameWithoutItsEndIsRefused() {
    var bytes = RecordBytes.record(
      .init(
        mask: 0x2, pid: 1, object: 0, directory: 2, name: "abc", newDirectory: 0, newName: ""))
    for index in bytes.indices.suffix(4) { bytes[index] = 0x61 }
    #expect { try parse(bytes) } throws: { error in
      (error as? RecordError)?.problem == .nameNotTerminated
    }
  }

  @Test func aNameLongerThanAnyIsRefused() throws {
    func record(_ length: Int) -> [UInt8] {
      let name = String(repeating: "n", count: length)
      return RecordBytes.record(
        .init(
          mask: 0x2, pid: 1, object: 0, directory: 2, name: name, newDirectory: 0, newName: ""))
    }
    #expect(try parse(record(255)).first?.nameSize == 255)
    #expect { try parse(record(256)) } throws: { error in
      (error as? RecordError)?.problem == .nameNotTerminated
    }
  }

  @Test func randomBytesNeverReachBeyondTheBuffer() {
    var generator = SeededGenerator(state: 7)
    for _ in 0..<20_000 {
      var bytes = rename
      for _ in 0..<Int.random(in: 1...4, using: &generator) {
        bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(
          in: 0...255, using: &generator)
      }
      guard let events = try? parse(bytes) else { continue }
      for event in events {
        #expect(Int(event.name) + Int(event.nameSize) < bytes.count)
        #expect(Int(event.newName) + Int(event.newNameSize) < bytes.count)
        #expect(Int(max(event.object, event.directory, event.newDirectory)) + 8 <= bytes.count)
      }
    }
  }
}
