import Testing

@testable import hostwatchctl

/// What `hostwatchctl top` makes of two answers of the daemon.
struct TopViewTests {
  static func session(
    _ id: Int, delivered: Int, queue: Int = 0, share: String = "src", nodes: Int = 1,
    corrected: Int = 0, lag: [Int] = [0, 0, 0]
  ) -> String {
    """
    {"id":\(id),"mode":"nodes","share":"\(share)","path":"/srv/\(share)","pid":\(1000 - id),\
    "nodes":\(nodes),"queue_bytes":\(queue),"queue_limit":1000,"delivered":\(delivered),\
    "dropped":0,"lost":0,"age_seconds":65,"corrected":\(corrected),"lag_counts":\(lag)}
    """
  }

  static func sample(
    _ sessions: [String], seconds: UInt64, events: Int = 0, lag: [Int] = [0, 0, 0],
    share: (delivered: Int, lag: [Int]) = (0, [0, 0, 0])
  ) throws -> TopSample {
    let text = """
      {"version":"0.1.0","pid":7,"uptime_seconds":3,"lag_bounds_us":[50,2500],\
      "totals":{"sessions":\(sessions.count),"nodes":1,"kernel_events":\(events),"lost":2},\
      "filesystems":[{"device":"8:1","type":"ext4","kernel_events":\(events),"queue_events":4,\
      "lag_bounds_us":[50,2500],"lag_counts":\(lag)}],\
      "shares":[{"name":"src","path":"/srv/src","state":"ready","sessions":1,\
      "queue_bytes":77,"delivered":\(share.delivered),"lost":3,"corrected":5,"lag_counts":\(share.lag)}],\
      "sessions":[\(sessions.joined(separator: ","))]}
      """
    return TopSample(status: try JSONParser.parse(text), microseconds: seconds * 1_000_000)
  }

  /// The cells of the line that begins with `first`, without what stands before it.
  static func cells(_ view: TopView, _ first: String) -> [Substring]? {
    view.lines().map { $0.split(separator: " ") }.first { $0.first == first[...] }
  }

  @Test func ratesAreDifferencesOverTime() throws {
    let before = try Self.sample([Self.session(1, delivered: 100)], seconds: 10, events: 5)
    let now = try Self.sample(
      [Self.session(1, delivered: 350, queue: 500), Self.session(2, delivered: 9)], seconds: 12,
      events: 30)
    let view = TopView(now: now, before: before)
    #expect(Self.cells(view, "1")?[5...7] == ["125.0", "500", "50.0"])
    // A session that was not there before has no rate, nor has anything in the first picture.
    #expect(Self.cells(view, "2")?[5] == "-")
    #expect(Self.cells(TopView(now: now, before: nil), "1")?[5] == "-")
    #expect(Self.cells(view, "8:1")?[5] == "12.5")
    #expect(view.lines()[1].contains("events/s 12.5"))
  }

  @Test func aCounterThatBeganAnewHasNoRate() throws {
    let before = try Self.sample([Self.session(1, delivered: 100)], seconds: 10)
    let now = try Self.sample([Self.session(1, delivered: 3)], seconds: 11)
    #expect(Self.cells(TopView(now: now, before: before), "1")?[5] == "-")
  }

  @Test func lagIsThatOfTheInterval() throws {
    let before = try Self.sample([], seconds: 1, lag: [0, 1000, 5])
    let now = try Self.sample([], seconds: 2, lag: [98, 1001, 6])
    #expect(Self.cells(TopView(now: now, before: before), "8:1")?.suffix(2) == ["<50us", "<2.5ms"])
    // No batch in the interval, and everything so far in the first picture.
    #expect(Self.cells(TopView(now: now, before: now), "8:1")?.suffix(2) == ["-", "-"])
    #expect(Self.cells(TopView(now: before, before: nil), "8:1")?.last == "<2.5ms")
    #expect(TopView.lag(.infinity) == ">1s")
  }

  @Test func sharesHaveWhatTheirSessionsHadToo() throws {
    let before = try Self.sample([], seconds: 1, share: (100, [1, 1, 1]))
    let now = try Self.sample([], seconds: 3, share: (350, [100, 1, 1]))
    // NAME STATE SESSIONS RECORDS/S QUEUE LAG-P99 LOST CORRECTED PATH
    #expect(
      Self.cells(TopView(now: now, before: before), "src")
        == ["src", "ready", "1", "125.0", "77", "<50us", "3", "5", "/srv/src"])
    #expect(Self.cells(TopView(now: now, before: nil), "src")?[3] == "-")
    let json = TopView(now: now, before: before).json(time: "t")
    #expect(json["shares"].elements.first?["delivered_rate"] == .number("125.0"))
    #expect(json["shares"].elements.first?["corrected_rate"] == .number("0.0"))
  }

  @Test func sessionsHaveLagAndCorrections() throws {
    let before = try Self.sample([Self.session(1, delivered: 0, lag: [9, 0, 0])], seconds: 1)
    let now = try Self.sample(
      [
        Self.session(1, delivered: 0, corrected: 4, lag: [10, 1, 0]),
        Self.session(2, delivered: 0, corrected: 9, lag: [1, 0, 1]),
        Self.session(3, delivered: 0),
      ], seconds: 2)
    let view = TopView(now: now, before: before, order: .id)
    // ID MODE SHARE PID NODES RECORDS/S QUEUE FULL% LAG-P99 LOST CORRECTED …
    #expect(Self.cells(view, "1")?[8...10] == ["<2.5ms", "0", "4"])
    #expect(Self.cells(view, "2")?[8...10] == [">1s", "0", "9"])
    #expect(Self.cells(view, "3")?[8...10] == ["-", "0", "0"])
    func ids(_ order: TopOrder) -> [Double] {
      order.sorted(TopSession.all(now, since: before), reversed: false).map(\.id)
    }
    #expect(ids(.lag) == [2, 1, 3])
    #expect(ids(.corrected) == [2, 1, 3])
    let first = view.json(time: "t")["sessions"].elements.first
    #expect(first?["corrected_rate"] == .number("4.0"))
  }

  @Test func everyOrder() throws {
    let before = try Self.sample((1...3).map { Self.session($0, delivered: 0) }, seconds: 0)
    let now = try Self.sample(
      [
        Self.session(1, delivered: 20, queue: 1, share: "b", nodes: 5),
        Self.session(2, delivered: 30, queue: 900, share: "c", nodes: 5),
        Self.session(3, delivered: 10, queue: 5, share: "a", nodes: 6),
      ], seconds: 1)
    func ids(_ order: TopOrder, reversed: Bool = false) -> [Double] {
      order.sorted(TopSession.all(now, since: before), reversed: reversed).map(\.id)
    }
    #expect(ids(.rate) == [2, 1, 3])
    #expect(ids(.rate, reversed: true) == [3, 1, 2])
    #expect(ids(.queue) == [2, 3, 1])
    #expect(ids(.nodes) == [3, 1, 2])
    #expect(ids(.nodes, reversed: true) == [1, 2, 3])
    #expect(ids(.delivered) == [2, 1, 3])
    #expect(ids(.dropped) == [1, 2, 3])
    #expect(ids(.lost) == [1, 2, 3])
    #expect(ids(.id) == [1, 2, 3])
    #expect(ids(.pid) == [3, 2, 1])
    #expect(ids(.share) == [3, 1, 2])
  }

  @Test func everyOrderHasAKeyOfItsOwn() {
    #expect(Set(TopOrder.allCases.map(\.key)).count == TopOrder.allCases.count)
    for order in TopOrder.allCases { #expect(TopOrder(key: order.key) == order) }
    #expect(TopOrder(key: "q") == nil)
  }

  @Test(arguments: 0...60) func nothingLeavesTheTerminal(_ size: Int) throws {
    let sessions = (1...20).map { Self.session($0, delivered: $0, share: "日本語日本語") }
    let lines = TopView(now: try Self.sample(sessions, seconds: 1), before: nil)
      .lines(width: size, height: size)
    #expect(lines.count <= size)
    #expect(lines.allSatisfy { Columns.width($0) <= size })
  }

  @Test func whatIsLeftOutIsCounted() throws {
    let sessions = (1...20).map { Self.session($0, delivered: $0) }
    let view = TopView(now: try Self.sample(sessions, seconds: 1), before: nil, order: .id)
    let lines = view.lines(width: 200, height: 20)
    #expect(lines.count == 20)
    let shown = lines.compactMap { Int($0.split(separator: " ").first ?? "") }.max() ?? 0
    #expect(lines.last == "… \(20 - shown) more")
    #expect(view.lines().count > 20)
  }

  @Test func controlCharactersAreEscaped() throws {
    let evil = #"a\u001b[2J\u009b1m\nb"#
    let now = try Self.sample([Self.session(1, delivered: 1, share: evil)], seconds: 1)
    let text = TopView(now: now, before: nil).lines().joined(separator: "|")
    #expect(text.contains(#"a\033[2J"#))
    #expect(
      text.unicodeScalars.allSatisfy { $0.value >= 0x20 && !(0x7f...0x9f).contains($0.value) })
    let json = TopView(now: now, before: nil).json(time: "t").encoded
    #expect(
      json.unicodeScalars.allSatisfy { $0.value >= 0x20 && !(0x7f...0x9f).contains($0.value) })
  }

  @Test func wideCharactersAreCutWhole() {
    #expect(Columns.width("日本a") == 5)
    #expect(Columns.cut("日本a", to: 5) == "日本a")
    #expect(Columns.cut("日本a", to: 4) == "日…")
    #expect(Columns.cut("日本a", to: 1) == "…")
    #expect(Columns.cut("abc", to: 0) == "")
  }

  @Test func jsonHasRates() throws {
    let before = try Self.sample([Self.session(1, delivered: 100)], seconds: 10)
    let now = try Self.sample([Self.session(1, delivered: 101)], seconds: 11)
    let json = TopView(now: now, before: before).json(time: "t")
    #expect(json["interval_seconds"] == .number("1.0"))
    #expect(json["sessions"].elements.first?["delivered_rate"] == .number("1.0"))
    #expect(json["sessions"].elements.first?["delivered"] == .number("101"))
    #expect(TopView(now: now, before: nil).json(time: "t")["interval_seconds"] == .null)
  }

  @Test func colourIsForTerminalsThatWantIt() {
    func on(_ choice: ColorChoice, _ terminal: Bool, _ environment: [String: String]) -> Bool {
      choice.paint(isTerminal: terminal) { environment[$0] }.isOn
    }
    #expect(on(.auto, true, ["TERM": "xterm"]))
    #expect(on(.auto, true, ["TERM": "xterm", "NO_COLOR": ""]))
    #expect(!on(.auto, true, ["TERM": "xterm", "NO_COLOR": "1"]))
    #expect(!on(.auto, true, ["TERM": "dumb"]))
    #expect(!on(.auto, true, [:]))
    #expect(!on(.auto, false, ["TERM": "xterm"]))
    #expect(on(.always, false, ["NO_COLOR": "1"]))
    #expect(!on(.never, true, ["TERM": "xterm"]))
    #expect(Paint(isOn: true)(.red, "x") == "\u{1b}[31mx\u{1b}[0m")
    #expect(Paint()(.red, "x") == "x")
  }
}
