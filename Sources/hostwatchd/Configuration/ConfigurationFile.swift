import CFanotify
import Glibc
import HostWatch

/// Where the configuration comes from: a file, and the command line over it.
struct ConfigurationSource {
  /// `--config`; nil means the default file, if there is one.
  var file: String?
  var socketPath: String?
  var logLevel: LogLevelArgument?
  var shares: [ShareArgument] = []

  /// The file that is read.
  var path: String { file ?? Configuration.defaultFile }

  /// The configuration in force once `load` returns it.
  ///
  /// - Parameter mayBeMissing: whether the absence of the default file means
  ///   the defaults. At a reload of a file that was there it is a mistake.
  func load(mayBeMissing: Bool = true) throws(ConfigurationRefused) -> Configuration {
    var configuration = Configuration()
    switch ConfigurationSource.contents(of: path) {
    case .success(let bytes): configuration = try parse(bytes)
    case .failure(let error) where error.code == ENOENT && file == nil && mayBeMissing: break
    case .failure(let error):
      let problem = "it cannot be read: \(SystemError.text(error.code))"
      let remedy =
        error.isPassing ? "try again" : "name a file that exists and is readable"
      throw refused("", problem, remedy, isPassing: error.isPassing)
    }
    if let socketPath { configuration.socketPath = socketPath }
    if let logLevel { configuration.logLevel = logLevel.level }
    for share in shares {
      guard !configuration.shares.contains(where: { $0.name == share.name }) else {
        throw refused(
          "share", "\(quoted(share.name)) is a share of this file and of --share",
          "give each its own name")
      }
      configuration.shares.append(share.configuration)
    }
    return configuration
  }

  private func parse(_ bytes: [UInt8]) throws(ConfigurationRefused) -> Configuration {
    guard !bytes.contains(0), let text = String(validating: bytes, as: UTF8.self) else {
      throw refused("", "it is not UTF-8 text", "write TOML as https://toml.io describes it")
    }
    return try ConfigurationReader.read(text, file: path)
  }

  private func refused(
    _ key: String, _ problem: String, _ remedy: String, isPassing: Bool = false
  ) -> ConfigurationRefused {
    let issue = ConfigurationIssue(
      line: nil, key: key, problem: problem, remedy: remedy, isPassing: isPassing)
    return ConfigurationRefused(file: path, issues: [issue])
  }

  /// The bytes of a file; EFBIG if there are more than a configuration of ours has, or than
  /// `limit`.
  static func contents(of path: String, atMost limit: Int = 1 << 20)
    -> Result<[UInt8], SystemError>
  {
    let number = unsafe hw_openat(AT_FDCWD, path, O_RDONLY | O_NOCTTY, 0)
    guard number >= 0 else { return .failure(SystemError("open(\(path))", -number)) }
    let file = OwnedDescriptor(number)
    return Result { () throws(SystemError) in
      try contents(of: file.rawValue, path, atMost: limit)
    }
  }

  /// The bytes from where the descriptor stands; `name` is for errors.
  static func contents(of descriptor: Int32, _ name: String, atMost limit: Int)
    throws(SystemError) -> [UInt8]
  {
    var bytes: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65_536)
    while true {
      // The kernel writes at most the chunk's own count.
      let count = unsafe chunk.withUnsafeMutableBytes {
        unsafe Glibc.read(descriptor, $0.baseAddress, $0.count)
      }
      if count < 0, errno == EINTR { continue }
      guard count >= 0 else { throw SystemError("read(\(name))", errno) }
      guard count > 0 else { return bytes }
      bytes += chunk[..<count]
      guard bytes.count <= limit else { throw SystemError("read(\(name))", EFBIG) }
    }
  }
}
