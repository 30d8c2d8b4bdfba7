import CFanotify
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// What a TREE client keeps of the share by records alone, as the protocol's rule 4 says
/// (Tests/SystemTests/model.py has the same); it reads again what it is told to.
struct TreeModel {
  typealias Name = [UInt8]

  private let path: Name
  private var entries: [NodeID: [Name: NodeID]] = [.root: [:]]
  /// Where a directory is.
  private var places: [NodeID: (directory: NodeID, name: Name)] = [:]
  /// Directories whose contents are not known.
  private var unread: Set<NodeID> = []

  init(_ path: String) {
    self.path = Array(path.utf8)
    read(.root)
  }

  mutating func apply(_ record: SentRecord) {
    let isDirectory = record.mask.contains(.isDirectory)
    if record.flags & UInt32(HW_RECHECK) != 0 {
      if isDirectory { read(record.node) }
    } else if record.mask.contains(.rename) {
      if record.directory != .none {
        if isDirectory, entries[record.directory]?[record.name] != record.node {
          forget(record.node)
        }
        remove(record)
      }
      if record.newDirectory != .none {
        put(record, record.newDirectory, record.newName)
      } else if isDirectory {
        forget(record.node)
      }
    } else if record.mask.contains(.create) {
      put(record, record.directory, record.name)
    } else if record.mask.contains(.delete) {
      remove(record)
      if isDirectory, record.flags & UInt32(HW_CORRECTED) != 0 { forget(record.node) }
    }
  }

  /// The stream is whole again.
  mutating func rescan() {
    (entries, places, unread) = ([.root: [:]], [:], [])
    read(.root)
  }

  /// After a SYNC: what differs from the filesystem, or nil.
  mutating func difference() -> String? {
    for directory in unread { read(directory) }
    var (kept, truth) = ([Name: NodeID](), [Name: NodeID]())
    flatten(.root, [], into: &kept, above: [.root])
    Self.walk(path, [], into: &truth)
    guard kept != truth else { return nil }
    let differing = Set(kept.keys).union(truth.keys).filter { kept[$0] != truth[$0] }
    return differing.map {
      let name = String(decoding: $0, as: UTF8.self)
      return "\(name): kept \(String(describing: kept[$0])), is \(String(describing: truth[$0]))"
    }.joined(separator: "; ")
  }

  private mutating func remove(_ record: SentRecord) {
    guard entries[record.directory]?[record.name] == record.node else { return }
    entries[record.directory]?[record.name] = nil
  }

  private mutating func put(_ record: SentRecord, _ directory: NodeID, _ name: Name) {
    if entries[directory] == nil { unread.insert(directory) }
    entries[directory, default: [:]][name] = record.node
    guard record.mask.contains(.isDirectory) else { return }
    if entries[record.node] == nil { entries[record.node] = [:] }
    places[record.node] = (directory, name)
    if record.flags & UInt32(HW_MOVED_IN | HW_CORRECTED) != 0 || unread.contains(record.node) {
      read(record.node)
    }
  }

  /// What happens in a directory outside, and below it, is not told.
  private mutating func forget(_ directory: NodeID) {
    var waiting = [directory]
    while let directory = waiting.popLast() {
      unread.insert(directory)
      let below = entries.removeValue(forKey: directory) ?? [:]
      waiting += below.values.filter { entries[$0] != nil }
    }
  }

  /// Reads a directory, and what is below it, where this model has it. If something else is
  /// there by now, a later record says where it went.
  private mutating func read(_ directory: NodeID) {
    unread.insert(directory)
    var (parts, at) = ([Name](), directory)
    while at != .root {
      guard let place = places[at], parts.count < 64 else { return }
      parts.append(place.name)
      at = place.directory
    }
    let path = parts.reversed().reduce(path) { $0 + [0x2f] + $1 }
    guard directory == .root || Self.identity(path)?.node == directory else { return }
    readThere(directory, path)
  }

  private mutating func readThere(_ directory: NodeID, _ path: Name) {
    unread.remove(directory)
    entries[directory] = [:]
    for name in Self.names(path) {
      let below = path + [0x2f] + name
      guard let found = Self.identity(below) else { continue }
      entries[directory]?[name] = found.node
      guard found.isDirectory else { continue }
      places[found.node] = (directory, name)
      readThere(found.node, below)
    }
  }

  private func flatten(
    _ directory: NodeID, _ prefix: Name, into found: inout [Name: NodeID], above: Set<NodeID>
  ) {
    for (name, node) in entries[directory] ?? [:] {
      found[prefix + name] = node
      guard entries[node] != nil, !above.contains(node) else { continue }
      flatten(node, prefix + name + [0x2f], into: &found, above: above.union([node]))
    }
  }

  private static func walk(_ path: Name, _ prefix: Name, into found: inout [Name: NodeID]) {
    for name in names(path) {
      let below = path + [0x2f] + name
      guard let there = identity(below) else { fatalError("it changes while it is compared") }
      found[prefix + name] = there.node
      if there.isDirectory { walk(below, prefix + name + [0x2f], into: &found) }
    }
  }

  private static func names(_ path: Name) -> [Name] {
    guard let folder = opendir(String(decoding: path, as: UTF8.self)) else { return [] }
    defer { closedir(folder) }
    var names: [Name] = []
    while let entry = readdir(folder) {
      let name = withUnsafeBytes(of: entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
      if name != [0x2e] && name != [0x2e, 0x2e] { names.append(name) }
    }
    return names
  }

  /// Inode number and generation, the latter from tmpfs's handle (u32 generation, u64 inode).
  private static func identity(_ path: Name) -> (node: NodeID, isDirectory: Bool)? {
    let descriptor = open(
      String(decoding: path, as: UTF8.self), O_PATH | O_NOFOLLOW | O_CLOEXEC)
    guard descriptor >= 0 else { return nil }
    defer { close(descriptor) }
    var status = stat()
    guard fstat(descriptor, &status) == 0, let handle = try? Syscall.handle(of: descriptor) else {
      return nil
    }
    let generation = handle.withView { $0.load(0, as: UInt32.self) }
    let node = NodeID(nodeid: UInt64(status.st_ino), generation: UInt64(generation))
    return (node, status.st_mode & S_IFMT == S_IFDIR)
  }
}
