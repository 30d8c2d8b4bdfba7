// SPDX-License-Identifier: Apache-2.0
//
// figures WORKLOAD [REPEATS]
//
// Runs one workload and prints, as one line of JSON, how many events it was,
// what was allocated for them and, for the table, how many bytes a node takes.
// Under callgrind, told to count in counting_region, it counts instructions;
// `check` does that and compares.
import Counting
import Fixtures
import Glibc

/// Calls `body` where callgrind counts; how often it allocated.
func measured(_ body: () -> Void) -> UInt64 {
  withoutActuallyEscaping(body) { escaping in
    var closure = escaping
    return withUnsafeMutablePointer(to: &closure) {
      counting_region({ $0!.assumingMemoryBound(to: (() -> Void).self).pointee() }, $0)
    }
  }
}

func report(_ workload: String, events: Int, allocations: UInt64, bytes: Double = 0) {
  print(
    "{\"workload\": \"\(workload)\", \"events\": \(events), \"allocations\": \(allocations),"
      + " \"bytes_per_node\": \(bytes)}")
}

func pipeline(_ workload: String, _ recording: String, sessions: Int, repeats: Int) {
  let recording = Recording(recording)
  let pipeline = Pipeline(recording, sessions: sessions)
  // Memory that is kept is had once.
  for _ in 0..<3 { pipeline.run(pipeline.load()) }
  var allocations: UInt64 = 0
  for _ in 0..<repeats {
    let loaded = pipeline.load()
    allocations += measured { pipeline.run(loaded) }
  }
  precondition(pipeline.delivered > 0)
  report(workload, events: recording.events * repeats, allocations: allocations)
}

let workload = CommandLine.arguments.count > 1 ? CommandLine.arguments[1] : ""
let repeats = CommandLine.arguments.count > 2 ? Int(CommandLine.arguments[2]) ?? 8 : 8
switch workload {
case "churn", "append", "cycle":
  pipeline(workload, workload, sessions: 1, repeats: repeats)
case "churn-1000-sessions":
  pipeline(workload, "churn", sessions: 1000, repeats: repeats)
case "lookup":
  let nodes = NodeSet(100_000)
  var found = 0
  var allocations: UInt64 = 0
  for _ in 0..<repeats { allocations += measured { found += nodes.run() } }
  precondition(found == nodes.lookups * repeats)
  report(workload, events: nodes.lookups * repeats, allocations: allocations)
case "table":
  let count = repeats == 8 ? 1_000_000 : repeats
  let before = counting_live_bytes()
  let nodes = NodeSet(count, lookups: 1)
  let bytes = Double(Int(counting_live_bytes() - before) + nodes.mappedBytes) / Double(count)
  precondition(nodes.run() == 1)
  report(workload, events: count, allocations: 0, bytes: bytes)
case "time":
  // Nanoseconds an event, of this machine at this moment: to look at, not to test.
  for name in ["churn", "append", "cycle"] {
    let recording = Recording(name)
    let pipeline = Pipeline(recording)
    var best = Double.infinity
    for _ in 0..<200 {
      let loaded = pipeline.load()
      var begin = timespec()
      var end = timespec()
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin)
      pipeline.run(loaded)
      clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end)
      let spent = (end.tv_sec - begin.tv_sec) * 1_000_000_000 + end.tv_nsec - begin.tv_nsec
      best = min(best, Double(spent) / Double(recording.events))
    }
    print("{\"workload\": \"\(name)\", \"nanoseconds_per_event\": \(best)}")
  }
default:
  print("usage: figures churn|append|cycle|churn-1000-sessions|lookup|table|time [REPEATS]")
  exit(64)
}
