import CFanotify
import Glibc

@testable import HostWatch

/// What a daemon that ends has, and what the one that follows must have: each session
/// whose client is there.
struct Succession {
  private struct Member {
    let isAttached: Bool
    /// Nothing that it said is to be read, so that its next request is the next.
    let isIdle: Bool
  }

  private var members: [UInt64: Member] = [:]

  /// After `Hub.handOver`, which may have ended sessions.
  init(_ hub: Hub) {
    for session in hub.sessions.values where !session.isEnded {
      var socket = pollfd(fd: session.socket.rawValue, events: Int16(POLLIN), revents: 0)
      poll(&socket, 1, 0)
      guard Int32(socket.revents) & (POLLHUP | POLLERR) == 0 else { continue }
      members[session.id] = Member(
        isAttached: session.isAttached && !session.isClosing,
        isIdle: Int32(socket.revents) & POLLIN == 0)
    }
  }

  /// After `Hub.takeUp`.
  func check(_ hub: Hub) {
    for (id, member) in members {
      guard let session = hub.sessions[id] else { preconditionFailure("session \(id) is lost") }
      precondition(session.isAttached == member.isAttached, "session \(id) is another")
    }
  }

  /// Once shares are set: who is idle is answered, whatever it has not read yet.
  func check(_ clients: [Client], _ place: Place, _ turn: () -> Void) {
    for client in clients {
      client.drain()
      guard let member = members[client.session], member.isAttached, member.isIdle else { continue }
      precondition(client.syncs(place, turn), "no answer to a SYNC after a restart")
    }
  }
}
