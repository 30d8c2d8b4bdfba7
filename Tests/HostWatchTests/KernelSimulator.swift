import CFanotify

@testable import HostWatch

/// A model of a filesystem and of fanotify's queue above it: the operations
/// change the filesystem and queue what the kernel would queue, merged as the
/// kernel merges (Linux 6.18, fs/notify/fanotify/fanotify.c: equal process,
/// ISDIR, RENAME, directories, names and object; at most 128 entries of one of
/// 128 buckets are tried).
final class KernelSimulator: Namespace {
  struct Inode {
    let number: UInt32
    let isDirectory: Bool
    var links: Int
    /// Somebody holds it open.
    var isHeld = false
  }

  struct Entry: Hashable {
    let directory: UInt32
    let name: String
  }

  struct Slot {
    var mask: UInt64
    let pid: Int32
    let object: UInt32
    let directory: UInt32
    let name: String
    let newDirectory: UInt32
    let newName: String

    func canTake(_ other: Slot) -> Bool {
      let both: UInt64 = 0x5000_0000  // RENAME and ISDIR
      return mask & both == other.mask & both && pid == other.pid && object == other.object
        && directory == other.directory && name == other.name
        && newDirectory == other.newDirectory && newName == other.newName
    }

    var bucket: Int {
      var hasher = Hasher()
      hasher.combine(object)
      hasher.combine(directory)
      hasher.combine(name)
      hasher.combine(newDirectory)
      hasher.combine(newName)
      hasher.combine(pid)
      return Int(UInt(bitPattern: hasher.finalize()) % 128)
    }
  }

  static let root: UInt32 = 1

  private(set) var inodes: [UInt32: Inode] = [:]
  private(set) var entries: [Entry: UInt32] = [:]
  private(set) var queue: [Slot] = []
  /// Of the queue's slots by bucket, oldest first.
  private var buckets: [[Int]] = Array(repeating: [], count: 128)
  private var nextInode: UInt32 = 2
  private(set) var merges = 0
  private(set) var lookups = 0

  init() { inodes[Self.root] = Inode(number: Self.root, isDirectory: true, links: 1) }

  // MARK: Operations

  func create(_ entry: Entry, isDirectory: Bool, pid: Int32) {
    guard entries[entry] == nil, inodes[entry.directory] != nil else { return }
    let number = nextInode
    nextInode += 1
    inodes[number] = Inode(number: number, isDirectory: isDirectory, links: 1)
    entries[entry] = number
    push(0x100, pid, number, entry, isDirectory)
  }

  func write(_ entry: Entry, pid: Int32) {
    guard let number = entries[entry], inodes[number]?.isDirectory == false else { return }
    push(0x2, pid, number, entry, false)
    push(0x8, pid, number, entry, false)
  }

  func changeMode(_ entry: Entry, pid: Int32) {
    guard let number = entries[entry], let inode = inodes[number] else { return }
    push(0x4, pid, number, entry, inode.isDirectory)
  }

  func link(_ from: Entry, _ to: Entry, pid: Int32) {
    guard let number = entries[from], inodes[number]?.isDirectory == false, entries[to] == nil,
      inodes[to.directory] != nil
    else { return }
    inodes[number]?.links += 1
    entries[to] = number
    pushSelf(0x4, pid, number)
    push(0x100, pid, number, to, false)
  }

  func remove(_ entry: Entry, pid: Int32) {
    guard let number = entries[entry], let inode = inodes[number] else { return }
    if inode.isDirectory {
      guard !entries.keys.contains(where: { $0.directory == number }) else { return }
    }
    entries[entry] = nil
    inodes[number]?.links -= 1
    // d_delete_notify(): the inode's end comes before the name's.
    if !inode.isDirectory { pushSelf(0x4, pid, number) }
    bury(number, pid)
    push(0x200, pid, number, entry, inode.isDirectory)
  }

  func rename(_ from: Entry, _ to: Entry, pid: Int32) {
    guard from != to, let number = entries[from], let inode = inodes[number],
      inodes[to.directory] != nil, !isBelow(to.directory, number)
    else { return }
    let victim = entries[to]
    if let victim, let other = inodes[victim] {
      guard victim != number, other.isDirectory == inode.isDirectory,
        !entries.keys.contains(where: { $0.directory == victim })
      else { return }
    }
    entries[from] = nil
    entries[to] = number
    pushRename(pid, number, from, to, inode.isDirectory)
    if let victim {
      inodes[victim]?.links -= 1
      pushSelf(0x4, pid, victim)
      bury(victim, pid)
    }
  }

  func exchange(_ a: Entry, _ b: Entry, pid: Int32) {
    guard a != b, let first = entries[a], let second = entries[b], first != second,
      !isBelow(b.directory, first), !isBelow(a.directory, second)
    else { return }
    entries[a] = second
    entries[b] = first
    pushRename(pid, first, a, b, inodes[first]?.isDirectory ?? false)
    pushRename(pid, second, b, a, inodes[second]?.isDirectory ?? false)
  }

  func hold(_ entry: Entry) {
    if let number = entries[entry] { inodes[number]?.isHeld = true }
  }

  func releaseAll(pid: Int32) {
    for number in inodes.keys.sorted() where inodes[number]?.isHeld == true {
      inodes[number]?.isHeld = false
      bury(number, pid)
    }
  }

  private func bury(_ number: UInt32, _ pid: Int32) {
    guard let inode = inodes[number], inode.links == 0, !inode.isHeld else { return }
    pushSelf(0x400, pid, number)
    inodes[number] = nil
  }

  private func isBelow(_ directory: UInt32, _ ancestor: UInt32) -> Bool {
    var at = directory
    while at != Self.root {
      if at == ancestor { return true }
      guard let above = entries.first(where: { $0.value == at })?.key.directory else {
        return false
      }
      at = above
    }
    return at == ancestor
  }

  // MARK: The queue

  private func push(
    _ mask: UInt64, _ pid: Int32, _ object: UInt32, _ entry: Entry, _ isDirectory: Bool
  ) {
    add(
      Slot(
        mask: mask | (isDirectory ? 0x4000_0000 : 0), pid: pid, object: object,
        directory: entry.directory, name: entry.name, newDirectory: 0, newName: ""))
  }

  private func pushRename(
    _ pid: Int32, _ object: UInt32, _ from: Entry, _ to: Entry, _ isDirectory: Bool
  ) {
    add(
      Slot(
        mask: 0x1000_0000 | (isDirectory ? 0x4000_0000 : 0), pid: pid, object: object,
        directory: from.directory, name: from.name, newDirectory: to.directory, newName: to.name))
  }

  /// An event on the object alone: of a directory as ".", of a file without
  /// any directory.
  private func pushSelf(_ mask: UInt64, _ pid: Int32, _ object: UInt32) {
    let isDirectory = inodes[object]?.isDirectory ?? false
    add(
      Slot(
        mask: mask | (isDirectory ? 0x4000_0000 : 0), pid: pid, object: isDirectory ? 0 : object,
        directory: isDirectory ? object : 0, name: isDirectory ? "." : "", newDirectory: 0,
        newName: ""))
  }

  private func add(_ slot: Slot) {
    let bucket = slot.bucket
    for index in buckets[bucket].suffix(128).reversed() where queue[index].canTake(slot) {
      queue[index].mask |= slot.mask
      merges += 1
      return
    }
    buckets[bucket].append(queue.count)
    queue.append(slot)
  }

  /// Takes the `count` oldest slots out, as the bytes that read(2) would give.
  func read(_ count: Int) -> [UInt8] {
    let taken = queue.prefix(count)
    queue.removeFirst(taken.count)
    buckets = Array(repeating: [], count: 128)
    for (index, slot) in queue.enumerated() { buckets[slot.bucket].append(index) }
    return taken.flatMap { RecordBytes.record($0) }
  }

  // MARK: Namespace

  static func handle(_ number: UInt32) -> FileHandle {
    var raw = hw_file_handle()
    raw.bytes = 8
    raw.type = 1
    unsafe withUnsafeMutableBytes(of: &raw.data) {
      unsafe $0.storeBytes(of: number, as: UInt32.self)
      unsafe $0.storeBytes(of: number &* 7, toByteOffset: 4, as: UInt32.self)
    }
    return FileHandle(raw)
  }

  static func number(_ handle: HandleView) -> UInt32 { handle.load(0, as: UInt32.self) }

  func lookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError)
    -> (handle: FileHandle, isDirectory: Bool)?
  {
    lookups += 1
    let number = directory.withView { Self.number($0) }
    guard
      let found = entries[Entry(directory: number, name: String(decoding: name, as: UTF8.self))],
      let inode = inodes[found]
    else { return nil }
    return (Self.handle(found), inode.isDirectory)
  }

  func location(ofDirectory directory: FileHandle) -> (parent: FileHandle, name: [UInt8])? {
    let number = directory.withView { Self.number($0) }
    guard let place = entries.first(where: { $0.value == number })?.key else { return nil }
    return (Self.handle(place.directory), Array(place.name.utf8))
  }
}

/// Kernel records as bytes, for tests.
enum RecordBytes {
  static func record(_ slot: KernelSimulator.Slot) -> [UInt8] {
    var infos: [UInt8] = []
    if slot.newDirectory != 0 {
      infos += info(10, slot.directory, slot.name)
      infos += info(12, slot.newDirectory, slot.newName)
    } else if slot.directory != 0 {
      infos += info(2, slot.directory, slot.name)
    }
    if slot.object != 0 { infos += info(1, slot.object, nil) }
    var bytes = number(UInt32(24 + infos.count)) + [3, 0] + number(UInt16(24))
    bytes +=
      number(slot.mask) + number(UInt32(bitPattern: -1)) + number(UInt32(bitPattern: slot.pid))
    return bytes + infos
  }

  static func overflow() -> [UInt8] {
    number(UInt32(24)) + [3, 0] + number(UInt16(24)) + number(UInt64(0x4000))
      + number(UInt32(bitPattern: -1)) + number(UInt32(0))
  }

  static func info(_ type: UInt8, _ object: UInt32, _ name: String?) -> [UInt8] {
    var body = number(UInt64(0x1234)) + number(UInt32(8)) + number(UInt32(1))
    body += number(object) + number(object &* 7)
    if let name { body += Array(name.utf8) + [0] }
    while (4 + body.count) % 4 != 0 { body.append(0) }
    return [type, 0] + number(UInt16(4 + body.count)) + body
  }

  static func number<Number: FixedWidthInteger>(_ value: Number) -> [UInt8] {
    var little = value.littleEndian
    return unsafe withUnsafeBytes(of: &little) { unsafe [UInt8]($0) }
  }
}
