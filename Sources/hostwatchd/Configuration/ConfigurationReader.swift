import HostWatch
import Logging
import TOMLKit

/// Makes a `Configuration` of a TOML text, strictly: what is not understood
/// is refused, and everything that is wrong is said at once.
///
/// It looks at nothing but the text and the accounts. Whether a share's path
/// exists is not its business: a filesystem may be mounted later.
struct ConfigurationReader {
  private let locator: SourceLocator
  private let accounts: Accounts
  private var configuration = Configuration()
  private var issues: [ConfigurationIssue] = []

  /// - Throws: `ConfigurationRefused` with all issues, in the order of lines.
  static func read(_ text: String, file: String, accounts: Accounts = .host)
    throws(ConfigurationRefused) -> Configuration
  {
    let locator = SourceLocator(text)
    if let line = locator.gapLines.first {
      let issue = ConfigurationIssue(
        line: line, key: "", problem: "a bracket is followed by neither a name nor a value",
        remedy: "write tables as [daemon] or [[share]], and lists as [\"one\", \"two\"]")
      throw ConfigurationRefused(file: file, issues: [issue])
    }
    let table: TOMLTable
    do {
      table = try TOMLTable(string: text)
    } catch let error as TOMLParseError {
      throw ConfigurationRefused(file: file, issues: [syntaxIssue(error)])
    } catch {
      let issue = ConfigurationIssue(
        line: nil, key: "", problem: "this is not TOML: \(error)", remedy: "see https://toml.io")
      throw ConfigurationRefused(file: file, issues: [issue])
    }
    var reader = ConfigurationReader(locator: locator, accounts: accounts)
    reader.readRoot(table)
    guard reader.issues.isEmpty else {
      throw ConfigurationRefused(file: file, issues: reader.sortedIssues)
    }
    return reader.configuration
  }

  private init(locator: SourceLocator, accounts: Accounts) {
    self.locator = locator
    self.accounts = accounts
    issues = locator.nulLines.map {
      ConfigurationIssue(
        line: $0, key: "", problem: "a string holds a NUL character",
        remedy: "leave it out: no path and no name can hold one")
    }
  }

  private static func syntaxIssue(_ error: TOMLParseError) -> ConfigurationIssue {
    ConfigurationIssue(
      line: error.source.begin.line, key: "column \(error.source.begin.column)",
      problem: escapingControls(error.description),
      remedy: "write TOML as https://toml.io describes it")
  }

  /// Stable: issues of one line stay in the order they were found.
  private var sortedIssues: [ConfigurationIssue] {
    issues.enumerated()
      .sorted { ($0.element.line ?? 0, $0.offset) < ($1.element.line ?? 0, $1.offset) }
      .map(\.element)
  }

  private mutating func readRoot(_ table: TOMLTable) {
    var root = SectionReader(table: table, path: [], locator: locator)
    readDaemon(section("daemon", of: &root))
    readLimits(section("limits", of: &root))
    readShares(&root)
    issues += root.finish()
  }

  private func section(_ key: String, of root: inout SectionReader) -> SectionReader? {
    guard let value = root.value(key) else { return nil }
    guard let table = value.table else {
      root.refuse(key, SectionReader.found(value), "write a table: [\(key)]")
      return nil
    }
    return SectionReader(table: table, path: [.key(key)], locator: locator)
  }

  private mutating func readDaemon(_ section: SectionReader?) {
    guard var section else { return }
    if let path = section.string("socket", like: Configuration.defaultSocketPath),
      isAbsolute(path, "socket", atMost: Configuration.Range.socketPathBytes, &section)
    {
      configuration.socketPath = path
    }
    if let text = section.string("socket-mode", like: "0660") {
      if let mode = ConfigurationReader.mode(text) {
        configuration.socketMode = mode
      } else {
        section.refuse(
          "socket-mode", "\(quoted(text)) is not a mode",
          "write three octal digits after a 0, \"0000\" to \"0777\", such as \"0660\"")
      }
    }
    if let text = section.string("log-level", like: "info") {
      if let level = Logger.Level(rawValue: text) {
        configuration.logLevel = level
      } else {
        section.refuse(
          "log-level", "unknown level \(quoted(text))",
          "write one of \(logLevelNames.joined(separator: ", "))")
      }
    }
    if let delay = section.duration("max-delay", in: Configuration.Range.maxDelayMicroseconds) {
      configuration.limits.maxDelayMicroseconds = UInt32(delay)
    }
    if let events = section.integer("queue-events", in: Configuration.Range.queueEvents) {
      configuration.queueEvents = events
    }
    issues += section.finish()
  }

  private mutating func readLimits(_ section: SectionReader?) {
    guard var section else { return }
    typealias Range = Configuration.Range
    let numbers: [(String, ClosedRange<Int>, WritableKeyPath<Limits, Int>)] = [
      ("sessions", Range.sessions, \.sessions),
      ("sessions-per-user", Range.sessions, \.sessionsPerUser),
      ("filesystems-per-user", Range.sessions, \.filesystemsPerUser),
      ("nodes-per-session", Range.nodes, \.nodesPerSession),
      ("nodes-per-session-unprivileged", Range.nodes, \.nodesPerSessionUnprivileged),
      ("descriptors-per-user", Range.descriptors, \.descriptorsPerUser),
    ]
    for (key, range, field) in numbers {
      guard let number = section.integer(key, in: range) else { continue }
      configuration.limits[keyPath: field] = number
    }
    if let bytes = section.size("queue-per-session", in: Range.queueBytes) {
      configuration.limits.queuePerSession = bytes
    }
    if let bytes = section.size("queue-per-user", in: Range.queueBytesPerUser) {
      configuration.limits.queuePerUser = bytes
    }
    issues += section.finish()
  }

  private mutating func readShares(_ root: inout SectionReader) {
    guard let value = root.value("share") else { return }
    let remedy = "write one [[share]] table for each share"
    guard let array = value.array else {
      root.refuse("share", SectionReader.found(value), remedy)
      return
    }
    var firstLines: [String: Int] = [:]
    for (index, element) in array.enumerated() {
      let path: KeyPath = [.key("share"), .index(index)]
      guard let table = element.table else {
        root.refuse(at: path, SectionReader.found(element), remedy)
        continue
      }
      let section = SectionReader(table: table, path: path, locator: locator)
      readShare(section, firstLines: &firstLines)
    }
  }

  private mutating func readShare(_ section: SectionReader, firstLines: inout [String: Int]) {
    var section = section
    let name = shareName(&section, firstLines: &firstLines)
    let path = section.string("path", like: "/srv/src")
    if path == nil, !section.table.contains(key: "path") {
      section.refuse(nil, "path is missing", "write path = \"/srv/src\"")
    }
    let pathIsRight =
      path.map { isAbsolute($0, "path", atMost: Configuration.Range.pathBytes, &section) } ?? false
    let users = ids("allow-users", "user", like: "libvirt-qemu", accounts.user, &section)
    let groups = ids("allow-groups", "group", like: "kvm", accounts.group, &section)
    let events = eventMask(&section)
    issues += section.finish()
    guard let name, let path, pathIsRight else { return }
    configuration.shares.append(
      ShareConfiguration(
        name: name, path: path, allowedUsers: users, allowedGroups: groups, events: events))
  }
}

// The values of a share, and what several keys have in common.
extension ConfigurationReader {
  /// `"0660"`: octal, the three permission digits.
  static func mode(_ text: String) -> UInt32? {
    let digits = text.utf8
    guard digits.count == 4, digits.first == UInt8(ascii: "0"),
      digits.allSatisfy({ $0 >= 0x30 && $0 <= 0x37 })
    else { return nil }
    return UInt32(text, radix: 8)
  }

  /// What is wrong with a share's name, or nil.
  static func problem(withShareName name: String) -> String? {
    if name.isEmpty { return "the name is empty" }
    if name.utf8.count > Configuration.Range.shareNameBytes { return "the name is too long" }
    if name != escapingControls(name) { return "\(quoted(name)) holds a control character" }
    return nil
  }

  static let shareNameRemedy =
    "write 1 to \(Configuration.Range.shareNameBytes) bytes without control characters"

  private func shareName(_ section: inout SectionReader, firstLines: inout [String: Int])
    -> String?
  {
    guard let name = section.string("name", like: "src") else {
      if !section.table.contains(key: "name") {
        section.refuse(nil, "name is missing", "write name = \"src\"")
      }
      return nil
    }
    if let problem = ConfigurationReader.problem(withShareName: name) {
      section.refuse("name", problem, ConfigurationReader.shareNameRemedy)
      return nil
    }
    if let line = firstLines[name] {
      section.refuse(
        "name", "\(quoted(name)) is the share of line \(line) already", "give each its own name")
      return nil
    }
    firstLines[name] = locator.line(of: section.path + [.key("name")]) ?? 0
    return name
  }

  private func isAbsolute(
    _ path: String, _ key: String, atMost limit: Int, _ section: inout SectionReader
  ) -> Bool {
    guard path.hasPrefix("/") else {
      section.refuse(key, "\(quoted(path)) is not absolute", "write a path that starts with /")
      return false
    }
    guard path.utf8.count <= limit else {
      section.refuse(
        key, "the path has \(path.utf8.count) bytes", "write a path of at most \(limit) bytes")
      return false
    }
    return true
  }

  private func ids(
    _ key: String, _ kind: String, like example: String,
    _ lookUp: (String) throws(SystemError) -> UInt32?, _ section: inout SectionReader
  ) -> Set<UInt32> {
    var ids: Set<UInt32> = []
    for (name, path) in section.strings(key, like: example) ?? [] {
      do throws(SystemError) {
        if let id = try lookUp(name) {
          ids.insert(id)
        } else {
          section.refuse(
            at: path, "unknown \(kind) \(quoted(name))",
            "write a \(kind) of this host, or a numeric id as a string")
        }
      } catch {
        section.refuse(
          at: path, "\(kind) \(quoted(name)) cannot be looked up: \(error)",
          "try again, or write its numeric id as a string", isPassing: true)
      }
    }
    return ids
  }

  private func eventMask(_ section: inout SectionReader) -> EventMask {
    guard let names = section.strings("events", like: "create") else { return .allEvents }
    let known = EventMask.names.filter { $0.mask != .isDirectory }.map(\.name)
    let remedy = "write some of \(known.joined(separator: ", "))"
    if names.isEmpty { section.refuse("events", "the list is empty", remedy) }
    var mask: EventMask = []
    for (name, path) in names {
      if known.contains(name), let event = EventMask(name: name) {
        mask.insert(event)
      } else {
        section.refuse(at: path, "unknown event \(quoted(name))", remedy)
      }
    }
    return mask
  }
}
