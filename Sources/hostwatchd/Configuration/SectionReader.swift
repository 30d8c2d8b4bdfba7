import TOMLKit

/// Reads one table: each key once, by its type and range, and notes what is
/// wrong instead of stopping at it.
///
/// A getter returns nil when the key is absent or wrong; in the second case
/// it has left an issue. `finish` notes the keys that nobody asked for.
struct SectionReader {
  let table: TOMLTable
  let path: KeyPath
  let locator: SourceLocator
  private(set) var issues: [ConfigurationIssue] = []
  private var known: [String] = []

  init(table: TOMLTable, path: KeyPath, locator: SourceLocator) {
    self.table = table
    self.path = path
    self.locator = locator
  }

  mutating func refuse(_ key: String?, _ problem: String, _ remedy: String) {
    refuse(at: key.map { path + [.key($0)] } ?? path, problem, remedy)
  }

  mutating func refuse(
    at path: KeyPath, _ problem: String, _ remedy: String, isPassing: Bool = false
  ) {
    issues.append(
      ConfigurationIssue(
        line: locator.line(of: path), key: path.text, problem: problem, remedy: remedy,
        isPassing: isPassing))
  }

  mutating func string(_ key: String, like example: String) -> String? {
    guard let value = value(key) else { return nil }
    if let string = value.string { return string }
    refuse(key, SectionReader.found(value), "write a string such as \"\(example)\"")
    return nil
  }

  mutating func integer(_ key: String, in range: ClosedRange<Int>) -> Int? {
    guard let value = value(key) else { return nil }
    guard let number = value.int else {
      refuse(key, SectionReader.found(value), "write an integer from \(SectionReader.text(range))")
      return nil
    }
    guard range.contains(number) else {
      refuse(key, "\(number) is out of range", "write an integer from \(SectionReader.text(range))")
      return nil
    }
    return number
  }

  /// A number of bytes: an integer, or a string with a unit.
  mutating func size(_ key: String, in range: ClosedRange<Int>) -> Int? {
    guard let value = value(key) else { return nil }
    let remedy =
      "write a size from \"\(Units.size(range.lowerBound))\" to "
      + "\"\(Units.size(range.upperBound))\" (KiB, MiB, GiB, or an integer of bytes)"
    guard value.type == .int || value.type == .string else {
      refuse(key, SectionReader.found(value), remedy)
      return nil
    }
    guard let bytes = value.int ?? value.string.flatMap(Units.bytes) else {
      refuse(key, "\(quoted(value.string ?? "")) is not a size", remedy)
      return nil
    }
    guard range.contains(bytes) else {
      refuse(key, "\(value.string.map(quoted) ?? "\(bytes)") is out of range", remedy)
      return nil
    }
    return bytes
  }

  /// A duration in microseconds, from a string with a unit.
  mutating func duration(_ key: String, in range: ClosedRange<Int>) -> Int? {
    guard let value = value(key) else { return nil }
    let remedy =
      "write a duration from \"\(Units.duration(range.lowerBound))\" to "
      + "\"\(Units.duration(range.upperBound))\" such as \"500us\" or \"1ms\" (us, ms, s)"
    guard let text = value.string else {
      refuse(key, SectionReader.found(value), remedy)
      return nil
    }
    guard let microseconds = Units.microseconds(text) else {
      refuse(key, "\(quoted(text)) is not a duration", remedy)
      return nil
    }
    guard range.contains(microseconds) else {
      refuse(key, "\(quoted(text)) is out of range", remedy)
      return nil
    }
    return microseconds
  }

  /// An array of strings, with the path of each for what else may be wrong.
  mutating func strings(_ key: String, like example: String) -> [(text: String, path: KeyPath)]? {
    guard let value = value(key) else { return nil }
    let remedy = "write an array of strings such as [\"\(example)\"]"
    guard let array = value.array else {
      refuse(key, SectionReader.found(value), remedy)
      return nil
    }
    var texts: [(text: String, path: KeyPath)] = []
    for (index, element) in array.enumerated() {
      let elementPath = path + [.key(key), .index(index)]
      if let text = element.string {
        texts.append((text, elementPath))
      } else {
        refuse(at: elementPath, SectionReader.found(element), remedy)
      }
    }
    return texts
  }

  mutating func value(_ key: String) -> TOMLValueConvertible? {
    known.append(key)
    // The subscript would make a value out of nothing for some absent keys.
    return table.contains(key: key) ? table[key] as TOMLValueConvertible? : nil
  }

  /// Notes unknown keys; all that was asked for is known.
  mutating func finish() -> [ConfigurationIssue] {
    for key in table.keys where !known.contains(key) {
      refuse(key, "unknown key", "known here: \(known.joined(separator: ", "))")
    }
    return issues
  }

  static func found(_ value: TOMLValueConvertible) -> String {
    let article = value.type == .int || value.type == .array ? "an" : "a"
    return "this is \(article) \(value.type.description)"
  }

  private static func text(_ range: ClosedRange<Int>) -> String {
    "\(range.lowerBound) to \(range.upperBound)"
  }
}

/// `text` in quotes, fit for a log.
func quoted(_ text: String) -> String { "\"\(escapingControls(text))\"" }
