/// `text` with its control characters written as escapes, so that a name
/// someone chose can neither begin a new line nor drive a terminal.
///
/// C0, DEL and C1 controls, the line and paragraph separators, and the
/// characters that turn the direction of what follows are escaped. What has
/// been escaped once stays as it is when it is escaped again.
func escapingControls(_ text: String) -> String {
  guard text.unicodeScalars.contains(where: needsEscape) else { return text }
  var escaped = ""
  for scalar in text.unicodeScalars {
    switch scalar {
    case _ where !needsEscape(scalar): escaped.unicodeScalars.append(scalar)
    case "\n": escaped += "\\n"
    case "\t": escaped += "\\t"
    case "\r": escaped += "\\r"
    default: escaped += "\\u{" + String(scalar.value, radix: 16) + "}"
    }
  }
  return escaped
}

private func needsEscape(_ scalar: Unicode.Scalar) -> Bool {
  switch scalar.value {
  case 0...0x1F, 0x7F...0x9F, 0x2028, 0x2029, 0x202A...0x202E, 0x2066...0x2069: true
  default: false
  }
}
