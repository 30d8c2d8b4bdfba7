import CFanotify
import Glibc

/// The process whose changes are a session's own: held by a pidfd, since its number is
/// given out again.
extension Session {
  /// A pidfd of the process whose changes are the session's own; nil when it has ended
  /// already. Before Linux 5.3 there are none, and a pid that is used again
  /// is taken for it.
  func openOwnProcess(_ pid: Int32) throws(Refusal) -> OwnedDescriptor? {
    let fromSocket = pid == peer.pid ? hw_peer_pidfd(socket.rawValue) : -ENOPROTOOPT
    let number = fromSocket == -ENOPROTOOPT ? hw_pidfd_open(pid) : fromSocket
    if number >= 0 { return OwnedDescriptor(number) }
    // A peer that has been waited for is EINVAL to older kernels.
    hasLostProcess = number == -ESRCH || (number == fromSocket && number == -EINVAL)
    guard [-EMFILE, -ENFILE, -ENOMEM].contains(number) else { return nil }
    throw Refusal(
      -number,
      "The process whose changes are the session's own cannot be watched: \(SystemError("pidfd_open", -number))."
    )
  }

  /// Watches that process.
  func watchOwnProcess(_ pidfd: consuming OwnedDescriptor) {
    let list = DescriptorList([pidfd.take()])
    do throws(SystemError) {
      let source = try hub.loop.watch(list.numbers[0], for: .readable, priority: .normal) {
        [unowned self] _ in ownProcessEnded()
      }
      ownProcess = (list, source)
    } catch {
      // Its number may be given out again without being noticed.
      filesystem?.router.forgetOwnProcess(slot: slot)
      hub.report(
        Diagnostic(
          .other, .warning,
          "A client's process cannot be watched: \(error); its own changes are told to it as others' are.",
          session: id, peer: peer, errno: error.code))
    }
  }

  /// Its number may be another's already, also in what is still queued: from here on all
  /// of that is told.
  func ownProcessEnded() {
    ownProcess?.source.cancel()
    ownProcess = nil
    hasLostProcess = true
    if !hasLeft { filesystem?.router.forgetOwnProcess(slot: slot) }
  }

  /// The process whose changes are the session's own has not ended, as far as that can be
  /// known.
  var ownProcessLives: Bool {
    guard let pidfd = ownProcess?.pidfd.numbers.first, Syscall.isReadable(pidfd) else {
      return true
    }
    ownProcess?.source.cancel()
    ownProcess = nil
    hasLostProcess = true
    return false
  }
}
