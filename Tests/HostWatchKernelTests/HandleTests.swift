import Glibc
import Testing

import class Foundation.FileManager

@testable import HostWatch

/// A directory on tmpfs (/dev/shm), removed at the end.
final class Scratch {
  let path: String

  init() throws {
    var template = Array("/dev/shm/hostwatch-test.XXXXXX".utf8CString)
    let made = unsafe template.withUnsafeMutableBufferPointer { unsafe mkdtemp($0.baseAddress!) }
    guard let made = unsafe made else { throw SystemError("mkdtemp", errno) }
    path = unsafe String(cString: made)
  }

  deinit {
    do {
      try FileManager.default.removeItem(atPath: path)
    } catch {
      Issue.record("\(path) is left behind: \(error)")
    }
  }

  func directory(_ name: String) throws -> FileHandle {
    guard unsafe mkdir("\(path)/\(name)", 0o755) == 0 else { throw SystemError("mkdir", errno) }
    return try handle(name)
  }

  func handle(_ name: String) throws -> FileHandle {
    let open = try Syscall.openDirectory("\(path)/\(name)")
    return try Syscall.handle(of: open.rawValue)
  }

  func move(_ from: String, _ to: String) throws {
    guard unsafe rename("\(path)/\(from)", "\(path)/\(to)") == 0 else {
      throw SystemError("rename", errno)
    }
  }
}

@Suite(.enabled(if: geteuid() == 0, "needs root: it opens handles and clones mounts"))
struct HandleTests {
  @Test func aHandleOpensItsObjectAgain() throws {
    let scratch = try Scratch()
    let handle = try scratch.directory("d")
    let root = try Syscall.openDirectory(scratch.path)
    let mount = try DetachedMount(cloning: root.rawValue)
    let again = try Syscall.open(handle, on: mount)
    #expect(try Syscall.handle(of: again.rawValue) == handle)
  }

  @Test func whatIsGoneIsStale() throws {
    let scratch = try Scratch()
    let handle = try scratch.directory("d")
    let root = try Syscall.openDirectory(scratch.path)
    let mount = try DetachedMount(cloning: root.rawValue)
    _ = unsafe rmdir("\(scratch.path)/d")
    #expect(throws: SystemError("open_by_handle_at", ESTALE)) {
      _ = try Syscall.open(handle, on: mount).rawValue
    }
  }
}

@Suite(.enabled(if: geteuid() == 0, "needs root: it opens handles and clones mounts"))
struct DirectoryIndexTests {
  private func index(_ scratch: Scratch, capacity: Int = 32768) throws -> DirectoryIndex {
    let root = try Syscall.openDirectory("\(scratch.path)/share")
    return DirectoryIndex(
      root: try Syscall.handle(of: root.rawValue),
      mount: try DetachedMount(cloning: root.rawValue), seed: 5, capacity: capacity)
  }

  private func path(_ index: inout DirectoryIndex, _ handle: FileHandle) -> String? {
    let entry = handle.withView { index.locate($0) }
    guard entry != 0 else { return nil }
    var bytes: [UInt8] = []
    guard index.appendPath(of: entry, to: &bytes) else { return "?" }
    return String(decoding: bytes, as: UTF8.self)
  }

  @Test func itFindsWhatIsInsideAndNothingElse() throws {
    let scratch = try Scratch()
    _ = try scratch.directory("share")
    _ = try scratch.directory("share/a")
    let deep = try scratch.directory("share/a/b")
    let outside = try scratch.directory("other")
    let below = try scratch.directory("other/x")
    var index = try index(scratch)
    #expect(path(&index, deep) == "a/b")
    #expect(path(&index, try scratch.handle("share")) == "")
    #expect(path(&index, outside) == nil)
    #expect(path(&index, below) == nil)
    #expect(path(&index, try scratch.handle(".")) == nil)
  }

  @Test func recordsKeepItUp() throws {
    let scratch = try Scratch()
    let root = try scratch.directory("share")
    let a = try scratch.directory("share/a")
    let b = try scratch.directory("share/a/b")
    let outside = try scratch.directory("other")
    let x = try scratch.directory("other/x")
    let y = try scratch.directory("other/x/y")
    var index = try index(scratch)
    #expect(path(&index, b) == "a/b")
    #expect(path(&index, y) == nil)
    // a goes out: what is below it goes with it.
    try scratch.move("share/a", "other/a")
    a.withView { index.placeOutside($0) }
    #expect(path(&index, b) == nil)
    // x comes in: what was found outside before is asked for again.
    try scratch.move("other/x", "share/in")
    let parent = root.withView { index.locate($0) }
    x.withView { view in
      NameView.with(Array("in".utf8)) { name in
        index.place(view, in: parent, name: name, movedIn: true)
      }
    }
    #expect(path(&index, y) == "in/y")
    #expect(path(&index, outside) == nil)
  }

  @Test func itStaysWithinItsCapacity() throws {
    let scratch = try Scratch()
    _ = try scratch.directory("share")
    let handles = try (0..<200).map { try scratch.directory("share/d\($0)") }
    var index = try index(scratch, capacity: 32)
    for _ in 0..<3 {
      for (number, handle) in handles.enumerated() {
        #expect(path(&index, handle) == "d\(number)")
      }
    }
    #expect(index.count <= 32)
  }
}

@Suite(.enabled(if: geteuid() == 0, "needs root: it marks filesystems"))
struct FanotifyGroupTests {
  @Test func theMarkFollowsTheMask() throws {
    let scratch = try Scratch()
    let root = try Syscall.openDirectory(scratch.path)
    var group = try FanotifyGroup(marking: root.rawValue)
    #expect(group.mask == FanotifyGroup.idleMask)
    try group.setMask([.create, .modify], directory: root.rawValue)
    try group.setMask([.modify], directory: root.rawValue)
    #expect(group.mask == .modify)
    // Others may change what is on this filesystem at any time: a name of our own.
    let unseen = "unseen-\(getpid())"
    _ = try scratch.directory(unseen)
    let segment = EventSegment()
    while try segment.fill(from: group.descriptor.rawValue) > 0 {
      var events: [KernelEvent] = []
      try segment.parse(into: &events, segment: 0)
      let names = events.map { segment.view.name($0.name, $0.nameSize).bytes }
      #expect(!names.contains(Array(unseen.utf8)))
      if segment.reachedEnd { break }
    }
  }

  @Test func whatCannotBeWatchedSaysWhyAndWhatToDo() throws {
    let proc = try Syscall.openDirectory("/proc")
    #expect {
      _ = try FanotifyGroup(marking: proc.rawValue).device
    } throws: { error in
      guard let error = error as? WatchError else { return false }
      return error.cause.code == EOPNOTSUPP || error.cause.code == ENODEV
        ? error.description.hasPrefix("proc: ") && error.description.contains("share")
        : false
    }
  }
}
