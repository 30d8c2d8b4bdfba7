import CFanotify
import Glibc

/// A mount of our own, with one directory as its root, in no namespace: for
/// opening handles and for seeing what is below that directory. The mount it
/// was cloned from can be unmounted; the filesystem itself stays until this is
/// gone.
struct DetachedMount: ~Copyable {
  /// Keeps the clone together; nil where there is none.
  let tree: OwnedDescriptor?
  /// The root, open for reading: open_by_handle_at(2) takes no O_PATH descriptor.
  let root: OwnedDescriptor

  /// Clones the mount that `directory` is on. EINVAL for a mount of another
  /// namespace.
  init(cloning directory: Int32) throws(SystemError) {
    let tree = try Syscall.cloneMount(directory)
    root = try Syscall.openRoot(tree.rawValue)
    self.tree = consume tree
  }

  /// The directory's own mount, which stays busy as long as this lives.
  init(holding directory: Int32) throws(SystemError) {
    root = try Syscall.openRoot(directory)
    tree = nil
  }

  /// Takes over a mount that another process has made.
  init(tree: consuming OwnedDescriptor?, root: consuming OwnedDescriptor) {
    self.root = root
    self.tree = tree
  }

  /// A second descriptor of it, if there is one to be had.
  func copy() -> Int32? {
    // The root is on the clone, which it keeps in use by itself.
    let number = hw_duplicate(root.rawValue)
    return number < 0 ? nil : number
  }

  /// For a system call made while this lives.
  var descriptor: Int32 { root.rawValue }
}
