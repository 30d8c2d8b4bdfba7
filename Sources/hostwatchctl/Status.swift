import ArgumentParser
import HostWatch

struct Status: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show filesystems, shares, sessions and figures.",
    discussion: """
      Root sees everything; other users see the totals and their own sessions.

      Of a session, QUEUE is what waits for its client, in bytes, and LIMIT what may. DROPPED counts records that \
      found the queue full; each time that happens the client gets one LOST, and the daemon \
      checks everything that is registered. OBJECTS are the inodes that sessions have \
      registered on a filesystem, QUEUE is the length of the kernel's queue there in events, and \
      OVERFLOWS how often it was full.

      With --json the daemon's own answer is printed: one object with "version", "pid", \
      "uptime_seconds", "totals", "filesystems", "shares" and "sessions".
      """)

  @OptionGroup var daemon: DaemonOptions

  @Flag(help: "Print the daemon's JSON.")
  var json = false

  func run() throws {
    let text: String
    do throws(HostWatchClient.Failure) {
      text = try HostWatchClient.Connection(path: daemon.socketPath)
        .status(timeoutMilliseconds: 10_000)
    } catch {
      throw Exit.because(error, socketPath: daemon.socketPath)
    }
    if json { return Output.line(text) }
    var output = Output()
    do throws(JSONError) {
      for line in StatusReport(try JSONParser.parse(text)).lines { output.line(line) }
    } catch {
      Exit.say("the daemon's status: \(error)")
      throw Exit.protocol
    }
    output.flush()
  }
}
