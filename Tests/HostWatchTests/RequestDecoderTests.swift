import CHostWatch
import TestSupport
import Testing

@testable import HostWatch

@Suite struct RequestDecoderTests {
  private typealias Number = RecordBytes

  private func header(_ type: UInt32, size: Int, flags: UInt16 = 0, unique: UInt64 = 9) -> [UInt8] {
    Number.number(UInt32(size)) + Number.number(UInt16(type)) + Number.number(flags)
      + Number.number(unique)
  }

  private func message(
    _ type: UInt32, _ body: [UInt8] = [], flags: UInt16 = 0, unique: UInt64 = 9
  ) -> [UInt8] {
    header(type, size: 16 + body.count, flags: flags, unique: unique) + body
  }

  private func decode(_ bytes: [UInt8], descriptors: Int = 0) throws -> Request {
    try unsafe RequestDecoder.decode(bytes.span.bytes, descriptors: descriptors)
  }

  private func initBody(
    major: UInt16 = 1, share: String = "src", padding: UInt8 = 0, mode: UInt16 = 1,
    options: UInt32 = 0, reserved: UInt32 = 0
  ) -> [UInt8] {
    var body = Number.number(major) + Number.number(UInt16(0)) + Number.number(options)
    body += Number.number(UInt64(0x100)) + Number.number(UInt32(0)) + Number.number(UInt32(0))
    body += Number.number(UInt32(1000)) + Number.number(UInt32(0)) + Number.number(mode)
    body += Number.number(UInt16(share.utf8.count)) + Number.number(reserved)
    body += Array(share.utf8)
    while body.count % 8 != 0 { body.append(padding) }
    return body
  }

  /// Whether the error ends the session, or nil when the packet is a request.
  private func isFatal(_ bytes: [UInt8], descriptors: Int = 0) -> Bool? {
    do {
      _ = try decode(bytes, descriptors: descriptors)
      return nil
    } catch {
      return (error as? RequestError)?.isProtocolError
    }
  }

  @Test func aShareIsNamed() throws {
    guard case .initialize(let value) = try decode(message(HW_INIT, initBody())) else {
      Issue.record("not an INIT")
      return
    }
    #expect(value.share == "src" && value.mode == 1 && value.maxDelayMicroseconds == 1000)
    #expect(value.events == .create)
  }

  @Test func ofAnotherVersionNothingElseIsRead() throws {
    let other = initBody(major: 2, padding: 1, mode: 9, options: 0x100, reserved: 1)
    let expected = Request.initializeOther(major: 2)
    #expect(try decode(message(HW_INIT, other)) == expected)
    #expect(try decode(message(HW_INIT, other, flags: 1), descriptors: 3) == expected)
    #expect(try decode(message(HW_INIT, Array(other.prefix(2)))) == expected)
    #expect(try decode(message(HW_INIT, initBody(major: 0))) == .initializeOther(major: 0))
    #expect(isFatal(message(HW_INIT, Array(other.prefix(1)))) == true)
  }

  @Test func malformedPacketsEndTheSession() {
    let sync = message(HW_SYNC)
    #expect(isFatal(Array(sync.prefix(15))) == true)
    #expect(isFatal(sync + [0]) == true)
    #expect(isFatal(message(99)) == true)
    #expect(isFatal(sync, descriptors: 1) == true)
    #expect(isFatal(message(HW_INIT, initBody()), descriptors: 1) == true)
    #expect(isFatal(message(HW_INIT, initBody(share: ""))) == true)
    #expect(isFatal(message(HW_INIT, Array(initBody().prefix(20)))) == true)
    let count = Number.number(UInt32(2)) + Number.number(UInt32(0))
    #expect(isFatal(message(HW_FORGET, count + [UInt8](repeating: 1, count: 16))) == true)
    #expect(
      isFatal(message(HW_REGISTER, count + [UInt8](repeating: 0, count: 80)), descriptors: 1)
        == true)
    let huge = Number.number(UInt32.max) + Number.number(UInt32(0))
    #expect(isFatal(message(HW_INTEREST, huge)) == true)
  }

  @Test func invalidFieldsLeaveTheSessionOpen() {
    #expect(isFatal(message(HW_SYNC, flags: 1)) == false)
    #expect(isFatal(message(HW_SYNC, unique: 0)) == false)
    #expect(isFatal(message(HW_INIT, initBody(padding: 1))) == false)
    #expect(isFatal(message(HW_INIT, initBody(mode: 3))) == false)
    #expect(isFatal(message(HW_INIT, initBody(options: 0x100))) == false)
    #expect(isFatal(message(HW_INIT, initBody(reserved: 1))) == false)
    #expect(isFatal(message(HW_INIT, initBody(share: "a\0b"))) == false)
    let none = Number.number(UInt32(0)) + Number.number(UInt32(0))
    #expect(isFatal(message(HW_FORGET, none)) == false)
    let status = Number.number(UInt32(0)) + Number.number(UInt32(5))
    #expect(isFatal(message(HW_STATUS, status)) == false)
  }

  @Test func entriesAreReadAtTheirOffsets() throws {
    var entry = Number.number(UInt64(77)) + Number.number(UInt64(3)) + Number.number(UInt64(2))
    entry += Number.number(Int64(123)) + Number.number(UInt32(456)) + Number.number(UInt32(0))
    let body = Number.number(UInt32(1)) + Number.number(UInt32(0)) + entry
    guard case .register(let entries) = try decode(message(HW_REGISTER, body), descriptors: 1)
    else {
      Issue.record("not a REGISTER")
      return
    }
    #expect(entries[0].id == NodeID(nodeid: 77, generation: 3))
    #expect(entries[0].interest == .modify)
    #expect(entries[0].since == Timestamp(seconds: 123, nanoseconds: 456))
  }

  @Test func randomPacketsAreAnsweredOrRefused() {
    var generator = SeededGenerator(state: 3)
    let seeds = [
      message(HW_INIT, initBody()), message(HW_SYNC),
      message(
        HW_FORGET,
        Number.number(UInt32(1)) + Number.number(UInt32(0)) + [UInt8](repeating: 5, count: 16)),
    ]
    var refused = 0
    for _ in 0..<20_000 {
      var bytes = seeds.randomElement(using: &generator) ?? []
      for _ in 0..<Int.random(in: 1...5, using: &generator) {
        bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(
          in: 0...255, using: &generator)
      }
      let descriptors = Int.random(in: 0...2, using: &generator)
      if isFatal(bytes, descriptors: descriptors) != nil { refused += 1 }
    }
    #expect(refused > 10_000)
  }
}
