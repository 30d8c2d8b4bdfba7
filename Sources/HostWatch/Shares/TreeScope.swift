import Glibc

/// A share root that TREE sessions look at: the sessions, the directories
/// inside it, and how its filesystem's handles carry inode numbers.
///
/// Sessions with the same root share one scope.
final class TreeScope {
  let root: FileHandle
  let layout: InodeLayout
  var index: DirectoryIndex
  /// Slots of the sessions.
  var sessions: [UInt32] = []
  /// The paths of the record that is being routed, kept for their memory.
  var path: [UInt8] = []
  var newPath: [UInt8] = []
  /// Directories that moved from one whose place was asked of the filesystem
  /// after the fact, and when that was routed (milliseconds, monotonic).
  var doubtful: [(FileHandle, UInt32)] = []

  /// - Parameter mount: a detached clone whose root is the share's root.
  init(root: FileHandle, layout: InodeLayout, mount: consuming DetachedMount, seed: UInt64) {
    self.root = root
    self.layout = layout
    index = DirectoryIndex(root: root, mount: mount, seed: seed)
  }

  /// A scope that an earlier process had; throws when the mount's root is not
  /// the share's.
  init(
    takingUp state: HandOverState.Scope, layout: InodeLayout, mount: consuming DetachedMount,
    seed: UInt64, isCurrent: Bool
  ) throws(SystemError) {
    guard try Syscall.handle(of: mount.descriptor) == state.root else {
      throw SystemError("a root that was handed over", ESTALE)
    }
    root = state.root
    self.layout = layout
    index = DirectoryIndex(root: state.root, mount: mount, seed: seed)
    guard isCurrent else { return }
    index.takeUp(state.directories)
    doubtful = state.doubtful.map { ($0.handle, $0.since) }
  }

  /// Inode number and generation of an object; (1, 0) for the share's root;
  /// nil for a handle that is not of this filesystem's kind.
  func identity(_ handle: HandleView) -> NodeID? {
    if root.withView({ $0 == handle }) { return .root }
    return layout.identity(in: handle)
  }
}
