import CFanotify
import CTestSupport
import Glibc

@testable import HostWatch

/// A thread with a mount namespace of its own: what it mounts goes when it
/// ends, or with the process, however that ends.
enum TestThread {
  /// Runs `body` there; its result, or what it threw.
  static func run<Value: Sendable>(_ body: @escaping @Sendable () throws -> Value) async throws
    -> Value
  {
    try await withCheckedThrowingContinuation { continuation in
      do throws(SystemError) {
        try BackgroundThread.start {
          continuation.resume(
            with: Result {
              try checked(test_separate_mounts(), "unshare(CLONE_NEWNS)")
              return try body()
            })
        }
      } catch {
        continuation.resume(throwing: error)
      }
    }
  }
}

/// The sysctl that sizes fanotify's queues is the whole machine's: runs beside
/// each other take turns (Tests/SystemTests/runner.py has the same locks).
enum QueueSysctl {
  private static let path = "/proc/sys/fs/fanotify/max_queued_events"
  private static let lock = "/run/lock/hostwatchd-tests"

  /// While nobody changes it.
  static func shared<Value>(_ body: () throws -> Value) throws -> Value {
    try locked(LOCK_SH, body)
  }

  /// With the value set, and restored.
  static func set<Value>(_ value: Int, _ body: () throws -> Value) throws -> Value {
    try locked(LOCK_EX) {
      let former = try Syscall.contents(of: path)
      try write(Array("\(value)".utf8))
      let result = Result { try body() }
      try write(former)
      return try result.get()
    }
  }

  private static func locked<Value>(_ operation: Int32, _ body: () throws -> Value) throws
    -> Value
  {
    let door = try open("\(lock).turn", O_RDWR | O_CREAT)
    let room = try open("\(lock).sysctl", O_RDWR | O_CREAT)
    try take(door, LOCK_EX)
    try take(room, operation)
    try take(door, LOCK_UN)
    let result = Result { try body() }
    try take(room, LOCK_UN)
    return try result.get()
  }

  private static func take(_ file: borrowing OwnedDescriptor, _ operation: Int32) throws {
    while flock(file.rawValue, operation) != 0 {
      guard errno == EINTR else { throw SystemError("flock", errno) }
    }
  }

  private static func open(_ path: String, _ flags: Int32) throws -> OwnedDescriptor {
    OwnedDescriptor(
      try checked(unsafe hw_openat(AT_FDCWD, path, flags | O_CLOEXEC, 0o644), "open(\(path))"))
  }

  private static func write(_ bytes: [UInt8]) throws {
    let file = try open(path, O_WRONLY)
    let written = unsafe Glibc.write(file.rawValue, bytes, bytes.count)
    guard written == bytes.count else { throw SystemError("write(\(path))", errno) }
  }
}
