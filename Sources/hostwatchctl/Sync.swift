import ArgumentParser
import CFanotify
import HostWatch

struct Sync: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Wait until the daemon has told everything that happened so far.",
    discussion: """
      Starts a session on the share or the directory and asks the daemon to answer once every \
      change that is complete by now has gone through its queues; then prints how long that \
      took. While the daemon makes up for a gap, the answer waits for the end of that.

      Use it in scripts to see that the daemon lives and how far behind it is.
      """)

  @OptionGroup var daemon: DaemonOptions
  @OptionGroup var root: RootArgument

  @Flag(help: "Print a JSON object with \"round_trip_us\".")
  var json = false

  @Option(help: ArgumentHelp("How long to wait for the answer.", valueName: "seconds"))
  var timeout = 60

  func validate() throws {
    guard (1...86_400).contains(timeout) else {
      throw ValidationError("--timeout must be between 1 and 86400 seconds.")
    }
  }

  func run() throws {
    do {
      // NODES, because it needs no privilege: reading the root is enough.
      try root.withRoot(openFlags: O_RDONLY) { root in try sync(root) }
    } catch let failure as HostWatchClient.Failure {
      throw Exit.because(failure, socketPath: daemon.socketPath)
    }
  }

  private func sync(_ root: HostWatchClient.Attachment.Root) throws {
    let connection = try daemon.connect()
    let milliseconds = Int32(timeout) * 1000
    _ = try connection.attach(.init(root), timeoutMilliseconds: milliseconds)
    let start = Clock.monotonicMicroseconds()
    guard case .synced = try connection.call(.sync, timeoutMilliseconds: milliseconds) else {
      throw HostWatchClient.Failure.disconnected
    }
    let took = Clock.monotonicMicroseconds() - start
    Output.line(
      json
        ? JSON.object(["round_trip_us": .number(took)]).encoded
        : "in sync after \(StatusReport.decimal(Double(took) / 1000)) ms")
  }
}
