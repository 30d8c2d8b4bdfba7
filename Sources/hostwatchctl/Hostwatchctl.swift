import ArgumentParser
import HostWatch

@main
struct Hostwatchctl: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hostwatchctl",
    abstract: "Look into hostwatchd and at what it sees.",
    discussion: """
      hostwatchd watches the filesystems of this host and tells FUSE servers what changed in \
      them behind their backs. hostwatchctl shows its sessions and figures, prints the changes \
      it sees, and finds out why it sees none.

      EXIT STATUS
        0   all went well
        1   doctor found something that fails
        64  the command line is wrong
        69  no daemon answers, or it cannot serve what was asked
        76  the other side does not speak the protocol
        77  permission denied
        128 and more: ended by the signal with that number less 128
      """,
    version: Hub.version,
    subcommands: [
      Status.self, Top.self, Watch.self, Sync.self, Doctor.self, Reload.self, Metrics.self,
    ])

  @OptionGroup var daemon: DaemonOptions
}

/// What every command takes, before its name or after it.
struct DaemonOptions: ParsableArguments {
  @Option(
    name: .customLong("socket"),
    help: ArgumentHelp("Where the daemon listens.", valueName: "path"),
    completion: .file())
  var socketPath = HostWatchClient.Connection.defaultSocketPath

  /// Connects, or ends the process with what to do.
  func connect() throws -> HostWatchClient.Connection {
    do {
      return try HostWatchClient.Connection(path: socketPath)
    } catch {
      throw Exit.because(error, socketPath: socketPath)
    }
  }
}

/// What a session is about: a share's name or a directory.
struct RootArgument: ParsableArguments {
  @Argument(
    help: ArgumentHelp(
      "A share of the daemon's configuration, or a directory: what contains \"/\" or names "
        + "a directory here.",
      valueName: "share|path"),
    completion: .directory)
  var root: String

  /// Calls `body` with the root; a directory is open during the call alone.
  func withRoot<Result>(
    openFlags: Int32, _ body: (HostWatchClient.Attachment.Root) throws -> Result
  ) throws -> Result {
    guard root.contains("/") || Probe.isDirectory(root) else { return try body(.share(root)) }
    switch Probe.openDirectory(root, openFlags) {
    case .failure(let error): throw Exit.because(.system(error), socketPath: "")
    case .success(let number):
      let directory = OwnedDescriptor(number)
      return try body(.directory(directory.rawValue))
    }
  }
}
