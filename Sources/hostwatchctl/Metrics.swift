import ArgumentParser
import Glibc
import HostWatch

struct Metrics: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Print the daemon's figures as Prometheus text.",
    discussion: """
      For the textfile collector of the node exporter: with --output the file is replaced at \
      once, so that it is never read half written. Run it as root, for others see their own \
      sessions only.
      """)

  @OptionGroup var daemon: DaemonOptions

  @Option(
    help: ArgumentHelp("Write to this file instead of the standard output.", valueName: "file"),
    completion: .file())
  var output: String?

  func run() throws {
    let text = MetricsText(try daemon.status()).text
    guard let output else { return Output.write(Array(text.utf8), to: STDOUT_FILENO) }
    let temporary = "\(output).\(getpid())"
    let file = unsafe open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
    guard file >= 0 else { throw failed(temporary) }
    let bytes = Array(text.utf8)
    // At most the array's count is read from it.
    let written = unsafe bytes.withUnsafeBytes { unsafe write(file, $0.baseAddress, $0.count) }
    let isComplete = written == bytes.count && close(file) == 0
    guard isComplete, unsafe rename(temporary, output) == 0 else {
      let error = failed(output)
      _ = unsafe unlink(temporary)
      throw error
    }
  }

  private func failed(_ path: String) -> ExitCode {
    let code = errno
    Exit.say("\(path) cannot be written: \(SystemError.text(code))")
    return code == EACCES || code == EPERM ? Exit.permission : Exit.unavailable
  }
}

/// STATUS as Prometheus' text format, version 0.0.4. What a daemon does not tell is
/// left out.
struct MetricsText {
  private(set) var text = ""

  init(_ status: JSON) {
    family(
      "up_seconds", "gauge", "Time since the daemon started.", [([], status["uptime_seconds"])])
    let totals = status["totals"]
    family("sessions", "gauge", "Sessions attached.", [([], totals["sessions"])])
    family("nodes", "gauge", "Objects registered by all sessions.", [([], totals["nodes"])])
    family(
      "kernel_events_total", "counter", "Records read from the kernel.",
      [([], totals["kernel_events"])])
    family(
      "delivered_total", "counter", "Records queued for sessions.", [([], totals["delivered"])])
    family(
      "corrected_total", "counter", "Records worked out from the filesystem.",
      [([], totals["corrected"])])
    family("lost_total", "counter", "Gaps told to sessions with LOST.", [([], totals["lost"])])
    filesystems(status["filesystems"].elements)
    let bounds = status["lag_bounds_us"]
    shares(status["shares"].elements, bounds)
    sessions(status["sessions"].elements, bounds)
  }

  private mutating func filesystems(_ rows: [JSON]) {
    func samples(_ key: String) -> [Sample] { rows.map { (Self.filesystem($0), $0[key]) } }
    family(
      "filesystem_kernel_events_total", "counter", "Records read from the kernel.",
      samples("kernel_events"))
    family(
      "filesystem_corrected_total", "counter", "Records worked out from the filesystem.",
      samples("corrected"))
    family(
      "filesystem_overflows_total", "counter", "Times the kernel's queue was full.",
      samples("overflows"))
    family(
      "filesystem_queue_events", "gauge", "Events in the kernel's queue.", samples("queue_events"))
    lag(
      "filesystem_lag_seconds",
      "Time of a batch from its group being found readable to its records being sent.", rows,
      Self.filesystem
    ) { $0["lag_bounds_us"] }
  }

  /// A histogram of what counted itself into buckets.
  private mutating func lag(
    _ name: String, _ help: String, _ rows: [JSON], _ labels: (JSON) -> [Label],
    _ bounds: (JSON) -> JSON
  ) {
    let rows = rows.filter {
      let count = $0["lag_counts"].elements.count
      return count > 0 && count == bounds($0).elements.count + 1
    }
    guard !rows.isEmpty else { return }
    let name = header(name, "histogram", help)
    for row in rows {
      let labels = labels(row)
      let bounds = bounds(row).elements.map { Self.seconds($0) } + ["+Inf"]
      var total: UInt64 = 0
      for (bound, count) in zip(bounds, row["lag_counts"].elements) {
        total &+= UInt64(clamping: count.integer ?? 0)
        line(name + "_bucket", labels + [("le", bound)], "\(total)")
      }
      line(name + "_sum", labels, Self.seconds(row["lag_sum_us"]))
      line(name + "_count", labels, "\(total)")
    }
  }

  /// What shares and sessions tell alike.
  private mutating func traffic(
    _ prefix: String, _ rows: [JSON], _ bounds: JSON, _ labels: (JSON) -> [Label]
  ) {
    let families = [
      ("queue_bytes", "gauge", "Bytes that wait for clients.", "queue_bytes"),
      ("delivered_total", "counter", "Records queued.", "delivered"),
      ("delivered_bytes_total", "counter", "Bytes of the records queued.", "delivered_bytes"),
      ("corrected_total", "counter", "Records worked out from the filesystem.", "corrected"),
      ("dropped_total", "counter", "Records that found a queue full.", "dropped"),
      ("lost_total", "counter", "Gaps told with LOST.", "lost"),
    ]
    for (name, type, help, key) in families {
      family("\(prefix)_\(name)", type, help, rows.map { (labels($0), $0[key]) })
    }
    lag(
      "\(prefix)_lag_seconds",
      "Time of a batch from its group being found readable to the client's socket having it all.",
      rows, labels
    ) { _ in bounds }
  }

  private mutating func shares(_ rows: [JSON], _ bounds: JSON) {
    func labels(_ row: JSON) -> [Label] { [("share", row["name"].text ?? "")] }
    family(
      "share_ready", "gauge", "Whether the share is watched.",
      rows.map { (labels($0), .number($0["state"].text == "ready" ? 1 : 0)) })
    family(
      "share_sessions", "gauge", "Sessions on the share.", rows.map { (labels($0), $0["sessions"]) }
    )
    traffic("share", rows, bounds, labels)
  }

  private mutating func sessions(_ rows: [JSON], _ bounds: JSON) {
    func labels(_ row: JSON) -> [Label] {
      let id: String = if case .number(let digits) = row["id"] { digits } else { "" }
      return [("session", id), ("share", row["share"].text ?? "")]
    }
    family(
      "session_nodes", "gauge", "Objects registered.", rows.map { (labels($0), $0["nodes"]) })
    family(
      "session_queue_limit_bytes", "gauge", "Bytes that may wait.",
      rows.map { (labels($0), $0["queue_limit"]) })
    traffic("session", rows, bounds, labels)
  }

  // MARK: The format

  private typealias Label = (name: String, value: String)
  private typealias Sample = (labels: [Label], value: JSON)

  private static func filesystem(_ row: JSON) -> [Label] {
    [("device", row["device"].text ?? ""), ("type", row["type"].text ?? "")]
  }

  private mutating func header(_ name: String, _ type: String, _ help: String) -> String {
    text += "# HELP hostwatch_\(name) \(help)\n# TYPE hostwatch_\(name) \(type)\n"
    return "hostwatch_\(name)"
  }

  private mutating func family(_ name: String, _ type: String, _ help: String, _ samples: [Sample])
  {
    let known = samples.compactMap { sample -> ([Label], String)? in
      guard case .number(let digits) = sample.value else { return nil }
      return (sample.labels, digits)
    }
    guard !known.isEmpty else { return }
    let full = header(name, type, help)
    for (labels, value) in known { line(full, labels, value) }
  }

  private mutating func line(_ name: String, _ labels: [Label], _ value: String) {
    let inner = labels.map { "\($0.name)=\"\(Self.escaped($0.value))\"" }.joined(separator: ",")
    text += inner.isEmpty ? "\(name) \(value)\n" : "\(name){\(inner)} \(value)\n"
  }

  /// Backslash, quote and newline, as the format asks.
  static func escaped(_ value: String) -> String {
    var result = ""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\\": result += "\\\\"
      case "\"": result += "\\\""
      case "\n": result += "\\n"
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result
  }

  private static func seconds(_ microseconds: JSON) -> String {
    "\((microseconds.double ?? 0) / 1_000_000)"
  }
}
