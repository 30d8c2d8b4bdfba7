import ArgumentParser
import Glibc
import Logging

/// Where the log goes.
enum LogTarget: String, CaseIterable, ExpressibleByArgument {
  /// The journal, if standard error leads there anyway; else standard error.
  case auto
  case journal
  case stderr

  /// The handler for this process, as its environment is now.
  func handler() -> any LogHandler {
    switch self {
    case .stderr: return StderrLog()
    case .journal: return JournalLog()
    case .auto: return LogTarget.stderrIsJournal() ? JournalLog() : StderrLog()
    }
  }

  /// Whether the service manager connected standard error to the journal and
  /// nobody redirected it since: JOURNAL_STREAM names its device and inode.
  /// Then the fields go to the same place as the lines would.
  private static func stderrIsJournal() -> Bool {
    guard let value = environment("JOURNAL_STREAM") else { return false }
    guard let identity = try? FileIdentity.find(descriptor: STDERR_FILENO) else { return false }
    return value == "\(identity.device):\(identity.inode)"
  }
}

/// A variable of the environment, or nil.
func environment(_ name: String) -> String? {
  // The environment is never changed while the daemon runs; the text is copied.
  guard let value = unsafe getenv(name) else { return nil }
  return unsafe String(cString: value)
}
