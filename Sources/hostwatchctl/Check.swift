/// One thing that doctor looked at.
struct Check {
  enum State: String {
    case ok
    case warn
    case fail
  }

  /// Short and the same in every run: programs go by it.
  let name: String
  let state: State
  /// What was found.
  let finding: String
  /// What to do about it, where something is to be done.
  let advice: String?

  static func ok(_ name: String, _ finding: String) -> Check {
    Check(name: name, state: .ok, finding: finding, advice: nil)
  }

  static func warn(_ name: String, _ finding: String, _ advice: String) -> Check {
    Check(name: name, state: .warn, finding: finding, advice: advice)
  }

  static func fail(_ name: String, _ finding: String, _ advice: String) -> Check {
    Check(name: name, state: .fail, finding: finding, advice: advice)
  }

  var lines: [String] {
    let first = "\(Line.padded(state.rawValue, 4))  \(Line.padded(name, 30))  \(Line.text(finding))"
    guard let advice else { return [first] }
    return [first, String(repeating: " ", count: 38) + "→ " + Line.text(advice)]
  }

  var json: JSON {
    .object([
      "name": .string(name), "state": .string(state.rawValue), "finding": .string(finding),
      "advice": advice.map { .string($0) } ?? .null,
    ])
  }
}
