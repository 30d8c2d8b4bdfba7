import CHostWatch
import Glibc

/// Registers objects with hostwatchd before the kernel is told of them.
///
/// In: nodes that are pending, each with a descriptor. Out: in the view, whether they are
/// followed; to `misplaced`, what the follower's thread has to do about those that are not.
/// What is not followed is never cached.
struct Registrar: Sendable {
  let view: View
  let daemon: Daemon
  let misplaced: Misplaced

  /// Waits for the answer for directories: nothing that happens in them is told by another. Files
  /// are told through their directory, too; their refusal comes to the follower.
  func register(_ nodes: [(node: View.Node, registration: Daemon.Registration)]) {
    guard !nodes.isEmpty else { return }
    later(nodes.filter { !$0.node.isDirectory }.map(\.registration))
    let directories = nodes.filter { $0.node.isDirectory }.map(\.registration)
    for (status, one) in zip(daemon.register(directories), directories) {
      switch status {
      case 0: view.setFollowing(one.node, .yes)
      // Whoever gets the connection back registers what is in the view.
      case -ECONNRESET, -EPROTO, -ESHUTDOWN, -ENOMEM: break
      default:
        view.setFollowing(one.node, .refused(-status))
        if status == -EMFILE { misplaced.addRefused(one.node) }
      }
    }
  }

  private func later(_ nodes: [Daemon.Registration]) {
    // First, as the follower's thread may be told of a refusal at once.
    for one in nodes { view.setFollowing(one.node, .yes) }
    guard !daemon.registerLater(nodes) else { return }
    // Others may have told the kernel meanwhile that they are.
    for one in nodes {
      view.setFollowing(one.node, .pending)
      misplaced.add(one.node)
    }
  }
}
