import CFanotify
import Glibc
import HostWatch
import Logging

/// Restart without loss: what a process does at its end for the next one, and what
/// that does with it.
extension Daemon {
  /// How long reading up to an empty queue may take.
  private static let readingMicroseconds: UInt64 = 2_000_000

  /// Whether a new process follows this one. Where that cannot be found out, it is
  /// taken to be so: what was handed over in vain ends with the store.
  var isRestart: Bool {
    guard store != nil else { return false }
    do throws(SystemError) {
      switch try UnitQuery().ending() {
      case .restart: return true
      case .stop: return false
      case .unknown(let why): logUnknown(why)
      }
    } catch {
      logUnknown("\(error)")
    }
    return true
  }

  private func logUnknown(_ why: String) {
    logger.warning(
      "systemd does not say whether this is a restart (\(why)); sessions are left to a next process, and end without DETACHED if there is none",
      metadata: .of(.handOverFailed))
  }

  /// Leaves everything to the next process. When it cannot, nothing has
  /// changed and false is returned.
  func handOver() -> Bool {
    guard let store else { return false }
    let start = monotonicMicroseconds()
    let sessions = hub.figures.sessions
    let result = hub.handOver(within: Self.readingMicroseconds)
    do throws(SystemError) {
      let socket = try HandOverSocket.make(result)
      guard store.add(socket.rawValue, name: SystemdStore.handOver) else {
        throw SystemError("the descriptor store", ENOSPC)
      }
    } catch {
      logger.error(
        "nothing can be handed over: \(error); sessions end and clients connect anew",
        metadata: .of(.handOverFailed))
      return false
    }
    if !store.settle() {
      logger.warning(
        "systemd did not confirm that it keeps the sessions", metadata: .of(.handOverFailed))
    }
    let milliseconds = (monotonicMicroseconds() - start) / 1000
    logger.notice(
      "left \(sessions) sessions to the next process: \(result.state.count) bytes, \(result.descriptors.count) descriptors, \(milliseconds) ms",
      metadata: .of(.handedOver))
    return true
  }

  /// Goes on with what an earlier process left, if it did, and sets the shares.
  func takeUp(then shares: [ShareConfiguration]) {
    hub.store = store
    var isTakenUp = false
    if let store, let socket = store.take(SystemdStore.handOver) {
      // Whatever it is: it is not used a second time.
      store.remove(SystemdStore.handOver)
      isTakenUp = takeUp(socket)
    }
    store?.removeUnknown()
    hub.setShares(shares)
    if isTakenUp { hub.finishTakingUp() }
  }

  private func takeUp(_ socket: borrowing OwnedDescriptor) -> Bool {
    let start = monotonicMicroseconds()
    let (read, descriptors) = HandOverSocket.read(socket)
    defer { hub.giveUp(descriptors) }
    do {
      let state = try read.get()
      let sessions = try hub.takeUp(state, descriptors)
      let milliseconds = (monotonicMicroseconds() - start) / 1000
      logger.notice(
        "took up \(sessions) sessions of the process before: \(state.count) bytes, \(milliseconds) ms",
        metadata: .of(.takenUp))
      return true
    } catch {
      logger.error(
        "what the process before left cannot be used: \(error); its connections are closed and clients connect anew",
        metadata: .of(.handOverFailed))
      return false
    }
  }
}
