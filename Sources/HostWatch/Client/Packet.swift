import CHostWatch

extension HostWatchClient {
  /// A message of the daemon's.
  public enum Packet: Sendable, Hashable {
    /// `type` is that of the request, 0 when the daemon could not read it.
    case reply(unique: UInt64, type: UInt16, Reply)
    /// Changes, in their order.
    case events(RecordBatch)
    /// What happened after the record `sequence` is not known in full.
    case lost(LossReason, sequence: UInt64)
    /// The end of a gap.
    case resynced(Resync)
    /// The session has ended.
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
    /// Any request that was not granted.
    case refused(Refusal)
  }

  /// A request that the daemon did not grant.
  public struct Refusal: Error, Sendable, Hashable, CustomStringConvertible {
    /// A positive errno.
    public let code: Int32
    /// What is wrong and what to do, in a sentence; empty where the daemon
    /// gave none.
    public let text: String

    /// A positive errno, and a sentence or none.
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
    /// Not 0; a record's `origin` names it.
    public var id: UInt64
    /// What is in force, of what was asked for.
    public var options: Options
    /// What is delivered, of what was asked for.
    public var events: EventMask
    /// The root's identity, which is registered from the start.
    public var root: NodeID
    /// The largest packet the daemon sends, in bytes.
    public var maxPacketBytes: UInt32
    /// What the daemon queues for this client, in bytes.
    public var queueLimitBytes: UInt32
    /// How many objects may be registered.
    public var maxNodes: UInt32
  }

  /// Why there is a gap (`hw_lost.reason`).
  public enum LossReason: UInt32, Sendable, Hashable, CustomStringConvertible {
    /// The kernel dropped events, for every session of the filesystem.
    case kernelQueue = 1
    /// This client read too slowly, and its queue was full.
    case sessionQueue = 2
    /// More happened during a restart than was kept.
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
    /// Registered nodes that the daemon looked at.
    public var nodesChecked: UInt64
    /// Those of them that had changed: each came as a record.
    public var nodesReported: UInt64
  }

  /// Why the daemon ends the session (`hw_detached.reason`).
  public enum DetachReason: UInt32, Sendable, Hashable, CustomStringConvertible {
    /// The filesystem was unmounted.
    case unmounted = 1
    /// The share left the configuration, or this user's right to it.
    case shareRemoved = 2
    /// The daemon ends, and none follows.
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
      /// A type that this version does not have.
      case unknownType(UInt16)
      /// A reserved field or padding is not zero.
      case notZero
      /// A reply without `unique`, or a notification with one.
      case wrongUnique(UInt64)
      /// A positive error, or none where there must be one.
      case wrongError(Int32)
      /// Another major version than 1.
      case wrongVersion(UInt16)
      /// A count that the packet has no room for, or of nothing.
      case wrongCount(UInt32)
      /// A record's size does not hold its names, or is not a multiple of 8.
      case wrongRecordSize(UInt32)
      /// NUL in a name or path, or "/" in a name.
      case wrongName
      /// A reason that this version does not have.
      case wrongReason(UInt32)
      /// A record that is not the one after the last.
      case sequenceGap(expected: UInt64, found: UInt64)
      /// Text that is not UTF-8.
      case notUTF8
      /// The daemon passed descriptors, which it never does.
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
