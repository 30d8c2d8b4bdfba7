import Testing

@testable import hostwatchctl

@Suite struct MetricsTextTests {
  private let status = #"""
    {"uptime_seconds":3.5,"totals":{"sessions":1,"nodes":2,"kernel_events":18446744073709551615},
    "lag_bounds_us":[50,2500],
    "filesystems":[{"device":"8:1","type":"ext4","kernel_events":9,"queue_events":0,
      "lag_bounds_us":[50,2500],"lag_counts":[1,2,3],"lag_sum_us":1500000}],
    "shares":[{"name":"a\"b\\c\nd","state":"ready","sessions":1,"queue_bytes":4,"delivered":7,
      "delivered_bytes":700,"corrected":1,"dropped":0,"lost":2,"lag_counts":[0,5,0],"lag_sum_us":5},
      {"name":"old","state":"unavailable","sessions":0}],
    "sessions":[{"id":3,"share":"src","nodes":2,"queue_bytes":96,"queue_limit":4096,"delivered":7,
      "delivered_bytes":700,"corrected":1,"dropped":0,"lost":2,"lag_counts":[4,0,0],
      "lag_sum_us":100},
      {"id":4,"share":null,"nodes":1,"lag_counts":[1]}]}
    """#

  private func lines() throws -> [String] {
    MetricsText(try JSONParser.parse(status)).text.split(separator: "\n").map(String.init)
  }

  @Test func histogramsAreCumulativeAndInSeconds() throws {
    let lines = try lines()
    let labels = #"device="8:1",type="ext4""#
    #expect(
      lines.filter { $0.hasPrefix("hostwatch_filesystem_lag_seconds") } == [
        "hostwatch_filesystem_lag_seconds_bucket{\(labels),le=\"5e-05\"} 1",
        "hostwatch_filesystem_lag_seconds_bucket{\(labels),le=\"0.0025\"} 3",
        "hostwatch_filesystem_lag_seconds_bucket{\(labels),le=\"+Inf\"} 6",
        "hostwatch_filesystem_lag_seconds_sum{\(labels)} 1.5",
        "hostwatch_filesystem_lag_seconds_count{\(labels)} 6",
      ])
  }

  @Test func countsThatAreNoneAreLeftOut() throws {
    let status = try JSONParser.parse(
      #"{"filesystems":[{"lag_bounds_us":[50],"lag_counts":[-1,1e300],"lag_sum_us":1}]}"#)
    #expect(
      MetricsText(status).text.contains(
        "hostwatch_filesystem_lag_seconds_count{device=\"\",type=\"\"} 0\n"))
  }

  @Test func sharesAndSessionsTellTheSame() throws {
    let lines = try lines()
    let share = #"{share="a\"b\\c\nd"}"#
    let session = #"{session="3",share="src"}"#
    for (name, value) in [
      ("delivered_total", 7), ("delivered_bytes_total", 700), ("corrected_total", 1),
      ("dropped_total", 0), ("lost_total", 2),
    ] {
      #expect(lines.contains("hostwatch_share_\(name)\(share) \(value)"))
      #expect(lines.contains("hostwatch_session_\(name)\(session) \(value)"))
    }
    #expect(lines.contains("hostwatch_share_queue_bytes\(share) 4"))
    #expect(lines.contains("hostwatch_session_queue_bytes\(session) 96"))
    #expect(lines.contains("hostwatch_share_lag_seconds_count\(share) 5"))
    #expect(lines.contains("hostwatch_session_lag_seconds_count\(session) 4"))
    #expect(lines.contains("hostwatch_share_ready{share=\"old\"} 0"))
  }

  @Test func whatIsNotToldOrDoesNotFitIsLeftOut() throws {
    let lines = try lines()
    #expect(lines.contains("hostwatch_kernel_events_total 18446744073709551615"))
    #expect(!lines.contains { $0.hasPrefix("hostwatch_share_delivered_total{share=\"old\"") })
    // As many buckets as bounds and one: else nobody knows what they mean.
    #expect(!lines.contains { $0.contains("lag_seconds") && $0.contains("session=\"4\"") })
    #expect(!lines.contains { $0.hasPrefix("# TYPE hostwatch_lost_total") })
    #expect(MetricsText(.object([:])).text.isEmpty)
  }

  @Test func everyFamilyIsDeclaredOnceAndItsLinesFollow() throws {
    var current = ""
    var declared: Set<String> = []
    for line in try lines() {
      let words = line.split(separator: " ")
      if line.hasPrefix("# HELP ") {
        current = String(words[2])
        #expect(declared.insert(current).inserted)
      } else {
        #expect((line.hasPrefix("# TYPE ") ? String(words[2]) : line).hasPrefix(current))
      }
    }
  }
}
