import ArgumentParser
import Glibc
import HostWatch

struct Reload: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Let the daemon read its configuration again, and wait until it has.",
    discussion: """
      Ends with 1 and says why when the configuration is refused; the one from before stays \
      in force. Only root may do this. "systemctl reload hostwatchd" runs it.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Option(help: ArgumentHelp("How long to wait, in seconds.", valueName: "seconds"))
  var timeout: UInt32 = 30

  func run() throws {
    let before = try daemon.status()
    guard let count = before["reload"]["count"].double,
      let pid = before["pid"].double.flatMap({ Int32(exactly: $0) }), pid > 1
    else {
      Exit.say("the daemon does not tell when a reload is done; send it SIGHUP")
      throw Exit.protocol
    }
    guard kill(pid, SIGHUP) == 0 else {
      Exit.say("the daemon (pid \(pid)) cannot be signalled: \(SystemError.text(errno))")
      throw errno == EPERM ? Exit.permission : Exit.unavailable
    }
    // Ten looks a second: the daemon answers no request while it reloads.
    for _ in 0..<max(1, Int(timeout) * 10) {
      let now = try daemon.status()
      if let reached = now["reload"]["count"].double, reached > count {
        guard let error = now["reload"]["error"].text else { return }
        Exit.say("reload refused, the configuration from before stays in force: \(error)")
        throw Exit.failed
      }
      _ = usleep(100_000)
    }
    Exit.say("the reload was not done within \(timeout) s")
    throw Exit.unavailable
  }
}

extension DaemonOptions {
  /// The daemon's figures, or the end of the process.
  func status() throws -> JSON {
    let text: String
    do throws(HostWatchClient.Failure) {
      text = try HostWatchClient.Connection(path: socketPath).status(timeoutMilliseconds: 10_000)
    } catch {
      throw Exit.because(error, socketPath: socketPath)
    }
    do throws(JSONError) {
      return try JSONParser.parse(text)
    } catch {
      Exit.say("the daemon's status: \(error)")
      throw Exit.protocol
    }
  }
}
