import ArgumentParser
import Glibc
import HostWatch

struct Top: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Show sessions, shares and filesystems live.",
    discussion: """
      On a terminal the picture is renewed at each interval until "q". The keys that sort sessions \
      and shares: r rate, u queue, a lag, l lost, c corrected, d dropped, e delivered, n nodes, \
      i id, p pid, s share; the same key again turns the order round. The space bar renews at once. \
      Where the terminal is narrow, the columns that tell least are left out. Elsewhere, as in a \
      pipe, each interval's tables are printed whole, one after the other, with an empty line \
      between them.

      RECORDS/S, EVENTS/S and CORRECTED/S are over the last interval; "-" is not known yet. \
      DELIVERED, DROPPED, LOST and CORRECTED are counted from the start of the session or, with \
      those of sessions that have ended, of the share. QUEUE is what waits, in a session or a share \
      in bytes and on a filesystem in the kernel's events; FULL% is how much of a session's limit \
      that is. LAG-P50 and LAG-P99 are bounds under which half and 99 of 100 batches of the interval \
      stayed: on a filesystem from being found to being offered, in a session or a share until the \
      client's socket had taken them.

      With --json each interval is one object on a line: the daemon's status with "time", \
      "interval_seconds", a member whose name ends in "_rate" (per second, or null) beside the \
      counters, and "lag_p50_us" and "lag_p99_us" (microseconds, null if there was no batch, "+Inf" \
      above the last bound).
      """)

  @OptionGroup var daemon: DaemonOptions

  @Flag(help: "Print one JSON object per interval.")
  var json = false

  @Option(help: ArgumentHelp("Time between two pictures: 0.1 to 3600.", valueName: "seconds"))
  var interval = 1.0

  @Option(help: ArgumentHelp("End after so many pictures.", valueName: "n"))
  var count: Int?

  @Option(
    help: ArgumentHelp(
      "Sort by \(TopOrder.allCases.map(\.rawValue).joined(separator: ", ")).",
      valueName: "column"))
  var sort = TopOrder.rate

  func validate() throws {
    guard count.map({ $0 > 0 }) ?? true else { throw ValidationError("--count must be above 0.") }
    guard interval >= 0.1, interval <= 3600 else {
      throw ValidationError("--interval must be 0.1 to 3600 seconds.")
    }
  }

  func run() throws {
    let first: TopSample
    do throws(Problem) {
      first = try sample()
    } catch {
      Exit.say(error.text)
      throw error.code
    }
    if !json, Terminal.isThere, let end = live(first) {
      if end != 0 { throw ExitCode(128 + end) }
    } else {
      try print(first)
    }
  }

  /// Why there is no sample.
  private struct Problem: Error {
    let text: String
    let code: ExitCode
  }

  private func sample() throws(Problem) -> TopSample {
    let text: String
    do throws(HostWatchClient.Failure) {
      text = try HostWatchClient.Connection(path: daemon.socketPath)
        .status(timeoutMilliseconds: 10_000)
    } catch {
      throw Problem(
        text: Exit.explanation(error, socketPath: daemon.socketPath), code: Exit.code(error))
    }
    do throws(JSONError) {
      return TopSample(
        status: try JSONParser.parse(text), microseconds: Clock.monotonicMicroseconds())
    } catch {
      throw Problem(text: "the daemon's status: \(error)", code: Exit.protocol)
    }
  }

  // MARK: The terminal

  /// Returns the signal that ended it or 0, and nil if the terminal cannot be set.
  private func live(_ first: TopSample) -> Int32? {
    guard let terminal = Terminal() else { return nil }
    var (now, before) = (first, TopSample?.none)
    var (order, reversed) = (sort, false)
    var problem: String?
    var left = count ?? .max
    while true {
      let view = TopView(now: now, before: before, order: order, reversed: reversed)
      let size = terminal.size
      let last = problem ?? Self.keys
      terminal.show(
        view.lines(width: size.width, height: size.height - 1)
          + [Columns.cut(Line.text(last), to: size.width)])
      let due = now.microseconds + UInt64(interval * 1e6)
      var wantsSample = Clock.monotonicMicroseconds() >= due
      if !wantsSample {
        switch terminal.wait(milliseconds: Self.milliseconds(until: due)) {
        case .ended(let signal): return signal
        case .key("q"): return 0
        case .key(" "): wantsSample = true
        case .key(let key):
          guard let chosen = TopOrder(key: key) else { continue }
          reversed = chosen == order && !reversed
          order = chosen
        case .resized: break
        case .nothing: wantsSample = Clock.monotonicMicroseconds() >= due
        }
      }
      guard wantsSample else { continue }
      left -= 1
      if left == 0 { return 0 }
      do throws(Problem) {
        let next = try sample()
        (before, now, problem) = (now, next, nil)
      } catch {
        // The daemon may be starting anew: what was seen last stays, and it is asked again.
        problem = error.text
        before = nil
        now = TopSample(status: now.status, microseconds: Clock.monotonicMicroseconds())
      }
    }
  }

  private static let keys =
    "q quit  "
    + TopOrder.allCases.map { "\($0.key) \($0.rawValue)" }.joined(separator: "  ")

  private static func milliseconds(until due: UInt64) -> Int32 {
    let now = Clock.monotonicMicroseconds()
    return due > now ? Int32(clamping: (due - now) / 1000 + 1) : 0
  }

  // MARK: Lines

  private func print(_ first: TopSample) throws {
    var (now, before) = (first, TopSample?.none)
    var left = count ?? .max
    while true {
      var output = Output()
      let view = TopView(now: now, before: before, order: sort)
      if json {
        output.line(view.json(time: Clock.now().universal).encoded)
      } else {
        if before != nil { output.line("") }
        for line in view.lines() { output.line(line) }
      }
      output.flush()
      left -= 1
      if left == 0 { return }
      usleep(UInt32(interval * 1e6))
      before = now
      do throws(Problem) {
        now = try sample()
      } catch {
        Exit.say(error.text)
        throw error.code
      }
    }
  }
}

extension TopOrder: ExpressibleByArgument {}
