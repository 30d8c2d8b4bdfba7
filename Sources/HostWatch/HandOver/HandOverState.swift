import CFanotify

/// What one process of the daemon leaves to the next: plain values, apart from
/// how either keeps them in memory.
///
/// Descriptors are indices into the list that goes with the bytes; -1 is none.
struct HandOverState: Equatable {
  /// Raised when the bytes' meaning changes. A daemon refuses what it does not know.
  static let version: UInt32 = 2

  var nextSession: UInt64 = 1
  /// When it was made: milliseconds on CLOCK_MONOTONIC, which goes on.
  var madeAt: UInt32 = 0
  /// What sessions and filesystems that have gone had counted.
  var past = Past()
  var filesystems: [Filesystem] = []
  /// By id, so that the oldest comes first.
  var sessions: [Session] = []

  struct Past: Equatable {
    var lost: UInt64 = 0
    var events: UInt64 = 0
    var delivered: UInt64 = 0
    var corrected: UInt64 = 0
  }

  /// A detached mount: the tree's descriptor (-1 where it is only held) and its root's.
  struct Mount: Equatable {
    var tree: Int32 = -1
    var root: Int32 = -1
  }

  struct Filesystem: Equatable {
    var device: UInt64 = 0
    var magic: UInt32 = 0
    /// -1: it is in the descriptor store.
    var group: Int32 = -1
    /// Of the group, in events; 0: not known.
    var queueLimit: UInt32 = 0
    var mount = Mount()
    var isInMountTable = true
    /// The last moment at which the queue is known to have been empty.
    var lastEmpty = Timestamp.zero
    /// The stream is not whole again after a loss.
    var isInGap = false
    var counters = Counters()
    /// Deaths whose DELETE may still come.
    var deaths: [Death] = []
    var scopes: [Scope] = []
  }

  struct Counters: Equatable {
    var records: UInt64 = 0
    var overflows: UInt64 = 0
    var batches: UInt64 = 0
    var largestBatch: UInt64 = 0
    var delivered: UInt64 = 0
    var merged: UInt64 = 0
    var lookups: UInt64 = 0
    var corrected: UInt64 = 0
  }

  struct Death: Equatable {
    var handle: FileHandle
    var mask: UInt64
    var pid: Int32
    var since: UInt32
  }

  struct Scope: Equatable {
    var root: FileHandle
    var mount = Mount()
    /// Each behind the one it is in.
    var directories: [Directory] = []
    var doubtful: [Doubt] = []
  }

  struct Directory: Equatable {
    var handle: FileHandle
    var name: [UInt8]
    /// 1 is the root, 2 the first of the list, and so on; 0: not known or outside.
    var parent: UInt32
    var isOutside: Bool
  }

  struct Doubt: Equatable {
    var handle: FileHandle
    var since: UInt32
  }

  enum Stage: UInt8 {
    /// INIT has not been granted.
    case connected
    case attached
    /// Nothing more is queued; it is closed once all has been sent.
    case closing
  }

  struct Session: Equatable {
    var id: UInt64 = 0
    var socket: Int32 = -1
    var pid: Int32 = 0
    var uid: UInt32 = 0
    var gid: UInt32 = 0
    var stage = Stage.connected
    /// Finished packets, in order, each padded to a multiple of 8.
    var packets: [UInt8] = []
    var attachment: Attachment?
  }

  struct Attachment: Equatable {
    var filesystem: UInt32 = 0
    /// nil in NODES.
    var scope: UInt32?
    var share: String?
    var path = ""
    var events: UInt64 = 0
    var options: UInt32 = 0
    /// 0 once it has ended.
    var ownPID: Int32 = 0
    var ownProcess: Int32 = -1
    var queueLimit: UInt64 = 0
    var maxPacket: UInt32 = 0
    var maxNodes: UInt32 = 0
    var maxDelayMicroseconds: UInt32 = 0
    var sequence: UInt64 = 0
    var dropped: UInt64 = 0
    var bytes: UInt64 = 0
    var lostCount: UInt64 = 0
    /// Records are dropped, the first of them later than `losingSince`.
    var isLosing = false
    var losingSince: Timestamp?
    var resync: ResyncState?
    /// `unique` of each SYNC that waits.
    var syncs: [UInt64] = []
    var registrations = PackedRegistrations()
  }

  struct ResyncState: Equatable {
    var since = Timestamp.zero
    var checked: UInt64 = 0
    var reported: UInt64 = 0
  }
}

/// A session's registrations, in the bytes' own form: there may be millions.
struct PackedRegistrations: Equatable {
  static let dead: UInt8 = 1
  /// The resync that runs has not come to it yet.
  static let unchecked: UInt8 = 2
  /// The session is to be told to look at it by the resync that comes.
  static let owesRecheck: UInt8 = 4

  /// 24 bytes and the handle's.
  struct Header: BitwiseCopyable {
    var nodeid: UInt64
    var generation: UInt64
    var interest: UInt32
    var flags: UInt8
    var count: UInt8
    var type: UInt16
  }

  private(set) var count = 0
  private(set) var bytes: [UInt8] = []

  init() {}

  /// Takes bytes over; nil when they are not exactly `count` registrations.
  init?(count: Int, bytes: [UInt8]) {
    self.count = count
    self.bytes = bytes
    var offset = 0
    for _ in 0..<count {
      guard let header = header(at: offset), header.count > 0, header.count <= hw_handle_max,
        header.flags <= 7, header.interest & NodeTable.stateBits == 0, header.nodeid != 0
      else { return nil }
      offset += 24 + Int(header.count)
      guard offset <= bytes.count else { return nil }
    }
    guard offset == bytes.count else { return nil }
  }

  mutating func reserve(_ count: Int) { bytes.reserveCapacity(count * 40) }

  mutating func append(_ id: NodeID, interest: UInt32, flags: UInt8, _ handle: HandleView) {
    let header = Header(
      nodeid: id.nodeid, generation: id.generation, interest: interest, flags: flags,
      count: UInt8(handle.count), type: UInt16(truncatingIfNeeded: handle.type))
    unsafe withUnsafeBytes(of: header) { unsafe bytes.append(contentsOf: $0) }
    // A view's bytes are there as long as the view.
    unsafe bytes.append(
      contentsOf: UnsafeRawBufferPointer(start: handle.data, count: handle.count))
    count += 1
  }

  /// Each registration, in order, until `body` throws.
  func visit<Failure: Error>(
    _ body: (_ header: Header, _ handle: FileHandle) throws(Failure) -> Void
  ) throws(Failure) {
    var offset = 0
    while let header = header(at: offset) {
      var raw = hw_file_handle()
      raw.bytes = UInt32(header.count)
      raw.type = Int32(header.type)
      let start = offset + 24
      unsafe withUnsafeMutableBytes(of: &raw.data) { target in
        // `init` and `append` see to it that the handle is there and no longer than 128.
        unsafe bytes.withUnsafeBytes {
          unsafe target.copyMemory(
            from: UnsafeRawBufferPointer(rebasing: $0[start..<(start + Int(header.count))]))
        }
      }
      try body(header, FileHandle(raw))
      offset = start + Int(header.count)
    }
  }

  private func header(at offset: Int) -> Header? {
    guard offset + 24 <= bytes.count else { return nil }
    return unsafe bytes.withUnsafeBytes {
      unsafe $0.loadUnaligned(fromByteOffset: offset, as: Header.self)
    }
  }
}
