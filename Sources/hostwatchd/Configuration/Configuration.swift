import CFanotify
import HostWatch
import Logging

/// What the daemon is told to do: the defaults, overlaid with a file.
///
/// A value of this type is always valid. `ConfigurationReader` makes one from
/// a text or says everything that is wrong with it.
struct Configuration: Equatable {
  static let defaultFile = "/etc/hostwatchd/hostwatchd.toml"
  static let defaultSocketPath = "/run/hostwatchd/hostwatchd.sock"

  var socketPath = Configuration.defaultSocketPath
  /// Permission bits of a socket the daemon binds itself.
  var socketMode: UInt32 = 0o660
  var logLevel = Logger.Level.info
  /// The fanotify queue wanted per filesystem, in events.
  var queueEvents = 1_048_576
  var limits = Limits()
  var shares: [ShareConfiguration] = []

  /// What may be asked for: the range of each number, and why it ends there.
  enum Range {
    /// A delay beyond a second is a stall, not a batch.
    static let maxDelayMicroseconds: ClosedRange<Int> = 0...1_000_000
    /// At about 135 bytes an event, the upper end is 8 GiB of kernel memory; at 1,040, with
    /// the longest names, 65 GiB.
    static let queueEvents: ClosedRange<Int> = 1...67_108_864
    /// Each session is a descriptor of the daemon.
    static let sessions: ClosedRange<Int> = 1...262_144
    /// INIT's reply carries max_nodes in 32 bits.
    static let nodes: ClosedRange<Int> = 0...1_073_741_824
    /// One packet has at most 253.
    static let descriptors: ClosedRange<Int> = 253...1_073_741_824
    /// A session cannot ask for less than the protocol's least queue, nor for
    /// more than fits INIT's 32 bits.
    static let queueBytes: ClosedRange<Int> = 65_536...1_073_741_824
    static let queueBytesPerUser: ClosedRange<Int> = 65_536...1_099_511_627_776
    /// sun_path less its terminating NUL.
    static let socketPathBytes = 107
    static let shareNameBytes = 255
    /// PATH_MAX less its terminating NUL.
    static let pathBytes = 4095
  }
}

/// The log levels' names, from the most to the least talkative.
let logLevelNames = Logger.Level.allCases.map(\.rawValue)
