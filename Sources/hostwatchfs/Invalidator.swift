import CHostWatch
import Glibc
import HostWatch

/// Applies records by dropping from the kernel's caches what they name:
/// `-o events=invalidate`, and what replay falls back to.
///
/// Why nothing stale stays. Let a change on the host be told by a record, and
/// let an answer that was made from the state before it be on its way to the
/// kernel while the record is applied:
///
/// - A name (P, n). P was registered before it was told, so the record names P
///   and n. A LOOKUP, a READDIRPLUS and a creation hold P's i_rwsem until the
///   kernel has made the dentry; inval_entry takes it exclusively. So the
///   dentry is there when inval_entry looks for it, or was made from an answer
///   later than the change. A revalidation holds no lock, but it can only
///   renew the dentry that inval_entry unhashes, which nobody finds any more.
///   From Linux 6.19 on inval_entry may say ENOENT at once if no dentry is hashed,
///   without waiting for that lock: the dentry may then be made after it.
/// - Attributes of an inode that the kernel has. inval_inode raises the inode's
///   attr_version, and what was asked for before that is not taken. The answers
///   of SETATTR, LINK and CREATE are taken all the same: the server sends them
///   with an attribute timeout of 0 unless the node is new.
/// - Attributes of an inode that the kernel is about to make from the answer:
///   inval_inode says ENOENT. The node has a lookup in the view then, which it
///   gets before the answer is sent. So ENOENT for such a node means that the
///   answer, or the kernel's FORGET, is on its way; the node is invalidated
///   again (`settle`) until one of them has arrived.
/// - Pages. READ keeps them locked until they are filled; inval_inode waits for
///   the lock.
/// - A change of a file between its fstat and its registration: the daemon
///   compares the ctime told (`since`) and sends RECHECK; or the record has no
///   node but P and n, and the view says which node is meant.
final class Invalidator: Applier {
  private let view: View
  private let backing: Backing
  private let notifier: Notifier
  private let statistics: Statistics
  private let misplaced: Misplaced
  /// Nodes to be invalidated again.
  private let unarrived = Locked<[UInt64]>([])
  /// Names to be dropped again: the kernel had no memory for it.
  private let undropped = Locked<[View.Entry]>([])

  init(
    _ view: View, _ backing: Backing, _ notifier: Notifier, _ statistics: Statistics,
    _ misplaced: Misplaced
  ) {
    self.view = view
    self.backing = backing
    self.notifier = notifier
    self.statistics = statistics
    self.misplaced = misplaced
  }

  func apply(_ change: Change) {
    statistics.count { $0.invalidated += 1 }
    if change.hasFlag(HW_RECHECK) { return recheck(change.node) }
    // What the name led to, for records of an object that was not registered.
    let meant = change.node != 0 ? change.node : told(change.name, change.directory)
    if change.has(HW_CREATE | HW_DELETE | HW_RENAME) {
      invalidate(change.name, in: change.directory)
      invalidate(change.newName, in: change.newDirectory)
      if change.has(HW_DELETE | HW_RENAME), change.isDirectory, meant != 0 { backing.drop(meant) }
    } else if change.node == 0, change.directory != 0 {
      // Which object it was is not known: the name is looked up again.
      invalidate(change.name, in: change.directory)
    }
    guard meant != 0 else { return }
    let pages = change.has(HW_MODIFY | HW_CLOSE_WRITE | HW_DELETE_SELF) || change.node == 0
    invalidate(meant, attributesOnly: !pages)
  }

  /// Lets the kernel ask for everything again. The view is out of step already.
  func expireAll() {
    if !notifier.hasEpoch || notifier.incrementEpoch() != 0 {
      for entry in view.allEntries { send(entry) }
    }
    for id in view.allIDs { invalidate(id, attributesOnly: false) }
  }

  func settle() -> Int32 {
    let (nodes, entries) = misplaced.take()
    for entry in entries { invalidate(entry.name, in: entry.parent) }
    let names = undropped.withLock { undropped in
      defer { undropped = [] }
      return undropped
    }
    for entry in names { send(entry) }
    let again =
      unarrived.withLock { unarrived in
        defer { unarrived = [] }
        return unarrived
      } + nodes
    for id in again { invalidate(id, attributesOnly: false) }
    let isDone = unarrived.withLock { $0.isEmpty } && undropped.withLock { $0.isEmpty }
    return isDone ? -1 : 1
  }

  /// A node may have changed in any way, a directory in its entries too.
  func recheck(_ id: UInt64) {
    guard id != 0 else { return }
    for name in view.children(of: id).keys {
      drop(View.Entry(parent: id, name: name))
    }
    invalidate(id, attributesOnly: false)
  }

  /// Drops a name, and its directory's listing.
  func invalidate(_ name: Name?, in directory: UInt64) {
    guard directory != 0 else { return }
    if let name { drop(View.Entry(parent: directory, name: name)) }
    invalidate(directory, attributesOnly: false)
  }

  /// False if it is left to `settle`.
  @discardableResult
  func invalidate(_ id: UInt64, attributesOnly: Bool) -> Bool {
    let result = notifier.invalidate(id, attributesOnly: attributesOnly)
    guard result == -ENOMEM || (result == -ENOENT && view.isKnown(id)) else { return true }
    unarrived.withLock { $0.append(id) }
    return false
  }

  /// The view forgets the name first: a lookup that comes meanwhile enters it
  /// again, and what inval_entry then drops is looked up once more. False if it is left to
  /// `settle`.
  @discardableResult
  func drop(_ entry: View.Entry) -> Bool {
    view.remove(entry)
    return send(entry)
  }

  @discardableResult
  private func send(_ entry: View.Entry) -> Bool {
    guard notifier.invalidate(entry) == -ENOMEM else { return true }
    undropped.withLock { $0.append(entry) }
    return false
  }

  private func told(_ name: Name?, _ directory: UInt64) -> UInt64 {
    guard let name, directory != 0 else { return 0 }
    return view.child(name, of: directory) ?? 0
  }
}

/// What handlers find that the kernel has to drop, and what is still to be registered. They
/// must not notify the kernel themselves, so they leave it to the follower's thread.
final class Misplaced: Sendable {
  private struct State: Sendable {
    var nodes: [UInt64] = []
    var entries: [View.Entry] = []
    var refused: [UInt64] = []
    var wake: (@Sendable () -> Void)?
  }
  private let state = Locked(State())

  /// `wake` lets the follower call `take` soon.
  func setWake(_ wake: @escaping @Sendable () -> Void) { state.withLock { $0.wake = wake } }

  func add(_ node: UInt64) { add { $0.nodes.append(node) } }

  /// The name, and its directory's listing and attributes.
  func add(_ entry: View.Entry) { add { $0.entries.append(entry) } }

  /// A node that hostwatchd had no free descriptor for.
  func addRefused(_ node: UInt64) { add { $0.refused.append(node) } }

  private func add(_ body: (inout State) -> Void) {
    let wake = state.withLock { state in
      // Without a follower caches expire by time.
      if state.wake != nil { body(&state) }
      return state.wake
    }
    wake?()
  }

  /// Lets the follower look for what is to be done again.
  func wakeUp() { state.withLock { $0.wake }?() }

  func take() -> (nodes: [UInt64], entries: [View.Entry]) {
    state.withLock { state in
      defer { (state.nodes, state.entries) = ([], []) }
      return (state.nodes, state.entries)
    }
  }

  func takeRefused() -> [UInt64] {
    state.withLock { state in
      defer { state.refused = [] }
      return state.refused
    }
  }
}
