import CHostWatch

extension HostWatchClient {
  /// A message of the daemon's.
  public enum Packet: Sendable, Hashable {
    /// `type` is that of the request, 0 when the daemon could not read it.
    case reply(unique: UInt64, type: UInt16, Reply)
    /// EVENTS.
    case events(RecordBatch)
    /// What happened after the record `sequence` is not known in full.
    case lost(LossReason, sequence: UInt64)
    /// RESYNCED, the end of a gap.
    case resynced(Resync)
    /// DETACHED, the session's last message.
    case detached(DetachReason)
  }

  /// What the daemon answers to a request.
  public enum Reply: Sendable, Hashable {
    /// INIT.
    case session(Session)
    /// REGISTER and INTEREST: per entry 0 or a negative errno.
    case statuses([Int32])
    /// SYNC.
    case synced
    /// STATUS: a JSON object.
    case status(String)
    /// Any request: a negative errno and a sentence.
    case refused(Refusal)
  }

  /// A request that the daemon did not grant.
  public struct Refusal: Error, Sendable, Hashable, CustomStringConvertible {
    /// A positive errno.
    public let code: Int32
    /// What is wrong and what to do, in a sentence; empty where the daemon
    /// gave none.
    public let text: String

    /// `code` is a positive errno.
    public init(code: Int32, text: String) {
      self.code = code
      self.text = text
    }

    public var description: String {
      text.isEmpty
        ? "\(SystemError.text(code)) (\(SystemError.name(code)))"
        : "\(text) (\(SystemError.name(code)))"
    }
  }

  /// What INIT granted.
  public struct Session: Sendable, Hashable {
    /// What STATUS calls the session, and other sessions' `origin`.
    public var id: UInt64
    /// What was granted of the options asked for.
    public var options: Options
    /// What is delivered, of what was asked for.
    public var events: EventMask
    /// The root as records name it.
    public var root: NodeID
    /// The largest packet the daemon sends, in bytes.
    public var maxPacketBytes: UInt32
    /// What the daemon queues for this client, in bytes.
    public var queueLimitBytes: UInt32
    /// How many nodes may be registered at a time.
    public var maxNodes: UInt32
  }

  /// Why there is a gap (`hw_lost.reason`).
  public enum LossReason: UInt32, Sendable, Hashable, CustomStringConvertible {
    /// The kernel's queue of the filesystem overflowed.
    case kernelQueue = 1
    /// This client did not read, and its queue was full.
    case sessionQueue = 2
    /// The daemon was restarted, and not every event of that time could be kept.
    case restart = 3

    public var description: String {
      switch self {
      case .kernelQueue: "the kernel's queue overflowed"
      case .sessionQueue: "this session's queue overflowed"
      case .restart: "the daemon was restarted"
      }
    }
  }

  /// The end of a gap: what is registered has been looked at again. A TREE
  /// session rescans; its counts are 0.
  public struct Resync: Sendable, Hashable {
    /// Of the last record before this message.
    public var sequence: UInt64
    /// Registered nodes that were looked at.
    public var nodesChecked: UInt64
    /// Of these, nodes that were told as changed or gone.
    public var nodesReported: UInt64
  }

  /// Why the daemon ends the session (`hw_detached.reason`).
  public enum DetachReason: UInt32, Sendable, Hashable, CustomStringConvertible {
    /// The filesystem was unmounted.
    case unmounted = 1
    /// The share was removed from the configuration.
    case shareRemoved = 2
    /// The daemon ends.
    case shutdown = 3

    public var description: String {
      switch self {
      case .unmounted: "the filesystem was unmounted"
      case .shareRemoved: "the share was removed from the configuration"
      case .shutdown: "the daemon shuts down"
      }
    }
  }

  /// Bytes that are not a message of the protocol, and where.
  public struct PacketError: Error, Sendable, Hashable, CustomStringConvertible {
    /// What is wrong with the bytes.
    public enum Problem: Sendable, Hashable {
      /// Fewer bytes than the message needs.
      case truncated
      /// More bytes than the message has.
      case surplus
      /// The header's size is not the packet's length.
      case wrongSize(UInt32)
      /// `hw_header.type` is none of the protocol's.
      case unknownType(UInt16)
      /// A reserved field or padding is not zero.
      case notZero
      /// A reply without `unique`, or a notification with one.
      case wrongUnique(UInt64)
      /// A positive error, or none where there must be one.
      case wrongError(Int32)
      /// INIT's reply speaks another version.
      case wrongVersion(UInt16)
      /// A count that the packet has no room for.
      case wrongCount(UInt32)
      /// A record's size does not hold its names, or is not a multiple of 8.
      case wrongRecordSize(UInt32)
      /// NUL in a name or path, or "/" in a name.
      case wrongName
      /// A reason that the protocol does not know.
      case wrongReason(UInt32)
      /// INIT's reply has a largest packet that the protocol does not allow.
      case wrongLimit(UInt32)
      /// Records are missing between two packets.
      case sequenceGap(expected: UInt64, found: UInt64)
      /// A sentence or JSON that is no UTF-8.
      case notUTF8
      /// The daemon sends no descriptors.
      case unexpectedDescriptors
      /// A reply to no request, or of another type than its request.
      case unexpectedReply
    }

    /// What is wrong.
    public let problem: Problem
    /// In the packet, in bytes.
    public let offset: Int

    public var description: String { "byte \(offset): \(problem)" }
  }
}
