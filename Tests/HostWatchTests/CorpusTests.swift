import Glibc
import Testing

@testable import HostWatch

/// The seeds of the fuzz targets are still what they are meant to be: one that is refused at
/// its start shows a fuzzer nothing. `refused-` in a seed's name says that it is to be.
@Suite("The fuzzers' seeds")
struct CorpusTests {
  private struct Seed {
    let name: String
    let bytes: [UInt8]
    var isMeantToBeTaken: Bool { !name.hasPrefix("refused-") }
  }

  private static func seeds(_ target: String) throws -> [Seed] {
    let package = #filePath.split(separator: "/").dropLast(3).joined(separator: "/")
    let folder = "/\(package)/Fuzz/Corpus/\(target)"
    let directory = unsafe try #require(opendir(folder))
    defer { unsafe closedir(directory) }
    var seeds: [Seed] = []
    while let entry = unsafe readdir(directory) {
      let name = unsafe withUnsafeBytes(of: entry.pointee.d_name) {
        unsafe String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard !name.hasPrefix(".") else { continue }
      seeds.append(Seed(name: name, bytes: try Syscall.contents(of: "\(folder)/\(name)")))
    }
    #expect(!seeds.isEmpty, "\(target) has no seeds")
    return seeds
  }

  @Test("of FuzzHandOver are states")
  func handOver() throws {
    for seed in try Self.seeds("FuzzHandOver") {
      // As FuzzHandOver does: the first byte is the number of descriptors.
      var bytes = HandOverEncoder.encode(HandOverState())
      bytes.replaceSubrange(HandOverEncoder.headerSize..., with: seed.bytes.dropFirst())
      HandOverEncoder.seal(&bytes)
      let descriptors = Int(try #require(seed.bytes.first))
      let state = Result { try HandOverDecoder.decode(bytes, descriptors: descriptors) }
      #expect(((try? state.get()) != nil) == seed.isMeantToBeTaken, "\(seed.name): \(state)")
    }
  }

  @Test("of FuzzRequests are requests")
  func requests() throws {
    for seed in try Self.seeds("FuzzRequests") {
      let packet = Array(seed.bytes.dropFirst())
      let descriptors = Int(try #require(seed.bytes.first))
      let request = Result {
        try unsafe RequestDecoder.decode(packet.span.bytes, descriptors: descriptors)
      }
      #expect(((try? request.get()) != nil) == seed.isMeantToBeTaken, "\(seed.name): \(request)")
    }
  }

  @Test("of FuzzRecords are records")
  func records() throws {
    for seed in try Self.seeds("FuzzRecords") {
      let segment = EventSegment()
      segment.fill(with: seed.bytes)
      var events: [KernelEvent] = []
      let isTaken = (try? segment.parse(into: &events, segment: 0)) != nil
      #expect(isTaken == seed.isMeantToBeTaken && !events.isEmpty, "\(seed.name)")
    }
  }

  @Test("of FuzzReconciler are reads of records")
  func reads() throws {
    for seed in try Self.seeds("FuzzReconciler") {
      var left = seed.bytes[...]
      while let how = left.popFirst() {
        let size = left.prefix(2).reversed().reduce(0) { $0 << 8 | Int($1) }
        let segment = EventSegment()
        segment.fill(with: Array(left.dropFirst(2).prefix(size)))
        left = left.dropFirst(2 + size)
        var events: [KernelEvent] = []
        #expect(throws: Never.self, "\(seed.name), before \(left.count) bytes, \(how)") {
          try segment.parse(into: &events, segment: 0)
        }
      }
    }
  }
}
