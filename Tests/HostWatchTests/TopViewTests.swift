import Testing

@testable import hostwatchctl

/// What `hostwatchctl top` makes of two answers of the daemon.
struct TopViewTests {
  static func session(
    _ id: Int, delivered: Int, queue: Int = 0, share: String = "src", nodes: Int = 1,
    lost: Int = 0, corrected: Int = 0, lag: [Int] = [0, 0, 0]
  ) -> String {
    """
    {"id":\(id),"mode":"nodes","share":"\(share)","path":"/srv/\(share)","pid":\(1000 - id),\
    "nodes":\(nodes),"queue_bytes":\(queue),"queue_limit":1000,"delivered":\(delivered),\
    "dropped":0,"lost":\(lost),"corrected":\(corrected),"lag_counts":\(lag),"age_seconds":65}
    """
  }

  static func share(
    _ name: String, delivered: Int, queue: Int = 0, lost: Int = 0, corrected: Int = 0,
    lag: [Int] = [0, 0, 0]
  ) -> String {
    """
    {"name":"\(name)","path":"/srv/\(name)","state":"ready","sessions":1,"queue_bytes":\(queue),\
    "delivered":\(delivered),"corrected":\(corrected),"dropped":0,"lost":\(lost),"lag_counts":\(lag)}
    """
  }

  static func sample(
    _ sessions: [String], seconds: UInt64, events: Int = 0, lag: [Int] = [0, 0, 0],
    shares: [String] = [share("src", delivered: 0)]
  ) throws -> TopSample {
    let text = """
      {"version":"0.1.0","pid":7,"uptime_seconds":3,"lag_bounds_us":[50,2500],\
      "totals":{"sessions":\(sessions.count),"nodes":1,"kernel_events":\(events),"lost":2},\
      "filesystems":[{"device":"8:1","type":"ext4","kernel_events":\(events),"queue_events":4,\
      "lag_bounds_us":[50,2500],"lag_counts":\(lag)}],\
      "shares":[\(shares.joined(separator: ","))],\
      "sessions":[\(sessions.joined(separator: ","))]}
      """
    return TopSample(status: try JSONParser.parse(text), microseconds: seconds * 1_000_000)
  }

  /// The cells of the line that begins with `first`, without what stands before it.
  static func cells(_ view: TopView, _ first: String) -> [Substring]? {
    view.lines().map { $0.split(separator: " ") }.first { $0.first == first[...] }
  }

  @Test func ratesAreDifferencesOverTime() throws {
    let before = try Self.sample(
      [Self.session(1, delivered: 100)], seconds: 10, events: 5,
      shares: [Self.share("src", delivered: 700)])
    let now = try Self.sample(
      [Self.session(1, delivered: 350, queue: 500), Self.session(2, delivered: 9)], seconds: 12,
      events: 30, shares: [Self.share("src", delivered: 1000)])
    let view = TopView(now: now, before: before)
    #expect(Self.cells(view, "1")?[5...7] == ["125.0", "500", "50.0"])
    // A session that was not there before has no rate, nor has anything in the first picture.
    #expect(Self.cells(view, "2")?[5] == "-")
    #expect(Self.cells(TopView(now: now, before: nil), "1")?[5] == "-")
    #expect(Self.cells(view, "8:1")?[5] == "12.5")
    // Of a share everything counts that its sessions had, of those that have ended, too.
    #expect(Self.cells(view, "src")?[3] == "150.0")
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

  @Test func sessionsAndSharesHaveLagLostAndCorrected() throws {
    let before = try Self.sample(
      [Self.session(1, delivered: 1, lag: [5, 0, 0])], seconds: 1,
      shares: [Self.share("src", delivered: 1, lag: [0, 50, 0])])
    let now = try Self.sample(
      [Self.session(1, delivered: 1, lost: 3, corrected: 4, lag: [6, 9, 0])], seconds: 2,
      shares: [
        Self.share("src", delivered: 1, queue: 77, lost: 8, corrected: 9, lag: [98, 51, 2])
      ])
    let view = TopView(now: now, before: before)
    #expect(Self.cells(view, "1")?[8...9] == ["<2.5ms", "<2.5ms"])
    #expect(Self.cells(view, "1")?[12...13] == ["3", "4"])
    #expect(Self.cells(view, "src")?[4...9] == ["77", "<50us", ">1s", "0", "8", "9"])
    let json = view.json(time: "t")
    #expect(json["sessions"].elements.first?["lag_p50_us"] == .number("2500"))
    #expect(json["sessions"].elements.first?["corrected_rate"] == .number("4.0"))
    #expect(json["shares"].elements.first?["lag_p50_us"] == .number("50"))
    #expect(json["shares"].elements.first?["lag_p99_us"] == .string("+Inf"))
    #expect(json["shares"].elements.first?["delivered_rate"] == .number("0.0"))
    #expect(json["filesystems"].elements.first?["lag_p99_us"] == .null)
  }

  @Test func aDaemonThatTellsLessIsShownAllTheSame() throws {
    let now = try Self.sample(
      [#"{"id":1,"pid":2}"#], seconds: 1, shares: [#"{"name":"src","path":"/srv/src"}"#])
    let view = TopView(now: now, before: now)
    #expect(Self.cells(view, "src")?.dropFirst().dropLast().allSatisfy { $0 == "-" } == true)
    #expect(Self.cells(view, "1")?.count == 16)
  }

  @Test func aNarrowTerminalHasTheColumnsThatTellMost() throws {
    let sessions = [Self.session(12, delivered: 1_234_567, lag: [0, 1, 0])]
    let now = try Self.sample(
      sessions, seconds: 1, shares: [Self.share("src", delivered: 1, lag: [0, 1, 0])])
    func titles(_ order: TopOrder, _ first: String, width: Int?) -> [Substring]? {
      TopView(now: now, before: nil, order: order).lines(width: width)
        .map { $0.split(separator: " ") }.first { $0.first == first[...] }
    }
    let wanted = ["RECORDS/S", "QUEUE", "LAG-P99", "LOST", "CORRECTED"]
    for (first, count) in [("ID", 16), ("NAME", 11)] {
      let (whole, narrow) = (titles(.rate, first, width: nil), titles(.rate, first, width: 80))
      #expect(whole?.count == count)
      #expect(titles(.rate, first, width: 200) == whole)
      #expect(wanted.allSatisfy { narrow?.contains($0[...]) == true }, "\(narrow ?? [])")
      #expect((narrow?.count ?? 0) < count)
    }
    #expect(titles(.rate, "ID", width: 80)?.contains("DELIVERED") == false)
    // What is sorted by stays.
    #expect(titles(.delivered, "ID", width: 80)?.contains("DELIVERED") == true)
    #expect(titles(.nodes, "ID", width: 70)?.contains("NODES") == true)
    // Nothing has to be cut off.
    for order in TopOrder.allCases {
      let lines = TopView(now: now, before: nil, order: order).lines(width: 80).dropFirst(2)
      #expect(lines.allSatisfy { !$0.contains("…") }, "\(order): \(lines)")
    }
  }

  @Test func everyOrder() throws {
    let before = try Self.sample((1...3).map { Self.session($0, delivered: 0) }, seconds: 0)
    let now = try Self.sample(
      [
        Self.session(
          1, delivered: 20, queue: 1, share: "b", nodes: 5, lost: 1, lag: [1, 1, 0]),
        Self.session(
          2, delivered: 30, queue: 900, share: "c", nodes: 5, corrected: 2, lag: [0, 1, 0]),
        Self.session(
          3, delivered: 10, queue: 5, share: "a", nodes: 6, lost: 4, corrected: 3),
      ], seconds: 1)
    func ids(_ order: TopOrder, reversed: Bool = false) -> [Double?] {
      order.sorted(TopRow.sessions(now, since: before), reversed: reversed).map {
        $0.row["id"].double
      }
    }
    #expect(ids(.rate) == [2, 1, 3])
    #expect(ids(.rate, reversed: true) == [3, 1, 2])
    #expect(ids(.queue) == [2, 3, 1])
    #expect(ids(.nodes) == [3, 1, 2])
    #expect(ids(.nodes, reversed: true) == [1, 2, 3])
    #expect(ids(.delivered) == [2, 1, 3])
    #expect(ids(.dropped) == [1, 2, 3])
    #expect(ids(.lost) == [3, 1, 2])
    #expect(ids(.corrected) == [3, 2, 1])
    // The same bound for 99 of 100 batches: that for half of them decides. One had none.
    #expect(ids(.lag) == [2, 1, 3])
    #expect(ids(.lag, reversed: true) == [3, 1, 2])
    #expect(ids(.id) == [1, 2, 3])
    #expect(ids(.pid) == [3, 2, 1])
    #expect(ids(.share) == [3, 1, 2])
  }

  @Test func sharesAreSortedByTheSameKey() throws {
    let shares = [
      Self.share("b", delivered: 0, queue: 1, corrected: 2, lag: [0, 0, 1]),
      Self.share("c", delivered: 5, queue: 0, lost: 1, lag: [1, 0, 0]),
      Self.share("a", delivered: 9, queue: 2),
    ]
    let before = try Self.sample(
      [], seconds: 0, shares: ["a", "b", "c"].map { Self.share($0, delivered: 0) })
    let now = try Self.sample([], seconds: 1, shares: shares)
    func names(_ order: TopOrder, reversed: Bool = false) -> String {
      order.sorted(TopRow.shares(now, since: before), reversed: reversed)
        .compactMap(\.row["name"].text).joined()
    }
    #expect(names(.rate) == "acb")
    #expect(names(.queue) == "abc")
    #expect(names(.lag) == "bca")
    #expect(names(.lost) == "cba")
    #expect(names(.corrected) == "bca")
    #expect(names(.share) == "abc")
    #expect(names(.share, reversed: true) == "cba")
    // They have no pid: the daemon's order.
    #expect(names(.pid) == "bca")
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
