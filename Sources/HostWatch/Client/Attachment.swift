import CFanotify
import CHostWatch

extension HostWatchClient {
  /// What a session is to watch and how: the INIT message.
  public struct Attachment: Sendable {
    /// What the session is about.
    public enum Root: Sendable, Hashable {
      /// A share of the daemon's configuration.
      case share(String)
      /// An open descriptor of the root directory, which the caller keeps.
      case directory(Int32)
    }

    /// In whose terms events are told, and about what.
    public enum Mode: UInt16, Sendable {
      /// Events about what is registered, in the server's own identities.
      case nodes = 1
      /// Events about everything below the root; nodeid is the inode number.
      case tree = 2
    }

    /// The directory whose changes are told.
    public var root: Root
    /// `.nodes` for FUSE servers.
    public var mode: Mode
    /// What is left out or added; not every peer is granted everything
    /// (``HostWatchClient/Session/options``).
    public var options: Options
    /// What is told of a node that asks for nothing else; empty means ``EventMask/defaultEvents``.
    public var events: EventMask
    /// The longest time the daemon may hold events back to batch them; 0
    /// means to send at once.
    public var maxDelayMicroseconds: UInt32 = 1000
    /// The largest packet to be sent, in bytes; 0 is the protocol's default.
    public var maxPacketBytes: UInt32 = 0
    /// What the daemon may queue for this client, in bytes; 0 is its default.
    public var queueLimitBytes: UInt32 = 0
    /// With `.suppressEcho`: whose changes are left out; 0 is this process.
    public var echoProcess: UInt32 = 0

    /// A session with the daemon's own limits; change the properties for others.
    public init(
      _ root: Root, mode: Mode = .nodes, options: Options = [],
      events: EventMask = .defaultEvents
    ) {
      self.root = root
      self.mode = mode
      self.options = options
      self.events = events
    }
  }

  /// Options of a session (`hw_init.options`).
  public struct Options: OptionSet, Hashable, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }

    /// Leave out what this server did itself.
    public static let suppressEcho = Options(rawValue: UInt32(HW_SUPPRESS_ECHO))
    /// A node starts with no interest; `setInterest` sets it.
    public static let explicitInterest = Options(rawValue: UInt32(HW_EXPLICIT_INTEREST))
    /// Tell who made a change. Granted to privileged peers only.
    public static let wantPID = Options(rawValue: UInt32(HW_WANT_PID))
    /// Give paths below the root, in TREE mode.
    public static let wantPath = Options(rawValue: UInt32(HW_WANT_PATH))
  }

  /// An object to be registered.
  public struct Registration: Sendable, Hashable {
    /// The server's own identity of it; neither `.none` nor `.root`.
    public var node: NodeID
    /// An open descriptor of the object, which the caller keeps; it must stay
    /// open until `register` returns. O_PATH is enough for uid 0, others pass
    /// one that is open for reading.
    public var descriptor: Int32
    /// What to report about it; empty means the session's events (or nothing,
    /// with `.explicitInterest`).
    public var interest: EventMask
    /// The ctime that the server knows, or the last moment at which it knew
    /// its cache to be right; a later change gives a `.recheck` record. `.none`
    /// means that nothing is to be checked.
    public var since: Moment

    /// An object as the server has it open and names it.
    public init(
      _ node: NodeID, descriptor: Int32, interest: EventMask = [], since: Moment = .none
    ) {
      self.node = node
      self.descriptor = descriptor
      self.interest = interest
      self.since = since
    }
  }

  /// A time on CLOCK_REALTIME, as filesystems stamp their inodes.
  public struct Moment: Sendable, Hashable {
    /// Since 1970-01-01 00:00:00 UTC.
    public var seconds: Int64
    /// 0 … 999,999,999.
    public var nanoseconds: UInt32

    /// As in `struct timespec`.
    public init(seconds: Int64, nanoseconds: UInt32) {
      self.seconds = seconds
      self.nanoseconds = nanoseconds
    }

    /// No moment: nothing is compared with it.
    public static let none = Moment(seconds: 0, nanoseconds: 0)

    /// The present, such that every change that is not complete yet has a later ctime:
    /// CLOCK_REALTIME_COARSE, which stamps inodes, less 10 ms, since a system call may set
    /// the ctime some time before it is done.
    public static func now() -> Moment {
      var now = timespec()
      _ = unsafe clock_gettime(CLOCK_REALTIME_COARSE, &now)
      let (seconds, nanoseconds) = (Int64(now.tv_sec), UInt32(now.tv_nsec))
      return nanoseconds >= 10_000_000
        ? Moment(seconds: seconds, nanoseconds: nanoseconds - 10_000_000)
        : Moment(seconds: seconds - 1, nanoseconds: nanoseconds + 990_000_000)
    }
  }
}
