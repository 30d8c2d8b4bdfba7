import ArgumentParser

struct Doctor: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Find out why changes are not seen, and what to do about it.",
    discussion: """
      Without PATH it checks the whole installation: the kernel, the limits of fanotify, the \
      daemon with its shares and capabilities, its units and its socket's rights, the \
      configuration, the journal's catalog, hostwatchfs, and what was left behind. With PATH it \
      checks the host, the daemon, and whether the filesystem there can be watched and its objects \
      be told apart. Run it as root: the daemon's own calls are then tried, and nothing is changed \
      by that, but that a socket unit starts the daemon when doctor connects.

      Each line is "ok", "warn" (it works, but not everywhere or not for ever) or "fail". The \
      exit status is 1 if something fails, else 0.

      With --json the output is one object: {"ok": bool, "checks": [{"name", "state", "finding", \
      "advice"}]}.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Flag(help: "Print one JSON object.")
  var json = false

  @Argument(help: "A directory that is to be watched.", completion: .directory)
  var path: String?

  func run() throws {
    var checks = HostChecks.all()
    if let path { checks += FilesystemChecks(path: path).all() }
    let asked = DaemonChecks.all(socketPath: daemon.socketPath)
    checks += asked.checks
    // After it was asked: a socket unit starts it then.
    if path == nil {
      checks += InstallationChecks(socketPath: daemon.socketPath, status: asked.status).all()
    }
    let failed = checks.contains { $0.state == .fail }
    var output = Output()
    if json {
      let report = JSON.object([
        "ok": .bool(!failed), "checks": .array(checks.map(\.json)),
      ])
      output.line(report.encoded)
    } else {
      for line in checks.flatMap(\.lines) { output.line(line) }
    }
    output.flush()
    if failed { throw Exit.failed }
  }
}
