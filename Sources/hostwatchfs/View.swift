import Glibc
import HostWatch

/// What the kernel has been told: which nodes it may hold, and where their
/// names lead.
///
/// In come the server's answers (a lookup told, an operation of a client done)
/// and FORGETs; out go the nodes and names that a change on the host concerns.
///
/// Always true:
/// - A nodeid is never used again; the generation is 0 for all.
/// - Every node that the kernel may hold is here, with the number of lookups it
///   has to give back. It is entered before the answer that tells of it is
///   sent, and taken back if that could not be sent.
/// - Every name that the kernel may have cached for longer than no time is
///   here, with the node it leads to, or as absent. The kernel drops names
///   without saying so: what is here may be more than what it has, never less.
/// - A directory has one name, since the kernel moves its dentry to where it
///   was looked up last.
/// - A name is told with a timeout only if its directory has been followed, in
///   step, since before the name was looked up on the host (`Stamp`). A change in
///   between is told by a record of that name, which waits for the answer; a
///   RECHECK drops only names that are here already.
/// - Whether the cache may be relied on (`isInStep`) changes under the same
///   lock under which an answer's timeouts are taken. So whoever sets it to
///   false and then walks the table meets every node that was told with
///   another timeout than 0.
///
/// All locking is in here. No function calls out while it holds the lock, and
/// none waits for anything else.
final class View: Sendable {
  static let root: UInt64 = 1
  static let generation: UInt64 = 0
  /// How many absent names are kept of a directory; what goes beyond is told
  /// with the timeout 0.
  static let maxAbsentNames = 16384

  /// A name in a directory.
  struct Entry: Hashable, Sendable {
    let parent: UInt64
    let name: Name
  }

  /// Whether the daemon tells of what happens to a node.
  enum Following: Sendable, Equatable {
    /// Not registered yet, or the connection was lost meanwhile.
    case pending
    case yes
    /// The daemon refused it, with this errno: it is never cached.
    case refused(Int32)
  }

  /// A node as it was when it was asked for.
  struct Node: Sendable {
    let id: UInt64
    /// What is behind it on the host. Nil for a node that was made up to tell
    /// of an object which is gone already.
    var object: BackingObject?
    /// S_IFMT's bits.
    let type: mode_t
    /// How often the kernel was told of it, less what it has forgotten.
    var lookups: UInt64
    /// Others that need it to stay.
    var holds = 0
    var following: Following
    /// The names that lead to it: one of a directory, several of hard links.
    var names: Set<Entry> = []
    /// The highest link count that the kernel may have of it.
    var toldLinks: UInt64 = 0

    var isDirectory: Bool { type == S_IFDIR }
  }

  /// How long the kernel may keep an answer, in seconds.
  struct Timeouts: Sendable {
    var entry: Double
    var attributes: Double
    static let none = Timeouts(entry: 0, attributes: 0)
  }

  /// When a name was looked up on the host.
  struct Stamp: Sendable {
    /// How often the view had been out of step; nil if the name's directory was not
    /// followed, or the view was out of step.
    fileprivate let gaps: UInt64?
  }

  private struct Slot: Sendable {
    var node: Node
    /// Of a directory: name to nodeid, 0 for a name told to be absent.
    var children: [Name: UInt64] = [:]
    var absent = 0
  }

  private struct State: Sendable {
    var slots: [UInt64: Slot] = [:]
    var byHandle: [BackingObject.Key: UInt64] = [:]
    var nextID: UInt64 = View.root + 1
    var isInStep = false
    /// How often it was not.
    var gaps: UInt64 = 0
    var initially = Following.pending
  }

  private let state: Locked<State>
  /// What an answer is told with while in step.
  private let timeout: Double

  /// Without a daemon nodes are cached as if they were followed: `timeout` is
  /// all that keeps them true.
  init(root: BackingObject, timeout: Double, hasDaemon: Bool) {
    var state = State()
    state.initially = hasDaemon ? .pending : .yes
    let node = Node(
      id: Self.root, object: root, type: S_IFDIR, lookups: 1, following: .yes)
    state.slots[Self.root] = Slot(node: node)
    state.byHandle[root.key] = Self.root
    self.state = Locked(state)
    self.timeout = timeout
  }

  // MARK: - Asking

  func node(_ id: UInt64) -> Node? { state.withLock { $0.slots[id]?.node } }

  func node(of key: BackingObject.Key) -> Node? {
    state.withLock { state in state.byHandle[key].flatMap { state.slots[$0]?.node } }
  }

  /// What the kernel was told of a name: a nodeid, 0 for absent, nil for nothing.
  func child(_ name: Name, of parent: UInt64) -> UInt64? {
    state.withLock { $0.slots[parent]?.children[name] }
  }

  /// Every name told of a directory, the absent ones too.
  func children(of parent: UInt64) -> [Name: UInt64] {
    state.withLock { $0.slots[parent]?.children ?? [:] }
  }

  func isKnown(_ id: UInt64) -> Bool {
    id == Self.root || state.withLock { ($0.slots[id]?.node.lookups ?? 0) > 0 }
  }

  /// The names from the root to a node; empty for the root, nil if it has none.
  func path(of id: UInt64) -> [Name]? {
    state.withLock { state in
      var path: [Name] = []
      var current = id
      while current != Self.root {
        guard let entry = state.slots[current]?.node.names.first, path.count < 4096 else {
          return nil
        }
        path.append(entry.name)
        current = entry.parent
      }
      return path.reversed()
    }
  }

  var nodeCount: Int { state.withLock { $0.slots.count } }
  var allIDs: [UInt64] { state.withLock { Array($0.slots.keys) } }
  var allEntries: [Entry] {
    state.withLock { state in
      state.slots.flatMap { slot in
        slot.value.children.keys.map { Entry(parent: slot.key, name: $0) }
      }
    }
  }

  // MARK: - In step

  var isInStep: Bool {
    get { state.withLock { $0.isInStep } }
    set {
      state.withLock { state in
        if !newValue { state.gaps += 1 }
        state.isInStep = newValue
      }
    }
  }

  /// To be taken before a name of `parent` is looked up on the host.
  func stamp(of parent: UInt64) -> Stamp {
    state.withLock { state in
      Stamp(gaps: timeouts(parent, nil, state).entry > 0 ? state.gaps : nil)
    }
  }

  /// What an answer may be told with that is about `entry` of `parent` and the
  /// attributes of `node`; either may be left out. The entry was looked up at `stamp`,
  /// or is looked up now.
  func timeouts(parent: UInt64?, node: UInt64?, stamp: Stamp? = nil) -> Timeouts {
    state.withLock { state in
      var timeouts = timeouts(parent, node, state)
      if let stamp, stamp.gaps != state.gaps { timeouts.entry = 0 }
      return timeouts
    }
  }

  private func timeouts(_ parent: UInt64?, _ node: UInt64?, _ state: State) -> Timeouts {
    guard state.isInStep else { return .none }
    let follows = { (id: UInt64?) -> Bool in
      id.flatMap { state.slots[$0]?.node.following } == .yes
    }
    return Timeouts(
      entry: follows(parent) ? timeout : 0, attributes: follows(node) ? timeout : 0)
  }

  // MARK: - Told to the kernel

  /// Enters an object of which the kernel is about to be told: it gets a node
  /// if it has none, and one lookup more. To be undone with `withdraw` if the
  /// answer is not sent. `entry` is the name under which it is told, if any.
  func enter(_ object: BackingObject, type: mode_t, as entry: Entry?) -> Node {
    state.withLock { state in
      let id = Self.findOrMake(object, type, &state)
      state.slots[id]?.node.lookups += 1
      if let entry { Self.set(entry, to: id, &state) }
      guard let node = state.slots[id]?.node else { preconditionFailure("entered and gone") }
      return node
    }
  }

  /// The same for a node that is held.
  func enter(_ id: UInt64, as entry: Entry?) {
    state.withLock { state in
      state.slots[id]?.node.lookups += 1
      if let entry { Self.set(entry, to: id, &state) }
    }
  }

  /// A node for an object that no client has looked up, held for the caller
  /// until `release`. Without an object it stands for one that is gone.
  func hold(_ object: BackingObject?, type: mode_t) -> Node {
    state.withLock { state in
      let id = object.map { Self.findOrMake($0, type, &state) } ?? Self.make(nil, type, &state)
      state.slots[id]?.node.holds += 1
      guard let node = state.slots[id]?.node else { preconditionFailure("held and gone") }
      return node
    }
  }

  /// Keeps a node until `release`. False if there is none.
  func hold(_ id: UInt64) -> Bool {
    state.withLock { state in
      guard state.slots[id] != nil else { return false }
      state.slots[id]?.node.holds += 1
      return true
    }
  }

  /// True if that was the last that kept the node: its registration ends.
  func release(_ id: UInt64) -> Bool {
    state.withLock { state in
      state.slots[id]?.node.holds -= 1
      return Self.removeIfUnused(id, &state)
    }
  }

  /// The answer with the last lookup was not sent, or the kernel has forgotten
  /// that many. True if the node is gone: its registration ends.
  func forget(_ id: UInt64, lookups: UInt64) -> Bool {
    state.withLock { state in
      guard id != Self.root, let known = state.slots[id]?.node.lookups else { return false }
      state.slots[id]?.node.lookups = known - min(known, lookups)
      return Self.removeIfUnused(id, &state)
    }
  }

  func setFollowing(_ id: UInt64, _ following: Following) {
    state.withLock { $0.slots[id]?.node.following = following }
  }

  /// The node's object stays open for as long as the node lives.
  func keep(_ descriptor: Descriptor, for id: UInt64) {
    state.withLock { state in
      guard let object = state.slots[id]?.node.object, object.kept == nil else { return }
      state.slots[id]?.node.object = BackingObject(key: object.key, kept: descriptor)
    }
  }

  /// The kernel may have been told of so many links.
  func setToldLinks(_ id: UInt64, _ links: UInt64) {
    state.withLock { state in
      guard let told = state.slots[id]?.node.toldLinks, told < links else { return }
      state.slots[id]?.node.toldLinks = links
    }
  }

  /// A name is told to be absent, as it was at `stamp`: the timeout for it, in seconds.
  func enterAbsent(_ entry: Entry, stamp: Stamp) -> Double {
    state.withLock { state in
      let timeout = timeouts(entry.parent, nil, state).entry
      guard timeout > 0, stamp.gaps == state.gaps, let absent = state.slots[entry.parent]?.absent
      else { return 0 }
      // The slot itself is not held: a change of it would copy all its names.
      let isNew = state.slots[entry.parent]?.children[entry.name] == nil
      if isNew, absent >= Self.maxAbsentNames { return 0 }
      Self.set(entry, to: 0, &state)
      return timeout
    }
  }

  // MARK: - The namespace

  /// What the kernel does with its dentries after an operation was answered.
  func set(_ entry: Entry, to id: UInt64) { state.withLock { Self.set(entry, to: id, &$0) } }

  /// The name is gone, or nothing is known of it any more.
  func remove(_ entry: Entry) { state.withLock { Self.remove(entry, &$0) } }

  /// A RENAME that was answered with success. With `exchange` both names stay.
  func rename(_ old: Entry, to new: Entry, exchange: Bool) {
    state.withLock { state in
      let moved = state.slots[old.parent]?.children[old.name]
      let target = state.slots[new.parent]?.children[new.name]
      Self.remove(old, &state)
      Self.remove(new, &state)
      if let moved, moved != 0 { Self.set(new, to: moved, &state) }
      if exchange, let target, target != 0 { Self.set(old, to: target, &state) }
    }
  }

  // MARK: - With the lock held

  private static func findOrMake(_ object: BackingObject, _ type: mode_t, _ state: inout State)
    -> UInt64
  {
    state.byHandle[object.key] ?? make(object, type, &state)
  }

  private static func make(_ object: BackingObject?, _ type: mode_t, _ state: inout State)
    -> UInt64
  {
    let id = state.nextID
    state.nextID += 1
    let node = Node(
      id: id, object: object, type: type & S_IFMT, lookups: 0, following: state.initially)
    state.slots[id] = Slot(node: node)
    if let object { state.byHandle[object.key] = id }
    return id
  }

  private static func set(_ entry: Entry, to id: UInt64, _ state: inout State) {
    guard state.slots[entry.parent] != nil else { return }
    remove(entry, &state)
    if id == 0 {
      state.slots[entry.parent]?.absent += 1
    } else {
      guard let node = state.slots[id]?.node else { return }
      if node.isDirectory {
        for other in node.names { remove(other, &state) }
      }
      state.slots[id]?.node.names.insert(entry)
    }
    state.slots[entry.parent]?.children[entry.name] = id
  }

  private static func remove(_ entry: Entry, _ state: inout State) {
    guard let id = state.slots[entry.parent]?.children.removeValue(forKey: entry.name) else {
      return
    }
    if id == 0 {
      state.slots[entry.parent]?.absent -= 1
    } else {
      state.slots[id]?.node.names.remove(entry)
    }
  }

  private static func removeIfUnused(_ id: UInt64, _ state: inout State) -> Bool {
    guard id != root, let slot = state.slots[id], slot.node.lookups == 0, slot.node.holds == 0
    else { return false }
    for entry in slot.node.names { remove(entry, &state) }
    for (name, child) in slot.children where child != 0 {
      state.slots[child]?.node.names.remove(Entry(parent: id, name: name))
    }
    if let key = slot.node.object?.key, state.byHandle[key] == id {
      state.byHandle[key] = nil
    }
    state.slots[id] = nil
    return true
  }
}
