import ArgumentParser
import Glibc

/// When lines are coloured.
enum ColorChoice: String, CaseIterable, ExpressibleByArgument {
  case auto, always, never

  /// As asked for; else on a terminal that knows colours, unless NO_COLOR is set and
  /// not empty (no-color.org).
  func paint(isTerminal: Bool, environment: (String) -> String?) -> Paint {
    switch self {
    case .always: return Paint(isOn: true)
    case .never: return Paint(isOn: false)
    case .auto:
      let refused = !(environment("NO_COLOR") ?? "").isEmpty
      let terminal = environment("TERM") ?? ""
      return Paint(isOn: isTerminal && !refused && !terminal.isEmpty && terminal != "dumb")
    }
  }

  /// For the standard output of this process.
  var paint: Paint {
    paint(isTerminal: isatty(STDOUT_FILENO) == 1) { name in
      unsafe getenv(name).map { unsafe String(cString: $0) }
    }
  }
}

/// Puts colour around text that has no control characters of its own.
struct Paint {
  enum Style: String {
    case faint = "2"
    case red = "31"
    case green = "32"
    case yellow = "33"
    case blue = "34"
  }

  var isOn = false

  func callAsFunction(_ style: Style?, _ text: String) -> String {
    guard isOn, let style else { return text }
    return "\u{1b}[\(style.rawValue)m\(text)\u{1b}[0m"
  }
}
