import Glibc

/// Which directories are inside one share, and where.
///
/// In: handles of directories, and the records that move them. Out: a
/// directory's place in the share, or that it is outside. A directory is looked
/// up in the filesystem the first time it is asked for, by an O_PATH
/// descriptor opened by its handle under a detached clone of the share's root,
/// from which ".." ends with ENOENT for what is outside. From then on records
/// keep it up. Attaching a share therefore costs the same whatever its size,
/// and the number of entries is bounded: what was not used lately goes first.
///
/// It holds that an entry is where the records emitted so far have put it, or
/// where the filesystem had it at a moment after those; records that were
/// queued before that moment are applied once more, which ends in the same
/// place. A directory that was found outside is forgotten as soon as any
/// directory is moved in, since it may have been below that one.
struct DirectoryIndex: ~Copyable {
  enum Place: UInt8 {
    case inside, outside
    /// Ask the filesystem.
    case unknown
  }

  struct Entry {
    var handle: FileHandle
    var name: [UInt8] = []
    /// The directory above, or 0 where that is not known or outside.
    var parent: UInt32 = 0
    var children: UInt32 = 0
    /// What is so without a parent: outside, or unknown.
    var place = Place.unknown
    var used = true
    /// `inside` is right while the index has this epoch.
    var checkedEpoch: UInt64 = 0
    var inside = false
    /// For an entry found outside: right while no directory moved in since.
    var outsideEpoch: UInt64 = 0
    /// The window in which the filesystem was asked.
    var resolvedIn: UInt64 = 0
    var isFree = false
  }

  static let rootIndex: UInt32 = 1
  private static let maximalDepth = 2048

  private var entries: [Entry]
  private var free: [UInt32] = []
  private var byHandle = HashIndex()
  private let seed: UInt64
  let mount: DetachedMount
  private let capacity: Int
  private var hand = 2
  private var epoch: UInt64 = 1
  private var movedInEpoch: UInt64 = 1
  /// Why a directory's place could not be found out, until it is taken.
  private var failure: SystemError?
  /// The window that is being worked on: entries resolved in it are marked.
  var window: UInt64 = 0

  var count: Int { byHandle.count }

  /// - Parameter mount: a detached clone whose root is the share's root.
  init(root: FileHandle, mount: consuming DetachedMount, seed: UInt64, capacity: Int = 32768) {
    self.mount = mount
    self.seed = seed
    self.capacity = capacity
    var entry = Entry(handle: root)
    entry.place = .inside
    entries = [Entry(handle: root), entry]
    byHandle.insert(hash(root), Self.rootIndex)
  }

  subscript(index: UInt32) -> Entry { entries[Int(index)] }

  /// The directory's entry if it is inside the share, else 0.
  mutating func locate(_ directory: HandleView) -> UInt32 {
    var index = find(directory)
    if index == 0 { index = resolve(FileHandle(directory)) }
    guard index != 0, isInside(index) else { return 0 }
    entries[Int(index)].used = true
    return index
  }

  /// The last failure to find out where a directory is: records may have been
  /// left out.
  mutating func takeFailure() -> SystemError? {
    defer { failure = nil }
    return failure
  }

  /// The directory's entry, wherever it is, without asking the filesystem.
  func known(_ directory: HandleView) -> UInt32 { find(directory) }

  /// Whether the entry's place was asked of the filesystem in this window.
  func isFresh(_ index: UInt32) -> Bool { entries[Int(index)].resolvedIn == window }

  /// A directory has come to be `name` in `parent`, which is inside.
  mutating func place(_ directory: HandleView, in parent: UInt32, name: NameView, movedIn: Bool) {
    var index = find(directory)
    guard index != Self.rootIndex else { return }
    if index == 0 { index = insert(FileHandle(directory), keep: parent) }
    setParent(index, parent)
    entries[Int(index)].name = name.bytes
    entries[Int(index)].place = .unknown
    epoch += 1
    if movedIn { movedInEpoch += 1 }
  }

  /// A directory has been removed from `parent`: if it is not known yet it is
  /// entered, since its last record is still to come and the filesystem
  /// cannot be asked any more.
  mutating func note(_ directory: HandleView, in parent: UInt32) {
    guard find(directory) == 0 else { return }
    setParent(insert(FileHandle(directory), keep: parent), parent)
  }

  /// A directory has gone to where this share is not.
  mutating func placeOutside(_ directory: HandleView) {
    let index = find(directory)
    guard index > Self.rootIndex else { return }
    setParent(index, 0)
    entries[Int(index)].place = .outside
    entries[Int(index)].outsideEpoch = movedInEpoch
    epoch += 1
  }

  /// What is known, each directory behind the one it is in: for the next
  /// process, which goes on from here.
  func handOver() -> [HandOverState.Directory] {
    var result: [HandOverState.Directory] = []
    var places: [UInt32: UInt32] = [0: 0, Self.rootIndex: 1]
    var below: [UInt32: [UInt32]] = [:]
    for index in entries.indices.dropFirst(2) where !entries[index].isFree {
      below[entries[index].parent, default: []].append(UInt32(index))
    }
    var waiting = [Self.rootIndex, 0]
    while let parent = waiting.popLast() {
      for index in below[parent] ?? [] {
        let entry = entries[Int(index)]
        let isOutside = entry.place == .outside && entry.outsideEpoch == movedInEpoch
        result.append(
          HandOverState.Directory(
            handle: entry.handle, name: entry.name, parent: places[parent] ?? 0,
            isOutside: parent == 0 && isOutside))
        places[index] = UInt32(result.count + 1)
        waiting.append(index)
      }
    }
    return result
  }

  /// Takes up what `handOver` gave. Only for an index that is new.
  mutating func takeUp(_ directories: [HandOverState.Directory]) {
    var places: [UInt32] = [0, Self.rootIndex]
    for directory in directories.prefix(capacity) {
      guard directory.handle.withView({ find($0) }) == 0 else {
        // It cannot be in two places: which one is asked of the filesystem.
        places.append(0)
        continue
      }
      let parent = Int(directory.parent) < places.count ? places[Int(directory.parent)] : 0
      let index = insert(directory.handle, keep: 0)
      setParent(index, parent)
      entries[Int(index)].name = directory.name
      if directory.isOutside { entries[Int(index)].place = .outside }
      entries[Int(index)].outsideEpoch = movedInEpoch
      places.append(index)
    }
    epoch += 1
  }

  /// Where the directory is is not known any more.
  mutating func forget(_ directory: HandleView) {
    let index = find(directory)
    guard index > Self.rootIndex else { return }
    setParent(index, 0)
    entries[Int(index)].place = .unknown
    epoch += 1
    if entries[Int(index)].children == 0 { remove(index) }
  }

  /// Where the directories are is not known any more: records about them were lost.
  mutating func forgetAll() {
    let root = entries[Int(Self.rootIndex)].handle
    var entry = Entry(handle: root)
    entry.place = .inside
    entries = [Entry(handle: root), entry]
    free = []
    byHandle = HashIndex()
    byHandle.insert(hash(root), Self.rootIndex)
    hand = 2
    epoch += 1
    movedInEpoch += 1
  }

  /// Appends the path of an entry inside the share, relative to the root:
  /// empty for the root. False when a name on the way is not known.
  mutating func appendPath(of index: UInt32, to path: inout [UInt8]) -> Bool {
    chain.removeAll(keepingCapacity: true)
    var at = index
    while at != Self.rootIndex {
      guard at != 0, !entries[Int(at)].name.isEmpty, chain.count < Self.maximalDepth else {
        return false
      }
      chain.append(at)
      at = entries[Int(at)].parent
    }
    for (position, entry) in chain.reversed().enumerated() {
      if position > 0 { path.append(0x2f) }
      path.append(contentsOf: entries[Int(entry)].name)
    }
    return true
  }

  private mutating func isInside(_ index: UInt32) -> Bool {
    if index == Self.rootIndex { return true }
    let entry = Int(index)
    if entries[entry].checkedEpoch == epoch { return entries[entry].inside }
    let inside: Bool
    if entries[entry].parent != 0 {
      inside = isInside(entries[entry].parent)
    } else if entries[entry].place == .outside && entries[entry].outsideEpoch == movedInEpoch {
      inside = false
    } else {
      let handle = entries[entry].handle
      guard resolve(handle) == index else { return false }
      inside = entries[entry].parent != 0 && isInside(entries[entry].parent)
    }
    entries[entry].checkedEpoch = epoch
    entries[entry].inside = inside
    return inside
  }

  /// Asks the filesystem where a directory is, and enters it and the unknown
  /// directories above it. 0 when it is gone or cannot be asked.
  private mutating func resolve(_ handle: FileHandle) -> UInt32 {
    do throws(SystemError) {
      let directory = try Syscall.open(handle, on: mount)
      let status = try Syscall.status(of: directory.rawValue)
      guard status.isDirectory, status.links > 0 else { return 0 }
      return try resolve(handle, directory)
    } catch {
      // ESTALE: it is gone. Anything else leaves its place unknown.
      if error.code != ESTALE { failure = error }
      return 0
    }
  }

  private mutating func resolve(_ handle: FileHandle, _ directory: borrowing OwnedDescriptor)
    throws(SystemError) -> UInt32
  {
    let parent: FileHandle
    do throws(SystemError) {
      parent = try Syscall.parentHandle(of: directory)
    } catch {
      // Nothing above it within the share.
      if error.code == ENOENT { return enterOutside(handle) }
      throw error
    }
    var above = parent.withView { find($0) }
    if above == 0 || (above != Self.rootIndex && entries[Int(above)].parent == 0) {
      guard depth < Self.maximalDepth else { return 0 }
      depth += 1
      above = resolve(parent)
      depth -= 1
    }
    guard above != 0 else { return 0 }
    if above != Self.rootIndex && entries[Int(above)].parent == 0 { return enterOutside(handle) }
    let index = enter(handle, keep: above)
    setParent(index, above)
    entries[Int(index)].name = lastName(of: directory)
    entries[Int(index)].resolvedIn = window
    epoch += 1
    return index
  }

  private var depth = 0
  /// The way from an entry to the root, kept for its memory.
  private var chain: [UInt32] = []

  private func lastName(of directory: borrowing OwnedDescriptor) -> [UInt8] {
    guard let path = try? Syscall.path(of: directory),
      let slash = path.lastIndex(of: 0x2f)
    else { return [] }
    return Array(path[(slash + 1)...])
  }

  private mutating func enterOutside(_ handle: FileHandle) -> UInt32 {
    let index = enter(handle, keep: 0)
    guard index != Self.rootIndex else { return index }
    setParent(index, 0)
    entries[Int(index)].place = .outside
    entries[Int(index)].outsideEpoch = movedInEpoch
    entries[Int(index)].resolvedIn = window
    epoch += 1
    return index
  }

  private mutating func enter(_ handle: FileHandle, keep: UInt32) -> UInt32 {
    let index = handle.withView { find($0) }
    return index != 0 ? index : insert(handle, keep: keep)
  }

  private mutating func insert(_ handle: FileHandle, keep: UInt32) -> UInt32 {
    if count >= capacity { evict(keeping: keep) }
    let index: UInt32
    if let place = free.popLast() {
      index = place
      entries[Int(place)] = Entry(handle: handle)
    } else {
      index = UInt32(entries.count)
      entries.append(Entry(handle: handle))
    }
    byHandle.insert(hash(handle), index)
    return index
  }

  /// Frees one entry that has none below it and was not used since the hand
  /// last came by.
  private mutating func evict(keeping kept: UInt32) {
    for _ in 0..<(2 * entries.count) {
      hand = hand + 1 < entries.count ? hand + 1 : 2
      guard hand < entries.count, !entries[hand].isFree, entries[hand].children == 0,
        UInt32(hand) != kept
      else { continue }
      if entries[hand].used {
        entries[hand].used = false
      } else {
        remove(UInt32(hand))
        return
      }
    }
  }

  private mutating func remove(_ index: UInt32) {
    setParent(index, 0)
    byHandle.remove(hash(entries[Int(index)].handle), index)
    entries[Int(index)].isFree = true
    entries[Int(index)].name = []
    free.append(index)
  }

  private mutating func setParent(_ index: UInt32, _ parent: UInt32) {
    let old = entries[Int(index)].parent
    guard old != parent else { return }
    if old != 0 { entries[Int(old)].children -= 1 }
    // A directory is never below itself: the chain must end.
    let accepted = isAbove(index, parent) ? 0 : parent
    if accepted != 0 { entries[Int(accepted)].children += 1 }
    entries[Int(index)].parent = accepted
  }

  /// Whether `index` is `other` or on the way from it to the root.
  private func isAbove(_ index: UInt32, _ other: UInt32) -> Bool {
    var at = other
    var steps = 0
    while at != 0 && at != Self.rootIndex {
      if at == index { return true }
      at = entries[Int(at)].parent
      steps += 1
      if steps > Self.maximalDepth { return true }
    }
    return false
  }

  private func find(_ handle: HandleView) -> UInt32 {
    byHandle.find(UInt32(truncatingIfNeeded: handle.hash(seed: seed) >> 32)) { index in
      entries[Int(index)].handle.withView { $0 == handle }
    }
  }

  private func hash(_ handle: FileHandle) -> UInt32 {
    handle.withView { UInt32(truncatingIfNeeded: $0.hash(seed: seed) >> 32) }
  }
}
