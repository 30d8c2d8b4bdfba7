import HostWatch
import Logging
import Testing

@testable import hostwatchd

@Suite struct LogTests {
  private func event(_ message: String, _ level: Logger.Level = .warning) -> LogEvent {
    LogEvent(
      level: level, message: "\(message)", metadata: nil, source: nil, file: "F.swift",
      function: "f()", line: 7)
  }

  @Test func controlCharactersAreEscaped() {
    #expect(escapingControls("plain äöü 漢") == "plain äöü 漢")
    #expect(escapingControls("a\nb\r\tc") == "a\\nb\\r\\tc")
    #expect(escapingControls("\u{1b}[2J\u{9b}\u{7f}\u{0}") == "\\u{1b}[2J\\u{9b}\\u{7f}\\u{0}")
    #expect(escapingControls("x\u{2028}y\u{202e}z") == "x\\u{2028}y\\u{202e}z")
    let once = escapingControls("a\nb\u{1b}")
    #expect(escapingControls(once) == once)
  }

  @Test func journalEntriesHaveTheirFields() {
    var metadata = Logger.Metadata.of(.sessionRefused)
    metadata[.session] = "9"
    metadata[.share] = "src"
    metadata[.peerPID] = "12"
    metadata[.peerUID] = "1000"
    metadata[.errno] = "13"
    let fields = JournalLog.fields(of: event("refused"), metadata: metadata)
    #expect(
      fields == [
        "MESSAGE=refused", "PRIORITY=4", "SYSLOG_IDENTIFIER=hostwatchd", "CODE_FILE=F.swift",
        "CODE_LINE=7", "CODE_FUNC=f()", "ERRNO=13", "MESSAGE_ID=ecf7edff63454505ac5bdd0a7e06bda3",
        "PEER_PID=12", "PEER_UID=1000", "HOSTWATCH_SESSION=9", "HOSTWATCH_SHARE=src",
      ])
  }

  @Test func aValueCannotPoseAsAField() {
    let metadata: Logger.Metadata = ["share": "x\nPRIORITY=0"]
    let fields = JournalLog.fields(of: event("a\nPRIORITY=0"), metadata: metadata)
    #expect(fields.filter { $0.hasPrefix("PRIORITY=") } == ["PRIORITY=4"])
    #expect(fields.first == "MESSAGE=a\\nPRIORITY=0")
    #expect(fields.last == "HOSTWATCH_SHARE=x\nPRIORITY=0")
  }

  @Test func aValueWithANewlineGoesWithItsLength() {
    let bytes = JournalLog.datagram(of: ["A=b=c", "M=x\nPRIORITY=0", "E="])
    let length: [UInt8] = [12, 0, 0, 0, 0, 0, 0, 0]
    #expect(
      bytes == Array("A=b=c\nM\n".utf8) + length + Array("x\nPRIORITY=0\nE=\n".utf8))
  }

  @Test func unknownKeysBecomeFieldsOfOurs() {
    #expect(LogField.journalName(forKey: "odd key=\n") == "HOSTWATCH_ODD_KEY__")
    #expect(LogField.journalName(forKey: String(repeating: "k", count: 99)).utf8.count == 64)
  }

  @Test func aLineOnStandardErrorStaysOne() {
    let metadata: Logger.Metadata = ["share": "x\n<0>forged", "message-id": "00"]
    let line = StderrLog.line(of: event("a\nb"), metadata: metadata, isTerminal: false)
    #expect(line == "<4>a\\nb (share=x\\n<0>forged)")
    let words = StderrLog.line(of: event("a", .info), metadata: [:], isTerminal: true)
    #expect(words == "hostwatchd: info: a")
  }

  @Test func messageIDsAreDifferentAndWellFormed() {
    let ids = MessageID.allCases.map(\.rawValue)
    #expect(Set(ids).count == ids.count)
    #expect(ids.allSatisfy { $0.utf8.count == 32 && $0.allSatisfy(\.isHexDigit) })
    let kinds = Diagnostic.Kind.allCases.filter { $0 != .other }
    #expect(Set(kinds.compactMap { MessageID($0) }).count == kinds.count)
  }
}

@Suite struct DiagnosticLimiterTests {
  private let key = DiagnosticLimiter.Key(kind: .sessionRefused, uid: 1000)

  @Test func aBurstPassesAndTheRestIsSummedUp() {
    var limiter = DiagnosticLimiter()
    let admitted = (0..<50).filter { limiter.admit(key, now: UInt64($0)).isLogged }
    #expect(admitted.count == DiagnosticLimiter.burst)
    #expect(limiter.endWindows(now: 100).isEmpty)
    let end = DiagnosticLimiter.windowMicroseconds
    #expect(limiter.nextEnd == end)
    #expect(limiter.endWindows(now: end) == [.init(key: key, suppressed: 30)])
    #expect(limiter.nextEnd == nil)
  }

  @Test func aNewWindowBeginsWithTheSummaryOfTheOld() {
    var limiter = DiagnosticLimiter()
    for _ in 0..<21 { _ = limiter.admit(key, now: 0) }
    let (isLogged, summary) = limiter.admit(key, now: DiagnosticLimiter.windowMicroseconds)
    #expect(isLogged)
    #expect(summary == .init(key: key, suppressed: 1))
  }

  @Test func kindsAndUsersAreCountedApart() {
    var limiter = DiagnosticLimiter()
    for _ in 0..<21 { _ = limiter.admit(key, now: 0) }
    #expect(limiter.admit(.init(kind: .sessionRefused, uid: 1001), now: 0).isLogged)
    #expect(limiter.admit(.init(kind: .sessionEnded, uid: 1000), now: 0).isLogged)
    #expect(limiter.admit(.init(kind: .sessionRefused, uid: nil), now: 0).isLogged)
    #expect(!limiter.admit(key, now: 0).isLogged)
  }
}
