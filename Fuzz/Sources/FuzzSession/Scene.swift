import CFanotify
import CFuzz
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// A daemon, and the clients of one input after the other.
final class Scene {
  let place: Place
  private(set) var loop = TurnLoop()
  private(set) var hub: Hub
  private(set) var clients: [Client] = []
  /// What it serves; a daemon that follows it has the same.
  private let listener: OwnedDescriptor
  private(set) var shares = [Scene.share()]
  private let failures = Failures()
  private static let most = 6
  /// The end of a daemon takes tens of milliseconds.
  private static let mostRestarts = 2
  private var restarts = 0
  /// The daemon has taken up a state that was changed.
  private var isChanged = false
  /// Open while nobody is connected.
  private(set) var descriptors: [String] = []

  init(_ place: Place) {
    self.place = place
    do {
      listener = OwnedDescriptor(try checked(hw_socket(true), "socket"))
      unlink(place.socketPath)
      try checked(hw_bind_path(listener.rawValue, place.socketPath), "bind")
      try checked(listen(listener.rawValue, 16), "listen")
      hub = try Self.hub(loop, listener, failures)
    } catch {
      fatalError("\(error)")
    }
    chmod(place.socketPath, 0o666)
    hub.setShares(shares)
    loop.run(turns: 100)
    descriptors = openDescriptors()
  }

  private static func hub(
    _ loop: TurnLoop, _ listener: borrowing OwnedDescriptor, _ failures: Failures
  ) throws(SystemError) -> Hub {
    var limits = Limits()
    limits.sessions = 4
    limits.sessionsPerUser = 2
    limits.nodesPerSession = 8
    limits.nodesPerSessionUnprivileged = 4
    limits.queuePerSession = 65_536
    let hub = try Hub(loop: loop, limits: limits) {
      precondition(!$0.message.isEmpty)
      if $0.kind == .takeUpFailed { failures.messages.append($0.message) }
    }
    try hub.serve(try listener.duplicate())
    return hub
  }

  private static func share(_ events: EventMask = .allEvents) -> ShareConfiguration {
    ShareConfiguration(name: "s", path: Place.share, allowedUsers: [65_534], events: events)
  }

  func step(_ input: inout FuzzInput) {
    let what = input.byte()
    let client = clients.isEmpty ? nil : clients[Int(what >> 4) % clients.count]
    switch what & 15 {
    case 0 where clients.count < Self.most:
      if let new = Client(place, asUser: what & 0x10 == 0 ? 0 : 65_534) { clients.append(new) }
    case 1: client?.sendRaw(&input, place)
    case 2, 3, 4, 5: client?.sendRequest(&input, place)
    case 6: client?.drain()
    case 7:
      client?.hangUp()
      clients.removeAll { $0 === client }
    case 8: loop.run(turns: 1)
    case 9: loop.run(turns: 50)
    case 10 where what >> 4 == 0: setShares([])
    case 10: setShares([Self.share(EventMask(rawValue: UInt64(what >> 4) << 8))])
    case 15: restart(&input, changes: Int(what >> 4))
    default: place.change(input.byte(), input.byte())
    }
  }

  private func setShares(_ new: [ShareConfiguration]) {
    shares = new
    hub.setShares(shares)
  }

  /// A daemon takes up what the one before leaves, with so many bytes of it changed.
  private func restart(_ input: inout FuzzInput, changes: Int) {
    guard restarts < Self.mostRestarts else { return }
    restarts += 1
    let left = hub.handOver(within: 2_000_000)
    States.keep(left)
    var state = left.state
    let size = state.count - HandOverEncoder.headerSize
    for _ in 0..<changes {
      let at = (Int(input.byte()) | Int(input.byte()) << 8) % size
      state[HandOverEncoder.headerSize + at] = input.byte()
    }
    HandOverEncoder.seal(&state)
    let succession = Succession(hub)
    if state != left.state {
      isChanged = true
      for client in clients { client.isUnchecked = true }
    }
    let descriptors = HandedDescriptors(left.descriptors.map { hw_duplicate($0) })
    startAnew()
    failures.messages = []
    var isTakenUp = true
    do throws(HandOverError) {
      _ = try hub.takeUp(state, descriptors)
    } catch {
      isTakenUp = false
      failures.messages.append(error.description)
    }
    hub.giveUp(descriptors)
    if !isChanged {
      precondition(failures.messages.isEmpty, "not taken up: \(failures.messages)")
      succession.check(hub)
    }
    hub.setShares(shares)
    if isTakenUp { hub.finishTakingUp() }
    _ = hub.figures
    if !isChanged { succession.check(clients, place) { loop.run(turns: 50) } }
  }

  /// The daemon ends, and another is there; of what it was told the old one knows nothing.
  private func startAnew() {
    weak let old = hub
    // They know each other, which the end of a process ends.
    for session in hub.sessions.values {
      session.ownProcess?.source.cancel()
      (session.ownProcess, session.filesystem, session.scope) = (nil, nil, nil)
    }
    for filesystem in hub.filesystems.values {
      (filesystem.sessions, filesystem.syncing) = ([:], [])
    }
    loop = TurnLoop()
    do {
      hub = try Self.hub(loop, listener, failures)
    } catch {
      fatalError("\(error)")
    }
    precondition(old == nil, "the daemon that ended is there still")
    // Its helpers have no parent any more; here they do.
    while waitpid(-1, nil, WNOHANG) > 0 {}
  }

  /// What helper processes have done is noticed.
  func settle() { loop.run(turns: 100) }

  /// Everybody goes; nothing may be left of them.
  func finish() {
    loop.run(turns: 2000)
    for client in clients { client.drain() }
    loop.run(turns: 2000)
    for client in clients { client.finish(place) { loop.run(turns: 2000) } }
    for client in clients { client.hangUp() }
    clients = []
    loop.run(turns: 2000)
    precondition(hub.sessions.isEmpty, "a session outlived its connection")
    setShares([Self.share()])
    place.empty()
    loop.run(turns: 2000)
    precondition(hub.filesystems.count == 1, "a filesystem that nobody needs is watched")
    for filesystem in hub.filesystems.values {
      precondition(filesystem.router.nodes.count == 0, "a registration was left")
    }
    restarts = 0
    guard isChanged else { return }
    // Its figures are wrong, and would be in the next input, too.
    isChanged = false
    startAnew()
    hub.setShares(shares)
    loop.run(turns: 100)
  }
}

/// What could not be taken up.
final class Failures {
  var messages: [String] = []
}
