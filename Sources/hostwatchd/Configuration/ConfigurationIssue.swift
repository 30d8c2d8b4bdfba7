import Glibc
import HostWatch

/// One thing that is wrong with a configuration file.
struct ConfigurationIssue: Error, Equatable {
  /// Counted from 1; nil when it concerns the file as a whole.
  var line: Int?
  /// The key as an operator would say it: `limits.sessions`, `share[2].path`.
  var key: String
  var problem: String
  /// What would be right.
  var remedy: String
  /// The host could not be asked just now: nothing need be wrong with the file.
  var isPassing = false

  /// `FILE:LINE: KEY: what is wrong; what would be right`.
  func text(file: String) -> String {
    let place = line.map { "\(file):\($0)" } ?? file
    let subject = key.isEmpty ? "" : "\(key): "
    return "\(place): \(subject)\(problem); \(remedy)"
  }
}

/// Everything that is wrong with one file, in the order of its lines.
struct ConfigurationRefused: Error {
  let file: String
  let issues: [ConfigurationIssue]

  var isPassing: Bool { issues.allSatisfy(\.isPassing) }
}

extension SystemError {
  /// For want of something that others may give back, or on a medium that failed.
  var isPassing: Bool { [EAGAIN, EINTR, EIO, EMFILE, ENFILE, ENOMEM].contains(code) }
}

/// A step from a table or an array to what is in it.
enum KeyStep: Hashable {
  case key(String)
  /// Counted from 0, as arrays are.
  case index(Int)
}

/// A way from the root of a file to a value.
typealias KeyPath = [KeyStep]

extension KeyPath {
  /// `share[2].path`: indices counted from 1, as people count tables.
  var text: String {
    var text = ""
    for step in self {
      switch step {
      case .key(let key):
        text += text.isEmpty ? quotedIfNeeded(key) : "." + quotedIfNeeded(key)
      case .index(let index): text += "[\(index + 1)]"
      }
    }
    return text
  }

  private func quotedIfNeeded(_ key: String) -> String {
    let bare = key.utf8.allSatisfy(SourceLocator.isBareKeyByte)
    return bare && !key.isEmpty ? key : "\"\(escapingControls(key))\""
  }
}
