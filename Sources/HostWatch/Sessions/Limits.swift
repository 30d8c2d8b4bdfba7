import CHostWatch

/// What clients may use. The defaults are the protocol's.
public struct Limits: Sendable, Equatable {
  /// Sessions of all clients together.
  public var sessions = Int(HW_SESSIONS_DEFAULT)
  /// Sessions of one unprivileged uid.
  public var sessionsPerUser = Int(HW_SESSIONS_PER_USER_DEFAULT)
  /// Filesystems without a share that one unprivileged uid has sessions on.
  public var filesystemsPerUser = Int(HW_FILESYSTEMS_PER_USER_DEFAULT)
  /// Registered nodes of one privileged session.
  public var nodesPerSession = Int(HW_NODES_DEFAULT)
  /// Registered nodes of one session of another user than root.
  public var nodesPerSessionUnprivileged = Int(HW_NODES_UNPRIVILEGED_DEFAULT)
  /// Bytes queued for one session.
  public var queuePerSession = Int(HW_QUEUE_DEFAULT)
  /// Bytes queued for all sessions of one unprivileged uid.
  public var queuePerUser = Int(HW_QUEUE_PER_USER_DEFAULT)
  /// Descriptors in requests that are not read because the client does not read
  /// either, in all connections of one unprivileged uid.
  public var descriptorsPerUser = 16384
  /// Longest time an event may be held back to batch it, in microseconds.
  public var maxDelayMicroseconds: UInt32 = 1000

  /// The defaults.
  public init() {}
}

/// A share of the configuration: a directory that clients may name.
public struct ShareConfiguration: Sendable, Equatable {
  /// What clients call it.
  public var name: String
  /// Absolute path of the root directory.
  public var path: String
  /// Numeric ids; uid 0 is always allowed.
  public var allowedUsers: Set<UInt32>
  /// Numeric ids; one of the peer's groups is enough.
  public var allowedGroups: Set<UInt32>
  /// What sessions on this share may ask for.
  public var events: EventMask

  /// A share as the configuration has it.
  public init(
    name: String, path: String, allowedUsers: Set<UInt32> = [], allowedGroups: Set<UInt32> = [],
    events: EventMask = .allEvents
  ) {
    self.name = name
    self.path = path
    self.allowedUsers = allowedUsers
    self.allowedGroups = allowedGroups
    self.events = events
  }
}
