// swift-tools-version: 6.2
import PackageDescription

/// What every Swift target is held to: unsafe code is marked where it stands,
/// and an unmarked one does not compile.
let strict: [SwiftSetting] = [
  .strictMemorySafety(),
  .treatWarning("StrictMemorySafety", as: .error),
  .swiftLanguageMode(.v6),
]

/// The library runs on one thread, and its debug builds, which the tests run,
/// check that no two accesses overlap. Checked at run time on the way of an event,
/// in classes' properties, that would be half of the instructions.
let hot: [SwiftSetting] = [
  .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release))
]

let package = Package(
  name: "hostwatchd",
  products: [
    .executable(name: "hostwatchd", targets: ["hostwatchd"]),
    .executable(name: "hostwatchctl", targets: ["hostwatchctl"]),
    .executable(name: "hostwatchfs", targets: ["hostwatchfs"]),
    .library(name: "HostWatch", targets: ["HostWatch"]),
    .library(name: "CHostWatch", targets: ["CHostWatch"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/LebJe/TOMLKit", from: "0.6.0"),
  ],
  targets: [
    .target(name: "CFanotify", cSettings: [.define("_GNU_SOURCE")]),
    .target(
      name: "CHostWatch",
      cSettings: [.unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"])]),
    .systemLibrary(
      name: "CSystemd", pkgConfig: "libsystemd",
      providers: [.apt(["libsystemd-dev"])]),
    .target(
      name: "HostWatch", dependencies: ["CFanotify", "CHostWatch"],
      swiftSettings: strict + hot),
    .executableTarget(
      name: "hostwatchd",
      dependencies: [
        "HostWatch", "CFanotify", "CSystemd",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
        .product(name: "Logging", package: "swift-log"),
        .product(name: "TOMLKit", package: "TOMLKit"),
      ],
      swiftSettings: strict),
    .executableTarget(
      name: "hostwatchctl",
      dependencies: [
        "HostWatch", "CFanotify", "CHostWatch",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .target(
      name: "CReplay",
      cSettings: [
        .define("_GNU_SOURCE"), .unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"]),
      ]),
    .target(
      name: "HostWatchReplay", dependencies: ["HostWatch", "CReplay"], swiftSettings: strict),
    .systemLibrary(
      name: "CFuse", pkgConfig: "fuse3", providers: [.apt(["libfuse3-dev"])]),
    .target(
      name: "CHostWatchFS", dependencies: ["CFuse"],
      cSettings: [
        .define("_GNU_SOURCE"), .unsafeFlags(["-std=c11", "-Wall", "-Wextra", "-Werror"]),
      ]),
    .executableTarget(
      name: "hostwatchfs",
      dependencies: [
        "HostWatch", "HostWatchReplay", "CFanotify", "CHostWatch", "CFuse", "CHostWatchFS",
        "CReplay",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ],
      swiftSettings: strict),
    .target(
      name: "CTestSupport", path: "Tests/CTestSupport", cSettings: [.define("_GNU_SOURCE")]),
    .target(name: "TestSupport", path: "Tests/TestSupport", swiftSettings: strict),
    .testTarget(
      name: "HostWatchTests",
      dependencies: [
        "HostWatch", "HostWatchReplay", "CFanotify", "CHostWatch", "hostwatchctl", "hostwatchd",
        "hostwatchfs", "TestSupport",
      ],
      swiftSettings: strict),
    .testTarget(
      name: "HostWatchKernelTests",
      dependencies: ["HostWatch", "CFanotify", "CHostWatch", "CTestSupport", "TestSupport"],
      swiftSettings: strict),
  ]
)
