import CFanotify
import CTestSupport
import Glibc
import TestSupport

@testable import HostWatch

/// A real filesystem with one mark as the daemon makes it, on which operations
/// of the simulator's are performed. Its records come back in the simulator's
/// terms: handles are turned into the model's inode numbers.
///
/// Used on a `TestThread`, in whose mount namespace it mounts.
final class RealFilesystem {
  /// How each kind is made from `image` and mounted at `mount`.
  static let kinds: [String: String] = [
    "ext4": "truncate -s 64M image && mkfs.ext4 -q image && mount -o loop image mount",
    "xfs": "truncate -s 320M image && mkfs.xfs -q image && mount -o loop image mount",
    "btrfs": "truncate -s 128M image && mkfs.btrfs -q image 2>notes && mount -o loop image mount",
    "tmpfs": "mount -t tmpfs none mount",
  ]

  private let directory: String
  private var base = ""
  private var group: FanotifyGroup?
  private var numbers: [FileHandle: UInt32] = [:]
  private var held: [UInt32: OwnedFile] = [:]
  private var histories = 0

  private final class OwnedFile {
    let descriptor: OwnedDescriptor
    init(_ descriptor: consuming OwnedDescriptor) { self.descriptor = descriptor }
  }

  init(_ kind: String) throws {
    var template = Array("/var/tmp/hostwatch-kernel.XXXXXX".utf8CString)
    let made = unsafe template.withUnsafeMutableBufferPointer { unsafe mkdtemp($0.baseAddress!) }
    guard let made = unsafe made else { throw SystemError("mkdtemp", errno) }
    directory = unsafe String(cString: made)
    // The image and the directory have no name any more once it is mounted.
    let script =
      "cd \(directory) && mkdir mount && \(Self.kinds[kind] ?? "false") && rm -f image notes"
    let status = unsafe system(script)
    guard status == 0 else {
      _ = unsafe system("rm -rf --one-file-system \(directory)")
      throw SystemError("making \(kind)", EIO)
    }
  }

  deinit {
    held = [:]
    group = nil
    _ = unsafe system("cd / && umount -l \(directory)/mount && rm -r \(directory)")
  }

  // MARK: Histories

  /// An empty directory and an empty queue.
  func begin() throws {
    held = [:]
    numbers = [:]
    group = nil
    histories += 1
    base = "\(directory)/mount/\(histories)"
    try check(unsafe mkdir(base, 0o755), "mkdir")
    numbers[try handle(base)] = KernelSimulator.root
    let root = try Syscall.openDirectory(base)
    var new = try FanotifyGroup(marking: root.rawValue)
    try new.setMask(.defaultEvents, directory: root.rawValue)
    group = consume new
  }

  /// Removes what the history has left.
  func end() throws {
    held = [:]
    group = nil
    guard unsafe system("rm -rf \(base)") == 0 else { throw SystemError("rm -rf", EIO) }
  }

  private func path(_ entry: KernelSimulator.Entry, _ model: KernelSimulator) -> String {
    var path = "/" + entry.name
    var at = entry.directory
    while at != KernelSimulator.root, let place = model.place(of: at) {
      path = "/" + place.name + path
      at = place.directory
    }
    return base + path
  }

  /// Performs what the model is about to perform and can.
  func perform(_ operation: FileOperation, before model: KernelSimulator) throws {
    switch operation {
    case .create(let entry, let isDirectory):
      let path = path(entry, model)
      let result =
        isDirectory ? unsafe mkdir(path, 0o755) : unsafe mknod(path, 0o100644, 0)
      try check(result, "create")
    case .write(let entry):
      let file = try open(path(entry, model), O_WRONLY)
      let byte: [UInt8] = [42]
      try check(unsafe Glibc.write(file.rawValue, byte, 1) == 1 ? 0 : -1, "write")
    case .changeMode(let entry): try check(unsafe chmod(path(entry, model), 0o700), "chmod")
    case .link(let from, let to): try check(unsafe link(path(from, model), path(to, model)), "link")
    case .remove(let entry): try check(unsafe remove(path(entry, model)), "remove")
    case .rename(let from, let to):
      try check(unsafe rename(path(from, model), path(to, model)), "rename")
    case .exchange(let a, let b):
      let result = unsafe test_exchange(path(a, model), path(b, model))
      try checked(result, "renameat2(RENAME_EXCHANGE)")
    case .hold(let entry):
      guard let number = model.entries[entry], held[number] == nil else { return }
      held[number] = OwnedFile(try open(path(entry, model), O_RDONLY))
    case .releaseAll:
      for number in held.keys.sorted() { held[number] = nil }
    }
  }

  /// Learns which handle the object has that the model made last.
  func learn(_ number: UInt32, at entry: KernelSimulator.Entry, in model: KernelSimulator) throws {
    numbers[try handle(path(entry, model))] = number
  }

  private func open(_ path: String, _ flags: Int32) throws -> OwnedDescriptor {
    OwnedDescriptor(
      try checked(unsafe hw_openat(AT_FDCWD, path, flags | O_CLOEXEC, 0), "open(\(path))"))
  }

  private func handle(_ path: String) throws -> FileHandle {
    var raw = hw_file_handle()
    var mountID: Int32 = 0
    let result = unsafe hw_name_to_handle_at(AT_FDCWD, path, 0, &raw, &mountID)
    try checked(result, "name_to_handle_at(\(path))")
    return FileHandle(raw)
  }

  private func check(_ result: Int32, _ call: String) throws {
    guard result == 0 else { throw SystemError(call, errno) }
  }

  // MARK: Records

  /// Reads so many records and no more; fewer if the queue has no more.
  func take(_ count: Int) throws -> [KernelSimulator.Slot] {
    var records: [KernelSimulator.Slot] = []
    while records.count < count, let record = try takeOne() { records.append(record) }
    return records
  }

  /// A buffer into which nothing but the next record fits gets just that.
  private func takeOne() throws -> KernelSimulator.Slot? {
    guard let number = group?.descriptor.rawValue else { return nil }
    var bytes = [UInt8](repeating: 0, count: EventSegment.maximalRecord)
    for size in stride(from: Int(hw_metadata_size), through: bytes.count, by: 4) {
      let got = unsafe bytes.withUnsafeMutableBytes { unsafe read(number, $0.baseAddress, size) }
      if got < 0 && errno == EINVAL { continue }
      if got < 0 && errno == EAGAIN { return nil }
      guard got > 0 else { throw SystemError("read(fanotify)", errno) }
      return try slot(Array(bytes.prefix(got)))
    }
    throw SystemError("read(fanotify)", EINVAL)
  }

  private func slot(_ bytes: [UInt8]) throws -> KernelSimulator.Slot {
    let segment = EventSegment()
    segment.fill(with: bytes)
    var events: [KernelEvent] = []
    try segment.parse(into: &events, segment: 0)
    guard events.count == 1, let event = events.first else { throw SystemError("parse", EIO) }
    func number(_ offset: UInt32) -> UInt32 {
      // 0xffffffff: an object that the model does not have.
      segment.view.handle(offset).map { numbers[FileHandle($0)] ?? .max } ?? 0
    }
    func text(_ offset: UInt32, _ size: UInt16) -> String {
      offset == 0 ? "" : String(decoding: segment.view.name(offset, size).bytes, as: UTF8.self)
    }
    return KernelSimulator.Slot(
      mask: event.mask, pid: event.pid, object: number(event.object),
      directory: number(event.directory), name: text(event.name, event.nameSize),
      newDirectory: number(event.newDirectory), newName: text(event.newName, event.newNameSize))
  }
}
