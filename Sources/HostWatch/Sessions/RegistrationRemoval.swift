/// Takes the registrations of sessions that have ended out of a node table.
///
/// In: a session's identities and its slot, which no other session gets meanwhile. Out:
/// nothing. A session with few goes at once; of more, one slice goes in a turn of
/// the loop, so that the others' events do not wait for the end of a large one.
final class RegistrationRemoval {
  /// Slots of the session's index in one turn, well below a millisecond's work.
  private static let slotsPerSlice = 4096

  private let router: Router
  private var timer: (any LoopTimer)?
  private var waiting: [(identities: IdentityIndex, slot: UInt32)] = []
  private var position = 0

  init(_ router: Router, in loop: any EventLoop) throws(SystemError) {
    self.router = router
    timer = try loop.timer(priority: .normal) { [unowned self] in advance() }
  }

  func add(_ identities: IdentityIndex, slot: UInt32) {
    guard identities.count > Self.slotsPerSlice / 2 else {
      identities.visit { router.nodes.remove($0) }
      return
    }
    router.leaving.insert(slot)
    waiting.append((identities, slot))
    timer?.arm(afterMicroseconds: 0)
  }

  func cancel() {
    timer?.cancel()
    timer = nil
  }

  private func advance() {
    guard let first = waiting.first else { return }
    let more = first.identities.visit(from: &position, atMost: Self.slotsPerSlice) {
      router.nodes.remove($0)
    }
    if !more {
      waiting.removeFirst()
      position = 0
      router.leaving.remove(first.slot)
    }
    if !waiting.isEmpty { timer?.arm(afterMicroseconds: 0) }
  }
}
