// swift-tools-version: 6.2
import PackageDescription

/// libFuzzer brings main(); each product is one target of it.
let fuzzer: [SwiftSetting] = [.unsafeFlags(["-parse-as-library"])]

func target(_ name: String, _ others: [Target.Dependency] = []) -> Target {
  .executableTarget(
    name: name, dependencies: [.product(name: "HostWatch", package: "hostwatchd")] + others,
    swiftSettings: fuzzer)
}

let package = Package(
  name: "fuzz",
  dependencies: [
    .package(name: "hostwatchd", path: ".."),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/LebJe/TOMLKit", from: "0.6.0"),
  ],
  targets: [
    .target(name: "CFuzz", cSettings: [.define("_GNU_SOURCE")]),
    .target(
      name: "FuzzSupport", dependencies: [.product(name: "HostWatch", package: "hostwatchd")]),
    target("FuzzRecords"),
    target("FuzzReconciler", ["FuzzSupport"]),
    target("FuzzRequests"),
    target("FuzzMounts", ["FuzzSupport"]),
    target("FuzzHandOver"),
    target("FuzzSession", ["FuzzSupport", "CFuzz"]),
    // Calls what the C library's files share, by its own header.
    .target(
      name: "CFuzzClient", dependencies: [.product(name: "CHostWatch", package: "hostwatchd")],
      cSettings: [.define("_GNU_SOURCE")]),
    target("FuzzPackets", ["FuzzSupport", "CFuzzClient"]),
    // The programs' own sources, by a link: an executable cannot be imported.
    target("FuzzJSON"),
    target(
      "FuzzConfiguration",
      [
        .product(name: "Logging", package: "swift-log"),
        .product(name: "TOMLKit", package: "TOMLKit"),
      ]),
  ]
)
