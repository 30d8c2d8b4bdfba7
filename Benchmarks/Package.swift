// swift-tools-version: 6.2
import PackageDescription

/// `swift build` here needs `-Xswiftc -enable-testing`: the pieces that are
/// measured are internal to HostWatch.
let package = Package(
  name: "benchmarks",
  dependencies: [
    .package(name: "hostwatchd", path: ".."),
    .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.1", traits: []),
  ],
  targets: [
    .target(name: "Counting"),
    .target(
      name: "Fixtures",
      dependencies: ["Counting", .product(name: "HostWatch", package: "hostwatchd")]),
    .executableTarget(name: "figures", dependencies: ["Fixtures", "Counting"]),
    .executableTarget(
      name: "HostWatchBenchmarks",
      dependencies: [
        "Fixtures", "Counting", .product(name: "Benchmark", package: "benchmark"),
      ],
      path: "Benchmarks/HostWatchBenchmarks",
      plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
  ]
)
