import Glibc
import HostWatch

/// What a daemon was started with, as far as it decides about the configuration.
struct DaemonCommand: Equatable {
  /// The file of `--config`; nil for the default one.
  private(set) var configuration: String?
  /// What each `--share` says.
  private(set) var shares: [String] = []
  /// Where the daemon takes a relative path from; nil if that is not known.
  private(set) var directory: String?

  /// From the words after the program's name.
  init(_ words: some Sequence<String>, directory: String? = nil) {
    self.directory = directory
    var option: String?
    for word in words {
      if let name = option {
        take(name, word)
        option = nil
      } else if let equals = word.firstIndex(of: "=") {
        take(String(word[..<equals]), String(word[word.index(after: equals)...]))
      } else if word.hasPrefix("--"), word != "--check-config" {
        // Each of the daemon's other options has a value.
        option = word
      }
    }
  }

  private mutating func take(_ option: String, _ value: String) {
    switch option {
    case "--config": configuration = value
    case "--share": shares.append(value)
    default: break
    }
  }

  /// Of the process that answers; nil if it may not be looked at.
  init?(pid: Int) {
    let folder = "/proc/\(pid)"
    // It may have said the number that it has in another pid namespace.
    guard Probe.contents("\(folder)/comm") == "hostwatchd",
      let text = Probe.contents("\(folder)/cmdline"), !text.isEmpty
    else { return nil }
    let words = text.split(separator: "\0", omittingEmptySubsequences: false).dropLast()
    self.init(words.dropFirst().map(String.init), directory: Probe.link("\(folder)/cwd"))
  }

  /// Of a unit's ExecStart as `systemctl show` has it, in which spaces separate the words:
  /// `{ path=/usr/sbin/hostwatchd ; argv[]=/usr/sbin/hostwatchd --config … ; ignore_errors=… }`.
  init?(execStart: String) {
    guard let start = execStart.firstRange(of: "argv[]=") else { return nil }
    let rest = execStart[start.upperBound...]
    let end = rest.firstRange(of: " ; ")?.lowerBound ?? rest.endIndex
    let words = rest[..<end].split(separator: " ").map(String.init)
    // A service starts in the root directory.
    self.init(words.dropFirst(), directory: "/")
  }

  /// The file as an absolute path; nil for the default one, and if it is relative to a
  /// directory that is not known.
  var path: String? {
    guard let configuration, !configuration.hasPrefix("/") else { return configuration }
    return directory.map { $0 == "/" ? "/\(configuration)" : "\($0)/\(configuration)" }
  }

  /// The options that make `--check-config` read what the daemon reads.
  var arguments: [String] {
    (path.map { ["--config", $0] } ?? []) + shares.flatMap { ["--share", $0] }
  }
}
