/// Durations and sizes as the configuration writes them. Pure.
enum Units {
  /// `"1ms"`, `"500us"`, `"2s"` or `"0"`, in microseconds; nil for all else.
  static func microseconds(_ text: String) -> Int? {
    if text == "0" { return 0 }
    return scaled(text, by: [("us", 1), ("ms", 1000), ("s", 1_000_000)])
  }

  /// `"4MiB"`, `"64KiB"`, `"1GiB"` or `"4096"`, in bytes; nil for all else.
  static func bytes(_ text: String) -> Int? {
    scaled(text, by: [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1)])
  }

  /// A duration in the largest unit that takes it whole.
  static func duration(_ microseconds: Int) -> String {
    if microseconds == 0 { return "0" }
    if microseconds % 1_000_000 == 0 { return "\(microseconds / 1_000_000)s" }
    if microseconds % 1000 == 0 { return "\(microseconds / 1000)ms" }
    return "\(microseconds)us"
  }

  /// A size in the largest unit that takes it whole.
  static func size(_ bytes: Int) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] where bytes != 0 {
      if bytes % (1 << shift) == 0 { return "\(bytes >> shift)\(unit)" }
    }
    return "\(bytes)"
  }

  /// Digits and one of the units, nothing else: no sign, no fraction, no
  /// space. The first unit that ends the text counts.
  private static func scaled(_ text: String, by units: [(name: String, factor: Int)]) -> Int? {
    guard let unit = units.first(where: { text.hasSuffix($0.name) }) else { return nil }
    let digits = text.utf8.dropLast(unit.name.utf8.count)
    guard !digits.isEmpty, digits.allSatisfy({ $0 >= 0x30 && $0 <= 0x39 }) else { return nil }
    var value = 0
    for digit in digits {
      let (tens, tensOverflow) = value.multipliedReportingOverflow(by: 10)
      let (sum, sumOverflow) = tens.addingReportingOverflow(Int(digit - 0x30))
      guard !tensOverflow, !sumOverflow else { return nil }
      value = sum
    }
    let (product, overflow) = value.multipliedReportingOverflow(by: unit.factor)
    return overflow ? nil : product
  }
}
