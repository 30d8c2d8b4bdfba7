/// A model of a filesystem and of fanotify's queue above it: the operations
/// change the filesystem and queue what the kernel would queue, merged as the
/// kernel merges (Linux 6.18, fs/notify/fanotify/fanotify.c: equal process,
/// ISDIR, RENAME, directories, names and object; at most 128 entries of one of
/// 128 buckets are tried; a full queue takes one overflow event and drops what
/// comes, even what could be merged). HostWatchKernelTests replay the same
/// histories on both.
package final class KernelSimulator {
  package struct Inode {
    package let number: UInt32
    package let isDirectory: Bool
    package var links: Int
    /// Of a directory that was removed: where it was.
    var lastDirectory: UInt32?
  }

  /// The name by which somebody holds an object open. An open file keeps its
  /// name's dentry, and that the directory's, even when both were removed.
  private struct Hold {
    var entry: Entry
    var isRemoved = false
  }

  package struct Entry: Hashable {
    package let directory: UInt32
    package let name: String

    package init(directory: UInt32, name: String) {
      (self.directory, self.name) = (directory, name)
    }
  }

  /// A queued event. Objects are inode numbers, 0 where it has none.
  package struct Slot: Equatable, CustomStringConvertible {
    package var mask: UInt64
    package let pid: Int32
    package let object: UInt32
    package let directory: UInt32
    package let name: String
    package let newDirectory: UInt32
    package let newName: String

    package init(
      mask: UInt64, pid: Int32, object: UInt32 = 0, directory: UInt32 = 0, name: String = "",
      newDirectory: UInt32 = 0, newName: String = ""
    ) {
      (self.mask, self.pid, self.object) = (mask, pid, object)
      (self.directory, self.name) = (directory, name)
      (self.newDirectory, self.newName) = (newDirectory, newName)
    }

    /// What is queued when the queue is full.
    package static let overflow = Slot(mask: 0x4000, pid: 0)

    package var description: String {
      "\(String(mask, radix: 16)) \(object) \(directory)/\(name) \(newDirectory)/\(newName)"
    }

    func canTake(_ other: Slot) -> Bool {
      let both: UInt64 = 0x5000_0000  // RENAME and ISDIR
      return mask & both == other.mask & both && pid == other.pid && object == other.object
        && directory == other.directory && name == other.name
        && newDirectory == other.newDirectory && newName == other.newName
    }

    /// The kernel's hash is another; it matters only to what is merged over
    /// more than 128 entries of a bucket.
    package var bucket: Int {
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

  package static let root: UInt32 = 1

  package private(set) var inodes: [UInt32: Inode] = [:]
  package private(set) var entries: [Entry: UInt32] = [:]
  package private(set) var queue: [Slot] = []
  /// Of the queue's slots by bucket, oldest first.
  private var buckets: [[Int]] = Array(repeating: [], count: 128)
  private var holds: [UInt32: Hold] = [:]
  private var nextInode: UInt32 = 2
  package private(set) var merges = 0
  /// Events the queue takes.
  private let limit: Int
  private let bucket: (Slot) -> Int

  package init(limit: Int = .max, bucket: @escaping (Slot) -> Int = { $0.bucket }) {
    self.limit = limit
    self.bucket = bucket
    inodes[Self.root] = Inode(number: Self.root, isDirectory: true, links: 1)
  }

  // MARK: Operations

  /// Whether the operation would change or look at anything. What a real
  /// filesystem might do differently, as a rename of a file over a directory,
  /// is not allowed, and not done.
  package func allows(_ operation: FileOperation) -> Bool {
    func isFile(_ number: UInt32) -> Bool { inodes[number]?.isDirectory == false }
    func isLiving(_ directory: UInt32) -> Bool { inodes[directory].map { $0.links > 0 } ?? false }
    func isEmpty(_ directory: UInt32) -> Bool {
      !entries.keys.contains { $0.directory == directory }
    }
    switch operation {
    case .create(let entry, _): return entries[entry] == nil && isLiving(entry.directory)
    case .write(let entry): return entries[entry].map(isFile) ?? false
    case .changeMode(let entry), .hold(let entry): return entries[entry] != nil
    case .link(let from, let to):
      return entries[from].map(isFile) ?? false && entries[to] == nil && isLiving(to.directory)
    case .remove(let entry): return entries[entry].map(isEmpty) ?? false
    case .rename(let from, let to):
      guard from != to, let number = entries[from], isLiving(to.directory),
        !isBelow(to.directory, number)
      else { return false }
      guard let victim = entries[to] else { return true }
      return victim != number && isFile(victim) == isFile(number) && isEmpty(victim)
    case .exchange(let a, let b):
      guard a != b, let first = entries[a], let second = entries[b], first != second else {
        return false
      }
      return !isBelow(b.directory, first) && !isBelow(a.directory, second)
    case .releaseAll: return true
    }
  }

  package func create(_ entry: Entry, isDirectory: Bool, pid: Int32) {
    guard allows(.create(entry, isDirectory: isDirectory)) else { return }
    let number = nextInode
    nextInode += 1
    inodes[number] = Inode(number: number, isDirectory: isDirectory, links: 1)
    entries[entry] = number
    push(0x100, pid, number, entry, isDirectory)
  }

  package func write(_ entry: Entry, pid: Int32) {
    guard allows(.write(entry)), let number = entries[entry] else { return }
    push(0x2, pid, number, entry, false)
    push(0x8, pid, number, entry, false)
  }

  package func changeMode(_ entry: Entry, pid: Int32) {
    guard let number = entries[entry], let inode = inodes[number] else { return }
    if inode.isDirectory {
      pushSelf(0x4, pid, number)
    } else {
      push(0x4, pid, number, entry, false)
    }
  }

  package func link(_ from: Entry, _ to: Entry, pid: Int32) {
    guard allows(.link(from, to)), let number = entries[from] else { return }
    inodes[number]?.links += 1
    entries[to] = number
    pushSelf(0x4, pid, number)
    push(0x100, pid, number, to, false)
  }

  package func remove(_ entry: Entry, pid: Int32) {
    guard allows(.remove(entry)), let number = entries[entry], let inode = inodes[number] else {
      return
    }
    entries[entry] = nil
    inodes[number]?.links -= 1
    // d_delete_notify(): the inode's end comes before the name's.
    if !inode.isDirectory { pushSelf(0x4, pid, number) }
    unname(number, entry, pid)
    push(0x200, pid, number, entry, inode.isDirectory)
  }

  package func rename(_ from: Entry, _ to: Entry, pid: Int32) {
    guard allows(.rename(from, to)), let number = entries[from], let inode = inodes[number]
    else { return }
    let victim = entries[to]
    entries[from] = nil
    entries[to] = number
    moveHold(number, from, to)
    pushRename(pid, number, from, to, inode.isDirectory)
    if let victim {
      inodes[victim]?.links -= 1
      pushSelf(0x4, pid, victim)
      unname(victim, to, pid)
    }
  }

  package func exchange(_ a: Entry, _ b: Entry, pid: Int32) {
    guard allows(.exchange(a, b)), let first = entries[a], let second = entries[b] else { return }
    entries[a] = second
    entries[b] = first
    moveHold(first, a, b)
    moveHold(second, b, a)
    pushRename(pid, first, a, b, inodes[first]?.isDirectory ?? false)
    pushRename(pid, second, b, a, inodes[second]?.isDirectory ?? false)
  }

  package func hold(_ entry: Entry) {
    guard let number = entries[entry], holds[number] == nil else { return }
    holds[number] = Hold(entry: entry)
  }

  package func releaseAll(pid: Int32) {
    for number in holds.keys.sorted() {
      guard let hold = holds.removeValue(forKey: number), hold.isRemoved else { continue }
      drop(number, hold.entry.directory, pid)
    }
  }

  private func moveHold(_ number: UInt32, _ from: Entry, _ to: Entry) {
    if let hold = holds[number], !hold.isRemoved, hold.entry == from { holds[number]?.entry = to }
  }

  /// A name is gone. Its dentry goes with it, or stays as long as it is held.
  private func unname(_ number: UInt32, _ entry: Entry, _ pid: Int32) {
    if inodes[number]?.isDirectory == true { inodes[number]?.lastDirectory = entry.directory }
    if let hold = holds[number], !hold.isRemoved, hold.entry == entry {
      holds[number]?.isRemoved = true
    } else {
      drop(number, entry.directory, pid)
    }
  }

  /// The dentry of a removed name goes, unless removed names below need it.
  /// DELETE_SELF comes with every one whose inode has no link any more
  /// (dentry_unlink_inode()), so twice if another name is still held.
  private func drop(_ number: UInt32, _ directory: UInt32, _ pid: Int32) {
    guard let inode = inodes[number], !isNeeded(number) else { return }
    if inode.links == 0 {
      pushSelf(0x400, pid, number)
      if holds[number] == nil { inodes[number] = nil }
    }
    // It may have been the last that needed its directory's.
    guard let above = inodes[directory], above.links == 0, holds[directory] == nil,
      let place = above.lastDirectory
    else { return }
    drop(directory, place, pid)
  }

  private func isNeeded(_ directory: UInt32) -> Bool {
    holds.values.contains { $0.isRemoved && $0.entry.directory == directory }
      || inodes.values.contains { $0.links == 0 && $0.lastDirectory == directory }
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
    guard queue.count < limit else {
      if !queue.contains(.overflow) { queue.append(.overflow) }
      return
    }
    let bucket = bucket(slot)
    for index in buckets[bucket].suffix(128).reversed() where queue[index].canTake(slot) {
      queue[index].mask |= slot.mask
      merges += 1
      return
    }
    buckets[bucket].append(queue.count)
    queue.append(slot)
  }

  /// Takes the `count` oldest events out.
  package func take(_ count: Int) -> [Slot] {
    let taken = Array(queue.prefix(count))
    queue.removeFirst(taken.count)
    buckets = Array(repeating: [], count: 128)
    for (index, slot) in queue.enumerated() where slot != .overflow {
      buckets[bucket(slot)].append(index)
    }
    return taken
  }

  /// The same, as the bytes that read(2) would give.
  package func read(_ count: Int) -> [UInt8] { take(count).flatMap { RecordBytes.record($0) } }

  /// Where an object has a name, or any of its names.
  package func place(of number: UInt32) -> Entry? {
    entries.first { $0.value == number }?.key
  }
}
