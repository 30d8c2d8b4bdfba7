import CFanotify
import Glibc
import HostWatch
import Testing

@testable import hostwatchd

/// A service manager that listens, or does not.
private final class Manager {
  let directory: TemporaryDirectory
  private var socket: Int32 = -1

  init() throws {
    directory = try TemporaryDirectory()
    try listen()
  }

  deinit { _ = close(socket) }

  var path: String { "\(directory.path)/s" }

  func listen() throws {
    socket = Glibc.socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue | SOCK_NONBLOCK.rawValue), 0)
    let result = unsafe hw_bind_path(socket, path)
    try #require(result == 0)
  }

  func goAway() {
    _ = close(socket)
    _ = unsafe unlink(path)
    socket = -1
  }

  /// What it has been told since it was asked last: the first line of each.
  var heard: [String] {
    var all: [String] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    while true {
      // At most the buffer's count is written to it.
      let count = unsafe buffer.withUnsafeMutableBytes {
        unsafe recv(socket, $0.baseAddress, $0.count, 0)
      }
      guard count > 0 else { return all }
      let text = String(decoding: buffer[..<count], as: UTF8.self)
      all.append(text.split(separator: "\n").prefix(2).joined(separator: " "))
    }
  }
}

@Suite struct SystemdStoreTests {
  private let removal = "FDSTOREREMOVE=1 FDNAME=hostwatchd-handover"
  private let storing = "FDSTORE=1 FDNAME=hostwatchd-handover"

  /// Two descriptors of one name would be of no use to the next process.
  @Test func whatCouldNotBeRemovedIsRemovedBeforeItsNameIsUsedAgain() throws {
    let manager = try Manager()
    let file = OwnedDescriptor(unsafe hw_memfd("test"))
    var complaints: [String] = []
    let store = SystemdStore(
      socket: manager.path, capacity: 4,
      inherited: ["hostwatchd-handover": [hw_duplicate(file.rawValue)]]
    ) { complaints.append($1) }
    switch store.take("handover") {
    case .some: break
    case .none: Issue.record("it was not given out")
    }
    manager.goAway()
    store.remove("handover")
    #expect(complaints.count == 1)
    #expect(!store.add(file.rawValue, name: "handover"))
    try manager.listen()
    #expect(store.add(file.rawValue, name: "handover"))
    #expect(manager.heard == [removal, storing])
    store.remove("handover")
    #expect(store.add(file.rawValue, name: "handover"))
    #expect(manager.heard == [removal, storing])
  }

  @Test func onePlaceIsKeptForTheHandOver() throws {
    let manager = try Manager()
    let file = OwnedDescriptor(unsafe hw_memfd("test"))
    let store = SystemdStore(socket: manager.path, capacity: 2, inherited: [:]) { _, _ in }
    #expect(store.add(file.rawValue, name: "group.1"))
    #expect(!store.add(file.rawValue, name: "group.2"))
    #expect(store.add(file.rawValue, name: "handover"))
  }
}
