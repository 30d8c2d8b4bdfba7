import CHostWatch
import Glibc

/// Builds one JSON value, in order. Strings are escaped; what is not UTF-8
/// cannot get here.
struct JSONWriter {
  private(set) var text = ""
  private var needsComma = false

  mutating func object(_ key: String? = nil, _ body: (inout JSONWriter) -> Void) {
    nest(key, "{", "}", body)
  }

  mutating func array(_ key: String? = nil, _ body: (inout JSONWriter) -> Void) {
    nest(key, "[", "]", body)
  }

  mutating func number(_ key: String, _ value: some BinaryInteger) { raw(key, "\(value)") }
  /// Three decimals, as much as a rate or an age needs.
  mutating func number(_ key: String, _ value: Double) {
    let thousandths = Int64(exactly: (value * 1000).rounded()) ?? .max
    let rest = String(thousandths % 1000 + 1000).dropFirst()
    raw(key, "\(thousandths / 1000).\(rest)")
  }
  mutating func bool(_ key: String, _ value: Bool) { raw(key, value ? "true" : "false") }
  mutating func string(_ key: String, _ value: String?) {
    raw(key, value.map(Self.quoted) ?? "null")
  }
  mutating func strings(_ key: String, _ values: [String]) {
    raw(key, "[" + values.map(Self.quoted).joined(separator: ",") + "]")
  }

  mutating func numbers(_ key: String, _ values: [some BinaryInteger]) {
    raw(key, "[" + values.map { "\($0)" }.joined(separator: ",") + "]")
  }

  private mutating func raw(_ key: String?, _ value: String) {
    if needsComma { text += "," }
    if let key { text += Self.quoted(key) + ":" }
    text += value
    needsComma = true
  }

  private mutating func nest(
    _ key: String?, _ open: String, _ close: String, _ body: (inout JSONWriter) -> Void
  ) {
    raw(key, open)
    needsComma = false
    body(&self)
    text += close
    needsComma = true
  }

  static func quoted(_ value: String) -> String {
    var result = "\""
    for scalar in value.unicodeScalars {
      switch scalar {
      case "\"": result += "\\\""
      case "\\": result += "\\\\"
      case "\n": result += "\\n"
      case _ where scalar.value < 0x20:
        let hex = String(scalar.value, radix: 16)
        result += "\\u" + String(repeating: "0", count: 4 - hex.count) + hex
      default: result.unicodeScalars.append(scalar)
      }
    }
    return result + "\""
  }
}

extension Hub {
  /// What the daemon counts, all of it since its start.
  public var figures: Figures {
    var figures = Figures()
    figures.sessions = sessions.values.count(where: \.isAttached)
    figures.filesystems = filesystems.count
    figures.kernelEvents = pastEvents
    figures.delivered = pastDelivered
    figures.corrected = pastCorrected
    figures.lost = pastLost
    var lag = pastLag
    for session in sessions.values {
      figures.nodes += session.nodeCount
      figures.lost += session.lostCount
    }
    for filesystem in filesystems.values {
      figures.kernelEvents += filesystem.recordsRead
      figures.delivered += filesystem.router.delivered
      figures.corrected += filesystem.reconciler.counters.corrected
      lag.add(filesystem.lag)
    }
    figures.lag = lag.counts
    return figures
  }

  /// Every group as it is now.
  public var queueObservations: [QueueObservation] {
    filesystems.values.map {
      QueueObservation(
        device: $0.device, isReadable: $0.hasEvents, reads: $0.batches,
        delayMicroseconds: $0.delay)
    }
  }

  /// The STATUS reply: unprivileged peers see totals and their own sessions.
  func statusJSON(for session: Session) -> String {
    let now = Syscall.monotonicMicroseconds()
    var shown = sessions.values.filter {
      $0.isAttached && (session.isPrivileged || $0.peer.uid == session.peer.uid)
    }.sorted { $0.id < $1.id }
    let visible = shown.count
    // A reply is one packet: of very many sessions the newest are left out,
    // then the shares.
    let visibleShares = session.isPrivileged ? shares : []
    var shownShares = visibleShares
    while true {
      let leftOut = (visible - shown.count, visibleShares.count - shownShares.count)
      let text = statusText(session, shown, shownShares, leftOut: leftOut, now)
      if text.utf8.count + MemoryLayout<hw_reply>.size <= Int(HW_PACKET_MAX) { return text }
      if !shown.isEmpty {
        shown.removeLast(max(1, shown.count / 4))
      } else if !shownShares.isEmpty {
        shownShares.removeLast(max(1, shownShares.count / 4))
      } else {
        return "{}"  // filesystems alone never fill a packet
      }
    }
  }

  private func statusText(
    _ session: Session, _ shown: [Session], _ shownShares: [Share],
    leftOut: (sessions: Int, shares: Int), _ now: UInt64
  ) -> String {
    var writer = JSONWriter()
    writer.object { json in
      json.string("version", Hub.version)
      json.number("pid", getpid())
      json.number("uptime_seconds", Double(now - started) / 1_000_000)
      json.bool("privileged", session.isPrivileged)
      json.object("reload") {
        $0.number("count", reloads)
        $0.string("error", session.isPrivileged ? reloadError : nil)
      }
      totals(&json, now)
      json.numbers("lag_bounds_us", Lag.boundsMicroseconds)
      json.array("filesystems") { list in
        guard session.isPrivileged else { return }
        for filesystem in filesystems.values.sorted(by: { $0.device < $1.device }) {
          list.object { describe(filesystem, &$0) }
        }
      }
      json.array("shares") { list in
        for share in shownShares { list.object { describe(share, &$0) } }
      }
      json.array("sessions") { list in
        for session in shown { list.object { describe(session, &$0, now) } }
      }
      json.number("sessions_left_out", leftOut.sessions)
      json.number("shares_left_out", leftOut.shares)
    }
    return writer.text
  }

  private func totals(_ json: inout JSONWriter, _ now: UInt64) {
    let figures = figures
    json.object("totals") {
      $0.number("sessions", figures.sessions)
      $0.number("nodes", figures.nodes)
      $0.number("kernel_events", figures.kernelEvents)
      $0.number("delivered", figures.delivered)
      $0.number("corrected", figures.corrected)
      $0.number("lost", figures.lost)
      let seconds = max(0.001, Double(now - started) / 1_000_000)
      // Those of the processes before are not of this one's time.
      $0.number("events_per_second", Double(figures.kernelEvents - eventsBefore) / seconds)
    }
  }

  private func describe(_ filesystem: WatchedFilesystem, _ json: inout JSONWriter) {
    json.string("device", MountTable.text(filesystem.device))
    json.string("type", filesystem.name)
    json.strings("mask", filesystem.mask.eventNames)
    json.number("queue_events", filesystem.queuedEvents ?? 0)
    json.number("queue_limit", filesystem.queueLimit)
    json.number("sessions", filesystem.sessions.count)
    json.number("objects", filesystem.router.nodes.count)
    json.number("kernel_events", filesystem.recordsRead)
    json.number("overflows", filesystem.overflows)
    json.number("batches", filesystem.batches)
    json.numbers("lag_bounds_us", Lag.boundsMicroseconds)
    json.numbers("lag_counts", filesystem.lag.counts)
    json.number("lag_sum_us", filesystem.lag.sum)
    json.number("largest_batch", filesystem.largestBatch)
    json.number("merged", filesystem.reconciler.counters.merged)
    json.number("lookups", filesystem.reconciler.counters.lookups)
    json.number("corrected", filesystem.reconciler.counters.corrected)
  }

  private func describe(_ share: Share, _ json: inout JSONWriter) {
    json.string("name", share.configuration.name)
    json.string("path", share.configuration.path)
    json.string("state", share.filesystem == nil ? "unavailable" : "ready")
    json.string("error", share.filesystem == nil ? share.error : nil)
    var traffic = share.past
    var (count, queued) = (0, 0)
    for session in sessions.values where session.share == share.configuration.name {
      traffic.add(Traffic(session))
      queued += unsafe session.state.pointee.queue.queued
      if session.isAttached { count += 1 }
    }
    json.number("sessions", count)
    json.number("queue_bytes", queued)
    describe(traffic, &json)
  }

  private func describe(_ traffic: Traffic, _ json: inout JSONWriter) {
    json.number("delivered", traffic.delivered)
    json.number("delivered_bytes", traffic.bytes)
    json.number("corrected", traffic.corrected)
    json.number("dropped", traffic.dropped)
    json.number("lost", traffic.lost)
    json.numbers("lag_counts", traffic.lag.counts)
    json.number("lag_sum_us", traffic.lag.sum)
  }

  private func describe(_ session: Session, _ json: inout JSONWriter, _ now: UInt64) {
    let state = unsafe session.state.pointee
    json.number("id", session.id)
    json.string("mode", session.isTree ? "tree" : "nodes")
    json.string("share", session.share)
    json.string("path", session.path)
    json.number("pid", session.peer.pid)
    json.number("uid", session.peer.uid)
    json.strings("events", state.events.eventNames)
    json.strings("options", Self.optionNames(state.options))
    json.number("nodes", session.nodeCount)
    json.number("queue_bytes", state.queue.queued)
    json.number("queue_limit", state.queue.limit)
    describe(Traffic(session), &json)
    json.number("sequence", state.sequence)
    json.number("age_seconds", Double(now - session.created) / 1_000_000)
    json.number("max_delay_us", session.maxDelayMicroseconds)
  }

  private static func optionNames(_ options: UInt32) -> [String] {
    let names: [(UInt32, String)] = [
      (UInt32(HW_SUPPRESS_ECHO), "suppress-echo"),
      (UInt32(HW_EXPLICIT_INTEREST), "explicit-interest"),
      (UInt32(HW_WANT_PID), "want-pid"), (UInt32(HW_WANT_PATH), "want-path"),
    ]
    return names.filter { options & $0.0 != 0 }.map(\.1)
  }
}
