/// Something an operator may want to know. The library returns these through
/// `Hub.report`; the daemon logs them.
public struct Diagnostic: Sendable {
  /// How urgent it is, in syslog's values.
  public enum Severity: Int, Sendable {
    /// Something does not work.
    case error = 3
    /// Something was lost or left out.
    case warning = 4
    /// Unusual, and in order.
    case notice = 5
    /// The daemon's ordinary life.
    case info = 6
    /// For whoever looks for a mistake.
    case debug = 7
  }

  /// What happened. Each has one MESSAGE_ID in the journal.
  public enum Kind: String, Sendable, CaseIterable {
    /// A share's filesystem is watched.
    case shareReady
    /// A share's path is not there, or cannot be watched.
    case shareUnavailable
    /// A share's filesystem was unmounted.
    case shareDetached
    /// A share left the configuration.
    case shareRemoved
    /// A client's INIT was granted.
    case sessionStarted
    /// A session that had been granted is over.
    case sessionEnded
    /// A client was not let in.
    case sessionRefused
    /// A client sent what is not the protocol; its session is over.
    case protocolViolation
    /// The kernel's queue overflowed.
    case kernelQueueOverflow
    /// A client did not read, and its queue overflowed.
    case sessionQueueOverflow
    /// A filesystem is watched.
    case filesystemAttached
    /// A filesystem is watched no longer.
    case filesystemDetached
    /// A filesystem's events or names cannot be read.
    case filesystemFailed
    /// The kernel's queue is shorter than was asked for.
    case queueSizeLimited
    /// Something of what an earlier process handed over could not be used.
    case takeUpFailed
    /// A user has too many descriptors on their way.
    case descriptorsLimited
    /// What has no kind of its own.
    case other
  }

  /// Which of the kinds; its MESSAGE_ID.
  public var kind: Kind
  /// How urgent it is.
  public var severity: Severity
  /// One sentence or two: what is so, and what to do.
  public var message: String
  /// The session it is about, by ``HostWatchClient/Session/id``.
  public var session: UInt64?
  /// The share it is about, by its name.
  public var share: String?
  /// Whose session it is.
  public var peer: PeerIdentity?
  /// A positive errno.
  public var errno: Int32?

  /// The kind, its severity and the sentence; then what it is about.
  public init(
    _ kind: Kind, _ severity: Severity, _ message: String, session: UInt64? = nil,
    share: String? = nil, peer: PeerIdentity? = nil, errno: Int32? = nil
  ) {
    self.kind = kind
    self.severity = severity
    self.message = message
    self.session = session
    self.share = share
    self.peer = peer
    self.errno = errno
  }
}

/// Who is at the other end of a session's socket (SO_PEERCRED).
public struct PeerIdentity: Sendable, Equatable {
  /// As it was when the peer connected.
  public let pid: Int32
  /// The effective user id.
  public let uid: UInt32
  /// The effective group id.
  public let gid: UInt32
  /// Supplementary groups (SO_PEERGROUPS).
  public let groups: [UInt32]

  /// A peer by its credentials.
  public init(pid: Int32, uid: UInt32, gid: UInt32, groups: [UInt32]) {
    self.pid = pid
    self.uid = uid
    self.gid = gid
    self.groups = groups
  }

  /// Whether it may watch what it cannot open.
  public var isPrivileged: Bool { uid == 0 }
}
