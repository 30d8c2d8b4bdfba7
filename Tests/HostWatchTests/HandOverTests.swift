import CFanotify
import CHostWatch
import Testing

@testable import HostWatch

@Suite("What a process hands over")
struct HandOverTests {
  private static func handle(_ number: UInt8, count: UInt32 = 8) -> FileHandle {
    var raw = hw_file_handle()
    (raw.bytes, raw.type) = (count, 1)
    raw.data.0 = number
    return FileHandle(raw)
  }

  /// One of everything.
  private static func sample() -> HandOverState {
    var filesystem = HandOverState.Filesystem()
    (filesystem.device, filesystem.magic, filesystem.group) = (0x801, 0xEF53, 0)
    filesystem.mount = HandOverState.Mount(tree: 1, root: 2)
    filesystem.lastEmpty = Timestamp(seconds: 5, nanoseconds: 999_999_999)
    filesystem.queueLimit = 16384
    filesystem.isInGap = true
    filesystem.counters.records = 77
    filesystem.deaths = [
      HandOverState.Death(handle: handle(9), mask: 0x400, pid: 4, since: 123)
    ]
    var scope = HandOverState.Scope(root: handle(1))
    scope.mount = HandOverState.Mount(tree: 3, root: 4)
    scope.directories = [
      HandOverState.Directory(handle: handle(2), name: [0x61], parent: 1, isOutside: false),
      HandOverState.Directory(handle: handle(3), name: [], parent: 2, isOutside: false),
      HandOverState.Directory(handle: handle(4), name: [], parent: 0, isOutside: true),
    ]
    scope.doubtful = [HandOverState.Doubt(handle: handle(3), since: 8)]
    filesystem.scopes = [scope]
    var state = HandOverState()
    (state.nextSession, state.madeAt, state.past.lost) = (9, 44, 2)
    state.filesystems = [filesystem]
    state.sessions = [tree(), nodes(), waiting()]
    return state
  }

  private static func tree() -> HandOverState.Session {
    var session = HandOverState.Session()
    (session.id, session.socket, session.pid, session.stage) = (2, 5, 100, .attached)
    var attachment = HandOverState.Attachment()
    (attachment.scope, attachment.share, attachment.path) = (0, "src", "/srv/src")
    (attachment.queueLimit, attachment.maxPacket) = (65536, 65536)
    attachment.sequence = 12
    session.attachment = attachment
    return session
  }

  private static func nodes() -> HandOverState.Session {
    var session = tree()
    (session.id, session.socket, session.uid) = (4, 6, 1000)
    session.packets = packet(24) + packet(17)
    var attachment = HandOverState.Attachment()
    (attachment.queueLimit, attachment.maxPacket) = (65536, 4096)
    (attachment.ownPID, attachment.ownProcess) = (100, 7)
    (attachment.isLosing, attachment.losingSince) = (true, Timestamp(seconds: 1, nanoseconds: 0))
    attachment.resync = HandOverState.ResyncState(
      since: Timestamp(seconds: 3, nanoseconds: 1), checked: 5, reported: 2)
    attachment.syncs = [17]
    for index in 1...5 {
      handle(UInt8(index), count: UInt32(index * 8)).withView {
        attachment.registrations.append(
          NodeID(nodeid: UInt64(index), generation: 0), interest: 0x102, flags: UInt8(index & 3),
          $0)
      }
    }
    session.attachment = attachment
    return session
  }

  private static func waiting() -> HandOverState.Session {
    var session = HandOverState.Session()
    (session.id, session.socket, session.packets) = (8, 8, packet(16))
    return session
  }

  private static func packet(_ size: UInt32) -> [UInt8] {
    var writer = ByteWriter()
    writer.put(size)
    let padded = (Int(size) + 7) & ~7
    writer.bytes.append(contentsOf: [UInt8](repeating: 7, count: padded - 4))
    return writer.bytes
  }

  @Test("comes out as it went in")
  func roundTrip() throws {
    let state = Self.sample()
    let bytes = HandOverEncoder.encode(state)
    #expect(try HandOverDecoder.decode(bytes, descriptors: 9) == state)
    var count = 0
    state.sessions[1].attachment?.registrations.visit { header, handle in
      count += 1
      #expect(header.nodeid == UInt64(count))
      #expect(handle == Self.handle(UInt8(count), count: UInt32(count * 8)))
    }
    #expect(count == 5)
  }

  @Test("is refused when it is cut off anywhere")
  func truncations() {
    let bytes = HandOverEncoder.encode(Self.sample())
    for length in 0..<bytes.count {
      #expect(throws: HandOverError.self) {
        try HandOverDecoder.decode(Array(bytes[..<length]), descriptors: 9)
      }
      // Also with a header that fits.
      guard length > HandOverEncoder.headerSize else { continue }
      var cut = Array(bytes[..<length])
      HandOverEncoder.seal(&cut)
      #expect(throws: HandOverError.self) { try HandOverDecoder.decode(cut, descriptors: 9) }
    }
  }

  @Test("is refused with any bit turned")
  func bitFlips() {
    let bytes = HandOverEncoder.encode(Self.sample())
    for bit in 0..<(bytes.count * 8) {
      var wrong = bytes
      wrong[bit / 8] ^= 1 << UInt8(bit % 8)
      #expect(throws: HandOverError.self) { try HandOverDecoder.decode(wrong, descriptors: 9) }
    }
  }

  @Test("is refused or within its bounds with a bit turned and a right checksum")
  func sealedBitFlips() throws {
    let bytes = HandOverEncoder.encode(Self.sample())
    var decoded = 0
    for bit in (HandOverEncoder.headerSize * 8)..<(bytes.count * 8) {
      var wrong = bytes
      wrong[bit / 8] ^= 1 << UInt8(bit % 8)
      HandOverEncoder.seal(&wrong)
      do {
        let state = try HandOverDecoder.decode(wrong, descriptors: 9)
        decoded += 1
        // What was taken for a state is one: it says the same again.
        #expect(HandOverEncoder.encode(state) == wrong)
      } catch let error as HandOverError {
        #expect(!error.description.isEmpty)
      }
    }
    #expect(decoded > 0)
  }

  @Test("names the version it does not know")
  func versions() {
    var bytes = HandOverEncoder.encode(Self.sample())
    let known = HandOverState.version
    bytes[8] = UInt8(known + 1)
    #expect(
      throws: HandOverError(
        "the state has version \(known + 1); this daemon reads version \(known)")
    ) { try HandOverDecoder.decode(bytes, descriptors: 9) }
  }

  @Test("is refused when descriptors are missing, or one has two uses")
  func descriptors() {
    let bytes = HandOverEncoder.encode(Self.sample())
    #expect(throws: HandOverError.self) { try HandOverDecoder.decode(bytes, descriptors: 8) }
    var state = Self.sample()
    state.sessions[0].socket = 0
    #expect(throws: HandOverError.self) {
      try HandOverDecoder.decode(HandOverEncoder.encode(state), descriptors: 9)
    }
  }

  @Test("is refused when the next session would be none, or one that is there")
  func nextSession() {
    var state = HandOverState()
    for sessions in [[], [Self.waiting()]] {
      (state.nextSession, state.sessions) = (sessions.first?.id ?? 0, sessions)
      #expect(throws: HandOverError.self) {
        try HandOverDecoder.decode(HandOverEncoder.encode(state), descriptors: 9)
      }
    }
  }

  @Test("is refused with a number that would overflow when it is added to")
  func largeNumbers() throws {
    let changes: [(inout HandOverState) -> Void] = [
      { $0.nextSession = .max },
      { $0.past.lost = .max },
      { $0.past.events = .max },
      { $0.past.delivered = .max },
      { $0.past.corrected = .max },
      { $0.filesystems[0].counters.records = .max },
      { $0.filesystems[0].lastEmpty.seconds = .min },
      { $0.sessions[1].attachment?.losingSince?.seconds = .min },
      { $0.sessions[0].attachment?.lostCount = .max },
      // Each is small enough; STATUS adds them up.
      {
        $0.past.lost = 1 << 61
        for session in 0..<2 { $0.sessions[session].attachment?.lostCount = 1 << 61 }
      },
    ]
    for (index, change) in changes.enumerated() {
      var state = Self.sample()
      change(&state)
      let bytes = HandOverEncoder.encode(state)
      #expect(throws: HandOverError.self, "change \(index)") {
        try HandOverDecoder.decode(bytes, descriptors: 9)
      }
    }
    var state = Self.sample()
    (state.past.lost, state.past.events) = (1 << 60, 1 << 61)
    state.filesystems[0].lastEmpty.seconds = -1
    let bytes = HandOverEncoder.encode(state)
    #expect(try HandOverDecoder.decode(bytes, descriptors: 9) == state)
  }

  @Test("keeps a queue's packets, across its end as well")
  func queueContents() {
    let user = UserAccount(uid: 1, queueLimit: 1 << 20)
    var queue = unsafe PacketQueue(
      limit: 65536, maxPacket: 65536, userQueued: user.queued, userLimit: 1 << 30)
    defer { queue.release() }
    let size: UInt32 = 60000
    var expected: [UInt8] = []
    for round in 0..<12 {
      let packet = Self.packet(size + UInt32(round) * 8)
      if round >= 3 {
        _ = unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: 1) {
          unsafe queue.gather($0)
        }
        queue.drop(1)
        expected.removeFirst(Int(size) + (round - 3) * 8)
      }
      let fits = unsafe packet.withUnsafeBytes { unsafe queue.append($0) }
      #expect(fits)
      expected += packet
      #expect(queue.contents() == expected)
    }
  }
}
