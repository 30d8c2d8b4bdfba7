import CFanotify

/// A moment, as it is printed.
struct Clock {
  private let time: timespec

  static func now() -> Clock {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_REALTIME, &time)
    return Clock(time: time)
  }

  static func monotonicMicroseconds() -> UInt64 {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000 + UInt64(time.tv_nsec) / 1000
  }

  /// `15:04:05.123456`, in the local time zone.
  var local: String {
    var seconds = time.tv_sec
    var parts = unsafe tm()
    _ = unsafe localtime_r(&seconds, &parts)
    return unsafe daytime(parts.tm_hour, parts.tm_min, parts.tm_sec)
  }

  /// `2026-01-02T15:04:05.123456Z`.
  var universal: String {
    var seconds = time.tv_sec
    var parts = unsafe tm()
    _ = unsafe gmtime_r(&seconds, &parts)
    let year = unsafe digits(parts.tm_year + 1900, 4)
    let day = unsafe "\(digits(parts.tm_mon + 1))-\(digits(parts.tm_mday))"
    let daytime = unsafe daytime(parts.tm_hour, parts.tm_min, parts.tm_sec)
    return "\(year)-\(day)T\(daytime)Z"
  }

  private func daytime(_ hour: Int32, _ minute: Int32, _ second: Int32) -> String {
    let fraction = digits(Int32(time.tv_nsec / 1000), 6)
    return "\(digits(hour)):\(digits(minute)):\(digits(second)).\(fraction)"
  }

  private func digits(_ value: Int32, _ width: Int = 2) -> String {
    let text = String(value)
    return String(repeating: "0", count: max(0, width - text.count)) + text
  }
}
