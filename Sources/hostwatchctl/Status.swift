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

      MOUNTS are those of hostwatchfs; they answer root. REPLAYED counts records that were \
      performed again on the mount, INVALIDATED those that were applied by dropping what the \
      kernel had cached, SUPERSEDED those that a newer change had made void, and SETTLED names \
      that had to be put right afterwards. LAG is for how long records have been applied \
      without a pause; STATE is out-of-step while records may be missing and nothing is cached.

      With --json the daemon's own answer is printed: one object with "version", "pid", \
      "uptime_seconds", "totals", "filesystems", "shares" and "sessions"; and "mounts" if there \
      are any.
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
    let mounts = Mounts.answers()
    if json { return Output.line(Self.adding(mounts, to: text)) }
    var output = Output()
    do throws(JSONError) {
      var parsed: [JSON] = []
      for mount in mounts { parsed.append(try JSONParser.parse(mount)) }
      let report = StatusReport(try JSONParser.parse(text), mounts: parsed)
      for line in report.lines { output.line(line) }
    } catch {
      Exit.say("the daemon's status: \(error)")
      throw Exit.protocol
    }
    output.flush()
  }

  /// The daemon's object with one more member.
  private static func adding(_ mounts: [String], to text: String) -> String {
    guard !mounts.isEmpty, let end = text.lastIndex(of: "}") else { return text }
    return text[..<end] + ",\"mounts\":[" + mounts.joined(separator: ",") + "]}"
  }
}
