import CFanotify
import Glibc

/// Clients that neither read nor can be read from.
///
/// While a client does not take what is queued for it, its requests stay in the
/// socket, and with them the descriptors that they carry: an open file each,
/// 70,000 in one socket's default buffer. The kernel bounds them by the
/// sender's RLIMIT_NOFILE, which may be high or not count (CAP_SYS_RESOURCE).
/// The daemon looks at stalled connections with every housekeeping, and ends
///
/// - one that the peer has shut down for sending: no request will come;
/// - one that was to be closed and whose last packets are not taken;
/// - one with descriptors in its socket that has not moved for a minute, or for
///   some seconds after its process ended. They may be descriptors of the
///   connection's own other end: it would never hang up;
/// - of an unprivileged user, those with the most descriptors, while the user
///   has more than the limit in the daemon's sockets.
///
/// Who stalls without descriptors costs its bounded queue, and is left alone.
extension Hub {
  private static let closingPatience: UInt64 = 5_000_000
  private static let orphanPatience: UInt64 = 5_000_000
  private static let stalledPatience: UInt64 = 60_000_000

  var hasStalledSessions: Bool { sessions.values.contains { $0.stalledSince != nil } }

  func endStalled(_ now: UInt64) {
    var waiting: [UInt32: [(session: Session, descriptors: Int)]] = [:]
    for session in Array(sessions.values) {
      guard let since = session.stalledSince else { continue }
      if session.peerHasShutDown {
        session.end("the peer hung up")
      } else if session.isClosing {
        if now - since >= Self.closingPatience { session.end("it did not read what was left") }
      } else {
        // Where it cannot be looked there may be some.
        let descriptors = session.socket.descriptors ?? 1
        let patience = session.hasLostProcess ? Self.orphanPatience : Self.stalledPatience
        if descriptors > 0 && now - since >= patience {
          endStalled(session, descriptors, "has not read for \(patience / 1_000_000) seconds")
        } else if !session.isPrivileged && descriptors > 0 {
          waiting[session.peer.uid, default: []].append((session, descriptors))
        }
      }
    }
    for (uid, list) in waiting { endExcess(uid, list) }
  }

  private func endExcess(_ uid: UInt32, _ list: [(session: Session, descriptors: Int)]) {
    var total = list.reduce(0) { $0 + $1.descriptors }
    for (session, descriptors) in list.sorted(by: { $0.descriptors > $1.descriptors }) {
      guard total > limits.descriptorsPerUser else { return }
      endStalled(
        session, descriptors,
        "does not read, and uid \(uid) has \(total) descriptors in such connections; "
          + "limits.descriptors-per-user is \(limits.descriptorsPerUser)")
      total -= descriptors
    }
  }

  private func endStalled(_ session: Session, _ descriptors: Int, _ why: String) {
    report(
      Diagnostic(
        .descriptorsLimited, .warning,
        "A client that has sent \(descriptors) descriptors \(why): it was cut off.",
        session: session.id, share: session.share, peer: session.peer))
    session.end("it had \(descriptors) descriptors in its socket and did not read")
  }
}

extension Session {
  /// The peer sends no more, which the loop does not tell while requests are
  /// not read.
  var peerHasShutDown: Bool {
    let hangUp = Int16(truncatingIfNeeded: hw_poll_read_hang_up)
    var ready = pollfd(fd: socket.rawValue, events: hangUp, revents: 0)
    return unsafe poll(&ready, 1, 0) > 0 && ready.revents & hangUp != 0
  }
}
