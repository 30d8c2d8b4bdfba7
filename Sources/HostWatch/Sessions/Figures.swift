/// What the daemon counts, for sd_notify's STATUS and the STATUS message.
public struct Figures: Sendable, Equatable {
  /// Sessions now.
  public var sessions = 0
  /// Filesystems that are watched now.
  public var filesystems = 0
  /// Registrations now, of all sessions.
  public var nodes = 0
  /// Records read from the kernel since the start.
  public var kernelEvents: UInt64 = 0
  /// Records queued for sessions since the start.
  public var delivered: UInt64 = 0
  /// Records the daemon worked out from the filesystem since the start.
  public var corrected: UInt64 = 0
  /// Gaps (LOST messages) since the start.
  public var lost: UInt64 = 0
  /// Batches by their lag since the start; one more than `lagBoundsMicroseconds`.
  public var lag = [UInt64](repeating: 0, count: lagBoundsMicroseconds.count + 1)

  /// Upper bounds of `lag`'s buckets but the last, in microseconds.
  public static let lagBoundsMicroseconds = Lag.boundsMicroseconds

  /// All zero.
  public init() {}
}

/// One look at a filesystem's group, for those who want to see that it is read.
public struct QueueObservation: Sendable, Equatable {
  /// The superblock's device number.
  public let device: UInt64
  /// Whether the kernel has something queued.
  public let isReadable: Bool
  /// Reads that returned records since the group was made.
  public let reads: UInt64
  /// For how long reads may be held back now, in microseconds.
  public let delayMicroseconds: UInt64

  /// One look, put together by hand in tests.
  public init(device: UInt64, isReadable: Bool, reads: UInt64, delayMicroseconds: UInt64) {
    self.device = device
    self.isReadable = isReadable
    self.reads = reads
    self.delayMicroseconds = delayMicroseconds
  }
}
