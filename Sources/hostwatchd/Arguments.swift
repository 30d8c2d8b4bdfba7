import ArgumentParser
import Glibc
import HostWatch
import Logging

/// `--share NAME=PATH`.
struct ShareArgument: ExpressibleByArgument, Equatable {
  let name: String
  let path: String

  /// A relative path is taken from the working directory, as a shell's user
  /// means it.
  init?(argument: String) {
    guard let separator = argument.firstIndex(of: "=") else { return nil }
    name = String(argument[..<separator])
    let given = String(argument[argument.index(after: separator)...])
    guard ConfigurationReader.problem(withShareName: name) == nil, !given.isEmpty,
      let path = absolutePath(given), path.utf8.count <= Configuration.Range.pathBytes
    else { return nil }
    self.path = path
  }

  /// For uid 0, and for whoever runs the daemon, who could read it anyway.
  var configuration: ShareConfiguration {
    ShareConfiguration(name: name, path: path, allowedUsers: [0, geteuid()])
  }
}

/// `--socket PATH`.
struct SocketPathArgument: ExpressibleByArgument, Equatable {
  let path: String

  init?(argument: String) {
    guard !argument.isEmpty, let path = absolutePath(argument),
      path.utf8.count <= Configuration.Range.socketPathBytes
    else { return nil }
    self.path = path
  }
}

/// `--log-level LEVEL`.
struct LogLevelArgument: ExpressibleByArgument, Equatable {
  let level: Logger.Level

  init?(argument: String) {
    guard let level = Logger.Level(rawValue: argument) else { return nil }
    self.level = level
  }

  static var allValueStrings: [String] { logLevelNames }
}

private func absolutePath(_ path: String) -> String? {
  if path.hasPrefix("/") { return path }
  guard let directory = unsafe getcwd(nil, 0) else { return nil }
  // getcwd allocated it, NUL-terminated, for us to free.
  defer { unsafe free(directory) }
  let prefix = unsafe String(cString: directory)
  return prefix == "/" ? "/" + path : prefix + "/" + path
}
