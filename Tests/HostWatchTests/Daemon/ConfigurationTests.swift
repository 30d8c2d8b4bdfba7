import Glibc
import HostWatch
import Testing

@testable import hostwatchd

/// Accounts that are the same on every host.
let testAccounts = Accounts(
  user: { ["root": 0, "ann": 1000][$0] ?? UInt32($0) },
  group: { ["kvm": 36, "staff": 50][$0] ?? UInt32($0) })

@Suite struct ConfigurationTests {
  private func read(_ text: String) throws(ConfigurationRefused) -> Configuration {
    try ConfigurationReader.read(text, file: "t.toml", accounts: testAccounts)
  }

  private func errors(_ text: String) -> [String] {
    do {
      _ = try read(text)
      return []
    } catch {
      return error.issues.map { $0.text(file: error.file) }
    }
  }

  @Test func emptyFileGivesTheDefaults() throws {
    #expect(try read("") == Configuration())
    #expect(try read("# nothing\n[daemon]\n[limits]\n") == Configuration())
  }

  private static let repository = #filePath.split(separator: "/Tests/HostWatchTests/")[0]

  private static func file(_ name: String) throws -> [Substring] {
    guard case .success(let bytes) = ConfigurationSource.contents(of: "\(repository)/\(name)")
    else { throw ConfigurationRefused(file: name, issues: []) }
    return String(decoding: bytes, as: UTF8.self).split(separator: "\n")
  }

  @Test func shippedFileShowsEveryKeyWithItsDefault() throws {
    let lines = try Self.file("systemd/hostwatchd.toml").map { line in
      let isKey = line.wholeMatch(of: /# ([a-z-]+ = .*|\[\[share\]\])/) != nil
      return isKey ? line.dropFirst(2) : line
    }
    // Not every host has these users.
    let accounts = Accounts(user: { _ in 1 }, group: { _ in 1 })
    let shown = try ConfigurationReader.read(
      lines.joined(separator: "\n"), file: "shipped", accounts: accounts)
    #expect(shown.shares.map(\.name) == ["src"])
    var rest = shown
    rest.shares = []
    #expect(rest == Configuration())
    // The keys are those of the documentation.
    let keys = Set(lines.compactMap { $0.wholeMatch(of: /([a-z-]+) = .*/).map { String($0.1) } })
    let documented = Set(
      try Self.file("docs/operations.md").drop { $0 != "### `[daemon]`" }
        .prefix { $0 != "## Reloading" }
        .compactMap { $0.prefixMatch(of: /\| `([a-z-]+)` \|/).map { String($0.1) } })
    #expect(keys == documented && keys.count == 18)
  }

  @Test func everyKeyIsRead() throws {
    let configuration = try read(
      """
      [daemon]
      socket = "/run/x.sock"
      socket-mode = "0600"
      log-level = "debug"
      max-delay = "500us"
      queue-events = 4096
      [limits]
      sessions = 10
      sessions-per-user = 2
      filesystems-per-user = 3
      nodes-per-session = 1000
      nodes-per-session-unprivileged = 0
      queue-per-session = "64KiB"
      queue-per-user = 131072
      descriptors-per-user = 300
      [[share]]
      name = "src"
      path = "/srv/src"
      allow-users = ["ann", "17"]
      allow-groups = ["kvm"]
      events = ["create", "rename"]
      [[share]]
      name = "all"
      path = "/"
      """)
    var expected = Configuration()
    expected.socketPath = "/run/x.sock"
    expected.socketMode = 0o600
    expected.logLevel = .debug
    expected.queueEvents = 4096
    expected.limits.maxDelayMicroseconds = 500
    expected.limits.sessions = 10
    expected.limits.sessionsPerUser = 2
    expected.limits.filesystemsPerUser = 3
    expected.limits.nodesPerSession = 1000
    expected.limits.nodesPerSessionUnprivileged = 0
    expected.limits.queuePerSession = 65_536
    expected.limits.queuePerUser = 131_072
    expected.limits.descriptorsPerUser = 300
    expected.shares = [
      ShareConfiguration(
        name: "src", path: "/srv/src", allowedUsers: [1000, 17], allowedGroups: [36],
        events: [.create, .rename]),
      ShareConfiguration(name: "all", path: "/"),
    ]
    #expect(configuration == expected)
  }

  /// A file, and the exact lines it is refused with.
  static let refused: [(text: String, errors: [String])] = [
    (
      "[daemon]\nsokcet = \"/x\"",
      [
        "t.toml:2: daemon.sokcet: unknown key; known here: "
          + "socket, socket-mode, log-level, max-delay, queue-events"
      ]
    ),
    ("\n[extra]\n", ["t.toml:2: extra: unknown key; known here: daemon, limits, share"]),
    ("daemon = 1", ["t.toml:1: daemon: this is an integer; write a table: [daemon]"]),
    (
      "[share]\nname = \"a\"",
      ["t.toml:1: share: this is a table; write one [[share]] table for each share"]
    ),
    (
      "share = [1]",
      ["t.toml:1: share[1]: this is an integer; write one [[share]] table for each share"]
    ),
    (
      "[daemon]\nsocket = \"run/x\"",
      [
        "t.toml:2: daemon.socket: \"run/x\" is not absolute; write a path that starts with /"
      ]
    ),
    (
      "[daemon]\nsocket = \"/\(String(repeating: "x", count: 107))\"",
      ["t.toml:2: daemon.socket: the path has 108 bytes; write a path of at most 107 bytes"]
    ),
    (
      "[daemon]\nsocket-mode = \"660\"",
      [
        "t.toml:2: daemon.socket-mode: \"660\" is not a mode; write three octal digits after a 0, "
          + "\"0000\" to \"0777\", such as \"0660\""
      ]
    ),
    (
      "[daemon]\nsocket-mode = 0o660",
      ["t.toml:2: daemon.socket-mode: this is an integer; write a string such as \"0660\""]
    ),
    (
      "[daemon]\nlog-level = \"loud\"",
      [
        "t.toml:2: daemon.log-level: unknown level \"loud\"; "
          + "write one of trace, debug, info, notice, warning, error, critical"
      ]
    ),
    (
      "[daemon]\nmax-delay = \"2s\"",
      [
        "t.toml:2: daemon.max-delay: \"2s\" is out of range; write a duration from \"0\" to \"1s\" "
          + "such as \"500us\" or \"1ms\" (us, ms, s)"
      ]
    ),
    (
      "[daemon]\nmax-delay = 5",
      [
        "t.toml:2: daemon.max-delay: this is an integer; write a duration from \"0\" to \"1s\" "
          + "such as \"500us\" or \"1ms\" (us, ms, s)"
      ]
    ),
    (
      "daemon.queue-events = -1",
      [
        "t.toml:1: daemon.queue-events: -1 is out of range; write an integer from 1 to 67108864"
      ]
    ),
    (
      "[limits]\n\nsessions = true",
      ["t.toml:3: limits.sessions: this is a bool; write an integer from 1 to 262144"]
    ),
    (
      "limits = { queue-per-session = \"1KiB\" }",
      [
        "t.toml:1: limits.queue-per-session: \"1KiB\" is out of range; write a size from \"64KiB\" "
          + "to \"1GiB\" (KiB, MiB, GiB, or an integer of bytes)"
      ]
    ),
    (
      "[limits]\nqueue-per-user = \"1 MiB\"",
      [
        "t.toml:2: limits.queue-per-user: \"1 MiB\" is not a size; write a size from \"64KiB\" to "
          + "\"1024GiB\" (KiB, MiB, GiB, or an integer of bytes)"
      ]
    ),
    (
      "[[share]]\n",
      [
        "t.toml:1: share[1]: name is missing; write name = \"src\"",
        "t.toml:1: share[1]: path is missing; write path = \"/srv/src\"",
      ]
    ),
    (
      "[[share]]\nname = \"\"\npath = \"\"",
      [
        "t.toml:2: share[1].name: the name is empty; "
          + "write 1 to 255 bytes without control characters",
        "t.toml:3: share[1].path: \"\" is not absolute; write a path that starts with /",
      ]
    ),
    (
      "[[share]]\nname = \"a\\nb\"\npath = \"/a\"",
      [
        "t.toml:2: share[1].name: \"a\\nb\" holds a control character; "
          + "write 1 to 255 bytes without control characters"
      ]
    ),
    (
      "[[share]]\nname = \"a\"\npath = \"/a\"\n[[share]]\nname = \"a\"\npath = \"/b\"",
      [
        "t.toml:5: share[2].name: \"a\" is the share of line 2 already; give each its own name"
      ]
    ),
    (
      "[[share]]\nname = \"a\"\npath = \"/a\"\nallow-users = [\n \"ann\",\n \"bob\" ]",
      [
        "t.toml:6: share[1].allow-users[2]: unknown user \"bob\"; "
          + "write a user of this host, or a numeric id as a string"
      ]
    ),
    (
      "[[share]]\nname = \"a\"\npath = \"/a\"\nallow-groups = [36]",
      [
        "t.toml:4: share[1].allow-groups[1]: this is an integer; "
          + "write an array of strings such as [\"kvm\"]"
      ]
    ),
    (
      "[[share]]\nname = \"a\"\npath = \"/a\"\nevents = [\"isdir\"]",
      [
        "t.toml:4: share[1].events[1]: unknown event \"isdir\"; write some of access, modify, "
          + "attrib, close-write, close-nowrite, open, create, delete, delete-self, open-exec, rename"
      ]
    ),
    (
      "[[share]]\nname = \"a\"\npath = \"/a\\u0000b\"",
      [
        "t.toml:3: a string holds a NUL character; leave it out: no path and no name can hold one"
      ]
    ),
  ]

  @Test(arguments: refused.indices)
  func isRefusedWithLineKeyAndRemedy(_ index: Int) {
    let expected = ConfigurationTests.refused[index]
    #expect(errors(expected.text) == expected.errors)
  }

  @Test func everythingWrongIsSaidInTheOrderOfLines() {
    let lines = errors(
      """
      [limits]
      sessions = 0
      [[share]]
      name = 1
      colour = "red"
      [daemon]
      socket = ""
      """
    ).map { $0.split(separator: ": ").prefix(2).joined(separator: ": ") }
    #expect(
      lines == [
        "t.toml:2: limits.sessions", "t.toml:3: share[1]", "t.toml:4: share[1].name",
        "t.toml:5: share[1].colour", "t.toml:7: daemon.socket",
      ])
  }

  @Test(arguments: [("[daemon\n", 1), ("a = 1\na = 2", 2), ("\n\nx = \"", 3), ("x = 010", 1)])
  func syntaxErrorsHaveTheirLine(_ text: String, _ line: Int) throws {
    let message = try #require(errors(text).first)
    #expect(message.hasPrefix("t.toml:\(line): column "))
  }

  /// The parser would abort the process: found by fuzzing.
  @Test(arguments: [
    ("[$", 1), ("[[ ?]]", 1), ("\n[", 2), ("[daemon]\nsocket = [}", 2), ("x = [1,\n}", 2),
  ])
  func gapsAreRefusedBeforeTheParserSeesThem(_ text: String, _ line: Int) throws {
    let message = try #require(errors(text).first)
    #expect(message.hasPrefix("t.toml:\(line): a bracket is followed by neither"))
  }

  @Test func hostAccountsAreFound() throws {
    #expect(try Accounts.host.user("root") == 0)
    #expect(try Accounts.host.group("root") == 0)
    #expect(try Accounts.host.user("4711") == 4711)
    #expect(try Accounts.host.user("no such user") == nil)
    #expect(try Accounts.host.group("4294967295") == nil)
    #expect(try Accounts.host.user("") == nil)
  }

  /// A service manager starts what ends with 71 again, and what ends with 78 not.
  @Test(arguments: [("", 71), ("[daemon]\nbogus = 1\n", 78)])
  func whatCannotBeLookedUpNowIsNotWrong(_ wrong: String, _ code: Int32) {
    let accounts = Accounts(
      user: { (_) throws(SystemError) in throw SystemError("getpwnam_r", ENOMEM) },
      group: { _ in 1 })
    let text = wrong + "[[share]]\nname = \"a\"\npath = \"/a\"\nallow-users = [\"ann\"]\n"
    let refused = #expect(throws: ConfigurationRefused.self) {
      try ConfigurationReader.read(text, file: "t.toml", accounts: accounts)
    }
    #expect(refused.map { StartFailure.Code($0).rawValue } == code)
    #expect(
      refused?.issues.last?.text(file: "t.toml").contains(
        "user \"ann\" cannot be looked up: getpwnam_r: Cannot allocate memory") == true)
  }
}

@Suite struct UnitsTests {
  @Test(arguments: [("0", 0), ("1us", 1), ("500us", 500), ("1ms", 1000), ("2s", 2_000_000)])
  func durations(_ text: String, _ microseconds: Int) {
    #expect(Units.microseconds(text) == microseconds)
    #expect(Units.microseconds(Units.duration(microseconds)) == microseconds)
  }

  @Test(
    arguments: [
      "", "1", "ms", "1 ms", "-1ms", "+1ms", "1.5ms", "1m", "1MS", "0x1s", "1ms ",
      "9223372036854775807s", "99999999999999999999us", "१ms",
    ])
  func badDurations(_ text: String) { #expect(Units.microseconds(text) == nil) }

  @Test(arguments: [
    ("0", 0), ("4096", 4096), ("64KiB", 65_536), ("4MiB", 4 << 20), ("1GiB", 1 << 30),
  ])
  func sizes(_ text: String, _ bytes: Int) {
    #expect(Units.bytes(text) == bytes)
    #expect(Units.bytes(Units.size(bytes)) == bytes)
  }

  @Test(arguments: ["", "KiB", "1 KiB", "1kb", "1MB", "-1", "1.5MiB", "9223372036854775807KiB"])
  func badSizes(_ text: String) { #expect(Units.bytes(text) == nil) }
}
