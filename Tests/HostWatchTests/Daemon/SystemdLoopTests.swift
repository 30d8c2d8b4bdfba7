import CFanotify
import Glibc
import HostWatch
import Testing

@testable import hostwatchd

/// A socket pair whose ends are closed at the end of a test.
private final class Pair {
  let near: Int32
  let far: Int32

  init() throws {
    var ends: [Int32] = [-1, -1]
    // The kernel writes two numbers.
    let result = unsafe socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends)
    try #require(result == 0)
    near = ends[0]
    far = ends[1]
  }

  func poke() { _ = unsafe send(far, "x", 1, 0) }

  deinit {
    close(near)
    close(far)
  }
}

@Suite struct SystemdLoopTests {
  @Test func callsHandlersInTheOrderOfPriority() throws {
    let loop = try SystemdLoop()
    let pairs = [try Pair(), try Pair(), try Pair()]
    for pair in pairs { pair.poke() }
    var order: [LoopPriority] = []
    // Each goes quiet once it was called, so that the next gets its turn.
    var muted: [any LoopSource] = []
    for (index, pair) in pairs.enumerated() {
      let priority = [LoopPriority.idle, .normal, .urgent][index]
      var own: (any LoopSource)?
      own = try loop.watch(pair.near, for: .readable, priority: priority) { _ in
        order.append(priority)
        own?.setReadiness([])
        if order.count == 3 { loop.exit(7) }
      }
      if let own { muted.append(own) }
    }
    #expect(try loop.run() == 7)
    #expect(order == [.urgent, .normal, .idle])
    for source in muted { source.cancel() }
  }

  @Test func aHandlerMayCancelItselfAndOthers() throws {
    let loop = try SystemdLoop()
    let first = try Pair()
    let second = try Pair()
    first.poke()
    second.poke()
    var calls = 0
    var sources: [any LoopSource] = []
    for pair in [first, second] {
      let source = try loop.watch(pair.near, for: .readable, priority: .normal) { _ in
        calls += 1
        for source in sources { source.cancel() }
        // Cancelling twice does nothing; so does changing a cancelled source.
        sources.first?.cancel()
        sources.first?.setReadiness(.writable)
        sources = []
      }
      sources.append(source)
    }
    let end = try loop.timer(priority: .idle) { loop.exit(0) }
    end.arm(afterMicroseconds: 20_000)
    #expect(try loop.run() == 0)
    #expect(calls == 1)
    end.cancel()
  }

  @Test func aCancelledSourceLetsGoOfWhatItsHandlerHolds() throws {
    final class Token {}
    let loop = try SystemdLoop()
    let pair = try Pair()
    weak var held: Token?
    let source: any LoopSource
    do {
      let token = Token()
      held = token
      source = try loop.watch(pair.near, for: .readable, priority: .normal) { [token] _ in
        _ = token
      }
    }
    #expect(held != nil)
    source.cancel()
    #expect(held == nil)
  }

  @Test func timersFireOnceEachTimeTheyAreArmed() throws {
    let loop = try SystemdLoop()
    var fired = 0
    let end = try loop.timer(priority: .idle) { loop.exit(0) }
    end.arm(afterMicroseconds: 10_000_000)
    var timer: (any LoopTimer)?
    timer = try loop.timer(priority: .normal) {
      fired += 1
      if fired < 3 { timer?.arm(afterMicroseconds: 1000) }
      if fired == 3 { end.arm(afterMicroseconds: 50_000) }
    }
    let never = try loop.timer(priority: .normal) { fired += 100 }
    never.arm(afterMicroseconds: 2000)
    never.disarm()
    let start = monotonicMicroseconds()
    timer?.arm(afterMicroseconds: 1000)
    #expect(try loop.run() == 0)
    #expect(fired == 3)
    #expect(monotonicMicroseconds() - start >= 50_000)
    for timer in [timer, never, end] { timer?.cancel() }
  }

  @Test func anEmptySetStillHearsAHangUp() throws {
    let loop = try SystemdLoop()
    var ends: [Int32] = [-1, -1]
    // The kernel writes two numbers.
    #expect(unsafe socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
    var seen: Readiness = []
    var own: (any LoopSource)?
    own = try loop.watch(ends[0], for: [], priority: .normal) {
      seen = $0
      own?.cancel()
      loop.exit(0)
    }
    close(ends[1])
    #expect(try loop.run() == 0)
    #expect(seen.contains(.hangUp))
    close(ends[0])
  }

  @Test func whatCannotBeWatchedIsAnError() throws {
    let loop = try SystemdLoop()
    #expect(throws: SystemError.self) {
      _ = try loop.watch(9_999, for: .readable, priority: .normal) { _ in }
    }
  }

  @Test func afterWorkRunsOncePerArming() throws {
    let loop = try SystemdLoop()
    var ran = 0
    let after = try loop.afterWork { ran += 1 }
    var ticks = 0
    var timer: (any LoopTimer)?
    timer = try loop.timer(priority: .normal) {
      ticks += 1
      if ticks == 3 { after.arm() }
      if ticks == 5 { return loop.exit(0) }
      timer?.arm(afterMicroseconds: 100)
    }
    timer?.arm(afterMicroseconds: 100)
    #expect(try loop.run() == 0)
    #expect(ran == 2)
    timer?.cancel()
  }
}
