/// Something an operator may want to know. The library returns these through
/// `Hub.report`; the daemon logs them.
public struct Diagnostic: Sendable {
  /// How urgent it is, in syslog's values.
  public enum Severity: Int, Sendable {
    case error = 3
    case warning = 4
    case notice = 5
    case info = 6
    case debug = 7
  }

  /// What happened. Each has one MESSAGE_ID in the journal.
  public enum Kind: String, Sendable, CaseIterable {
    case shareReady
    case shareUnavailable
    case shareDetached
    case shareRemoved
    case sessionStarted
    case sessionEnded
    case sessionRefused
    case protocolViolation
    case kernelQueueOverflow
    case sessionQueueOverflow
    case filesystemAttached
    case filesystemDetached
    case filesystemFailed
    case queueSizeLimited
    case takeUpFailed
    case descriptorsLimited
    case other
  }

  public var kind: Kind
  public var severity: Severity
  /// One sentence or two: what is so, and what to do.
  public var message: String
  public var session: UInt64?
  public var share: String?
  public var peer: PeerIdentity?
  /// A positive errno.
  public var errno: Int32?

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
  public let pid: Int32
  public let uid: UInt32
  public let gid: UInt32
  /// Supplementary groups (SO_PEERGROUPS).
  public let groups: [UInt32]

  public init(pid: Int32, uid: UInt32, gid: UInt32, groups: [UInt32]) {
    self.pid = pid
    self.uid = uid
    self.gid = gid
    self.groups = groups
  }

  public var isPrivileged: Bool { uid == 0 }
}
