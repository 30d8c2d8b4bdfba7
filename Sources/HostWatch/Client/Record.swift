import CHostWatch

extension HostWatchClient {
  /// One change, in the session's own identities (`struct hw_record`).
  public struct Record: Hashable, Sendable {
    /// 1, 2, 3 … within the session, without gaps.
    public var sequence: UInt64
    /// CREATE, DELETE and RENAME stand alone, `isDirectory` aside; the changes
    /// of an object may come together. No event with `.recheck`.
    public var mask: EventMask
    /// What else there is to know.
    public var flags: Flags
    /// The directory, for a rename the source. `.none` where the session does
    /// not know it, and then without a name.
    public var directory: NodeID
    /// The object, or `.none` where the session does not know it.
    public var node: NodeID
    /// The destination directory of a rename, else `.none`.
    public var newDirectory: NodeID
    /// The id of the session whose process made the change, or 0.
    public var origin: UInt64
    /// The process that made the change, with `.wantPID`; else 0.
    public var pid: Int32
    /// The name in `directory`; empty when the record is about an object alone.
    public var name: Name
    /// The name in `newDirectory`, of a rename.
    public var newName: Name
    /// With `.wantPath`: the path of `directory` below the share's root, empty
    /// for the root itself.
    public var path: Name
    /// The same of `newDirectory`.
    public var newPath: Name

    /// A record from its parts, for tests of a server.
    public init(
      sequence: UInt64, mask: EventMask, flags: Flags = [], directory: NodeID = .none,
      node: NodeID = .none, newDirectory: NodeID = .none, origin: UInt64 = 0, pid: Int32 = 0,
      name: Name = Name([]), newName: Name = Name([]), path: Name = Name([]),
      newPath: Name = Name([])
    ) {
      self.sequence = sequence
      self.mask = mask
      self.flags = flags
      self.directory = directory
      self.node = node
      self.newDirectory = newDirectory
      self.origin = origin
      self.pid = pid
      self.name = name
      self.newName = newName
      self.path = path
      self.newPath = newPath
    }
  }
}

extension HostWatchClient.Record {
  /// What else there is to know of a record (`hw_record.flags`). Bits of later
  /// versions are kept as they are.
  public struct Flags: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Nothing was seen to happen, but the node, and for a directory its
    /// entries, may have changed: look again.
    public static let recheck = Flags(rawValue: UInt32(HW_RECHECK))
    /// A rename to where this session knows nothing.
    public static let movedOut = Flags(rawValue: UInt32(HW_MOVED_OUT))
    /// A rename from where this session knows nothing.
    public static let movedIn = Flags(rawValue: UInt32(HW_MOVED_IN))
    /// Worked out from the filesystem, because the kernel had merged events.
    public static let corrected = Flags(rawValue: UInt32(HW_CORRECTED))
    /// A rename that removed what had the new name.
    public static let replaced = Flags(rawValue: UInt32(HW_REPLACED))

    /// The names of the flags in this set, as hostwatchctl prints them.
    public var flagNames: [String] {
      let names: [(Flags, String)] = [
        (.recheck, "recheck"), (.movedOut, "moved-out"), (.movedIn, "moved-in"),
        (.corrected, "corrected"), (.replaced, "replaced"),
      ]
      return names.filter { contains($0.0) }.map(\.1)
    }
  }
}

extension HostWatchClient {
  /// The records of one EVENTS packet, checked, and taken apart one by one as
  /// they are asked for: a packet in a buffer costs its bytes and no more.
  public struct RecordBatch: Sendable, Hashable, Sequence, IteratorProtocol {
    /// The whole packet; `PacketReader` has checked it.
    let packet: [UInt8]
    private var offset = MemoryLayout<hw_events>.size

    /// `packet` must have passed `PacketReader`.
    init(checked packet: [UInt8]) { self.packet = packet }

    public mutating func next() -> Record? {
      guard offset < packet.count else { return nil }
      // Bounds, sizes and names were checked; any bytes are a valid hw_record.
      let raw = unsafe packet.span.bytes.unsafeLoadUnaligned(
        fromByteOffset: offset, as: hw_record.self)
      var start = offset + MemoryLayout<hw_record>.size
      func text(_ size: Int) -> Name {
        defer { start += size }
        return Name(size == 0 ? [] : Array(packet[start..<start + size]))
      }
      let record = Record(
        sequence: raw.sequence, mask: EventMask(rawValue: raw.mask),
        flags: Record.Flags(rawValue: raw.flags), directory: NodeID(raw.dir),
        node: NodeID(raw.node), newDirectory: NodeID(raw.new_dir), origin: raw.origin,
        pid: raw.pid, name: text(Int(raw.name_size)), newName: text(Int(raw.new_name_size)),
        path: text(Int(raw.path_size)), newPath: text(Int(raw.new_path_size)))
      offset += Int(raw.size)
      return record
    }
  }
}

extension NodeID {
  fileprivate init(_ raw: hw_node) { self.init(nodeid: raw.nodeid, generation: raw.generation) }
}
