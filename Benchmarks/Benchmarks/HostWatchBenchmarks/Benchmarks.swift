// SPDX-License-Identifier: Apache-2.0
import Benchmark
import Counting
import Fixtures

/// The pieces one by one. Allocations are asserted, by a counter in place of
/// malloc; the times are to be looked at.
let benchmarks: @Sendable () -> Void = {
  Benchmark.defaultConfiguration = .init(
    metrics: [.cpuUser, .wallClock, .throughput], warmupIterations: 5,
    maxDuration: .seconds(2), maxIterations: 2000)

  func pipeline(_ name: String, _ recording: String, sessions: Int, allocates: Bool) {
    let recording = Recording(recording)
    Benchmark("pipeline, \(name): \(recording.events) events") { benchmark in
      let pipeline = Pipeline(recording, sessions: sessions)
      for _ in 0..<3 { pipeline.run(pipeline.load()) }
      let loaded = pipeline.load()
      let before = counting_allocations()
      benchmark.startMeasurement()
      pipeline.run(loaded)
      benchmark.stopMeasurement()
      if !allocates && counting_allocations() != before {
        benchmark.error("\(counting_allocations() - before) allocations")
      }
    }
  }

  pipeline("storm", "churn", sessions: 1, allocates: false)
  pipeline("storm, 1,000 sessions", "churn", sessions: 1000, allocates: false)
  pipeline("writes", "append", sessions: 1, allocates: false)
  // What is ambiguous is looked up.
  pipeline("ambiguous renames", "cycle", sessions: 1, allocates: true)

  let storm = Recording("churn")
  Benchmark("parser: \(storm.events) records") { benchmark in
    let parser = Parser(storm)
    parser.run()
    benchmark.startMeasurement()
    parser.run()
    benchmark.stopMeasurement()
  }

  Benchmark("encoder: 1,000 records") { benchmark in
    let encoder = Encoder()
    encoder.run(1000)
    benchmark.startMeasurement()
    encoder.run(1000)
    benchmark.stopMeasurement()
  }

  for count in [1000, 100_000, 1_000_000] {
    let nodes = NodeSet(count)
    Benchmark("4,096 lookups among \(count) nodes") { benchmark in
      benchmark.startMeasurement()
      blackHole(nodes.run())
      benchmark.stopMeasurement()
    }
  }
}
