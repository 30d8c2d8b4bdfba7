import CFanotify
import CHostWatch
import Glibc

/// From one process of the daemon to the next.
///
/// Out: connections, groups and mounts as descriptors, everything else as bytes.
/// In: the same, in a process that has no sessions yet. What cannot be taken up
/// ends or is told that it lost something; nobody is left to believe what is not so.
extension Hub {
  /// Puts the filesystem's group where it outlives the process: the kernel goes on
  /// queueing then.
  func keep(_ filesystem: WatchedFilesystem) {
    guard let store else { return }
    filesystem.isStored = store.add(
      filesystem.group.descriptor.rawValue, name: WatchedFilesystem.storeName(filesystem.device))
  }

  /// Tells all that was read and says what the next process needs. Nothing ends by it: when
  /// the hand-over fails, `shutDown` can follow. The loop must not run between this
  /// and the process's end.
  ///
  /// - Parameter microseconds: how long reading up to an empty queue may take. After
  ///   that, sessions get LOST with reason 3.
  public func handOver(within microseconds: UInt64) -> HandOver {
    for listener in listeners { listener.source.setReadiness([]) }
    let deadline = Syscall.monotonicMicroseconds() + microseconds
    let used = filesystems.values.filter { !$0.sessions.isEmpty }.sorted { $0.device < $1.device }
    for filesystem in used { filesystem.finishForHandOver(deadline: deadline) }
    for session in Array(sessions.values) { session.flush() }
    var descriptors: [Int32] = []
    var state = HandOverState()
    state.nextSession = nextSession
    state.madeAt = UInt32(truncatingIfNeeded: Syscall.monotonicMicroseconds() / 1000)
    let left = used.filter { !$0.sessions.isEmpty }
    // What the others have counted stays in the totals.
    let others = filesystems.values.filter { $0.sessions.isEmpty }
    state.past = HandOverState.Past(
      lost: pastLost, events: others.reduce(pastEvents) { $0 + $1.recordsRead },
      delivered: others.reduce(pastDelivered) { $0 + $1.router.delivered },
      corrected: others.reduce(pastCorrected) { $0 + $1.reconciler.counters.corrected })
    state.filesystems = left.map { $0.handOver(&descriptors) }
    for session in sessions.values.sorted(by: { $0.id < $1.id }) where !session.isEnded {
      let filesystem = left.firstIndex { $0 === session.filesystem }
      let scope = session.scope.flatMap { scope in
        session.filesystem?.router.scopes.firstIndex { $0 === scope }
      }
      state.sessions.append(
        session.handOver(
          &descriptors, filesystem: filesystem.map { UInt32($0) }, scope: scope.map { UInt32($0) })
      )
    }
    return HandOver(state: HandOverEncoder.encode(state), descriptors: descriptors)
  }

  /// Goes on where an earlier process ended; how many sessions there are. `finishTakingUp`
  /// has to follow once the shares are set, and `giveUp` in any case.
  ///
  /// - Throws: `HandOverError` where the bytes are not a state of this version. Nothing has
  ///   been taken up then. What cannot be taken up of a right one is reported, and ends.
  public func takeUp(_ bytes: [UInt8], _ descriptors: HandedDescriptors) throws(HandOverError)
    -> Int
  {
    let state = try HandOverDecoder.decode(bytes, descriptors: descriptors.count)
    nextSession = state.nextSession
    pastLost += state.past.lost
    pastEvents += state.past.events
    pastDelivered += state.past.delivered
    pastCorrected += state.past.corrected
    let taken = state.filesystems.map { takeUp($0, descriptors, madeAt: state.madeAt) }
    eventsBefore = figures.kernelEvents
    var broken: [(Session, HandOverError)] = []
    for value in state.sessions {
      let place = value.attachment.map { taken[Int($0.filesystem)] }
      let scope = value.attachment?.scope.flatMap { place?.scopes[Int($0)] }
      guard let session = connect(value, descriptors) else { continue }
      do throws(HandOverError) {
        try session.takeUp(value, place?.filesystem, scope, descriptors)
      } catch {
        broken.append((session, error))
      }
    }
    for place in taken { start(place) }
    for (session, error) in broken {
      takeUpFailed("A session could not be taken up and ends: \(error).", session)
      session.end("it could not be taken up")
    }
    return sessions.count
  }

  /// Closes what came with a state and nobody has taken. Connections among it are shut down:
  /// a helper of an earlier process that sleeps may have a descriptor of each, and their
  /// clients are to see the end all the same.
  public func giveUp(_ descriptors: HandedDescriptors) {
    let numbers = descriptors.takeAll()
    // What is no socket says so, and is left as it is.
    for number in numbers { _ = shutdown(number, Int32(SHUT_RDWR)) }
    closer.closeLater(numbers)
  }

  /// Shuts down every connection that there is, as the process ends without having handed
  /// them over: a helper that sleeps has descriptors of them, too.
  public func abandon() {
    for session in sessions.values { _ = shutdown(session.socket.rawValue, Int32(SHUT_RDWR)) }
  }

  /// What was taken up of a filesystem.
  private struct Place {
    var filesystem: WatchedFilesystem?
    var scopes: [TreeScope?]
    /// Its group was not there any more.
    var isLost = false
    var isInGap = false
  }

  private func takeUp(
    _ state: HandOverState.Filesystem, _ descriptors: HandedDescriptors, madeAt: UInt32
  ) -> Place {
    var place = Place(filesystem: nil, scopes: state.scopes.map { _ in nil })
    let name = MountTable.text(state.device)
    do {
      let isStored = state.group < 0
      var group = descriptors.take(state.group)
      if isStored { group = store?.take(WatchedFilesystem.storeName(state.device)) }
      let found: Bool
      switch group {
      case .some: found = true
      case .none: found = false
      }
      (place.isLost, place.isInGap) = (!found, state.isInGap)
      let filesystem = try WatchedFilesystem(
        takingUp: state, group: group.take(), descriptors, report: report)
      filesystem.router.unknownUntil = madeAt
      place.filesystem = filesystem
      filesystem.isStored = isStored && found
      filesystems[filesystem.device] = filesystem
      if !filesystem.isStored { keep(filesystem) }
      if !found { takeUpFailed("\(name): the group was not kept; sessions look again.") }
      guard let layout = InodeLayout(magic: state.magic) else { return place }
      for (index, scope) in state.scopes.enumerated() {
        place.scopes[index] = try TreeScope(
          takingUp: scope, layout: layout,
          mount: DetachedMount(takingUp: scope.mount, descriptors),
          seed: filesystem.router.nodes.seed, isCurrent: found)
      }
    } catch {
      takeUpFailed("\(name): what was handed over cannot be used: \(error); its sessions end.")
      // Nobody would read it.
      if state.group < 0, filesystems[state.device] == nil {
        store?.remove(WatchedFilesystem.storeName(state.device))
      }
    }
    return place
  }

  private func start(_ place: Place) {
    guard let filesystem = place.filesystem else { return }
    do throws(SystemError) {
      try filesystem.adjustMask()
      try filesystem.start(in: loop)
      filesystem.failed = { [unowned self] in filesystemFailed($0, $1) }
    } catch {
      takeUpFailed("\(filesystem.name): it cannot be watched any more: \(error).")
      for session in Array(filesystem.sessions.values) { session.end("\(error)") }
      // A share would take it for one that is read.
      forget(filesystem)
      return
    }
    sayQueueLimit(filesystem)
    if place.isLost {
      // Before anything is read: `lastEmpty` is the earlier process's.
      for session in Array(filesystem.sessions.values) {
        session.lose(UInt32(HW_LOST_RESTART), since: filesystem.lastEmpty)
      }
    }
    // Its end is not further on than what is queued now.
    if place.isInGap { filesystem.openGap() }
    // Also what is not readable goes on: deaths that are held.
    filesystem.drain()
  }

  /// A group's queue is as long as the sysctl was when it was made.
  private func sayQueueLimit(_ filesystem: WatchedFilesystem) {
    let (has, wanted) = (filesystem.queueLimit, Syscall.fanotifyQueueLimit())
    guard has != 0, has < wanted else { return }
    report(
      Diagnostic(
        .queueSizeLimited, .warning,
        "\(filesystem.name) \(MountTable.text(filesystem.device)): its queue holds \(has) events, and a restart that keeps sessions keeps it, though fs.fanotify.max_queued_events is \(wanted) now; stop the service and start it for a longer one."
      ))
  }

  /// The connection, if it still is the peer's that the state names.
  private func connect(_ value: HandOverState.Session, _ descriptors: HandedDescriptors)
    -> Session?
  {
    guard let taken = descriptors.take(value.socket) else { return nil }
    let socket = ClientSocket(taken, closer: closer, uid: value.uid)
    let peer: PeerIdentity
    do throws(SystemError) {
      peer = try Self.peer(of: socket.rawValue)
    } catch {
      takeUpFailed("It is not known whose a connection is that was handed over: \(error).")
      return nil
    }
    guard peer.pid == value.pid, peer.uid == value.uid, peer.gid == value.gid else {
      takeUpFailed("A connection that was handed over is not the one that the state names.")
      return nil
    }
    let user = users[peer.uid] ?? UserAccount(uid: peer.uid, queueLimit: limits.queuePerUser)
    users[peer.uid] = user
    let session = Session(id: value.id, socket: socket, peer: peer, user: user, hub: self)
    do throws(SystemError) {
      session.source = try loop.watch(session.socket.rawValue, for: .readable, priority: .normal) {
        [unowned session] in session.becameReady($0)
      }
    } catch {
      user.sessions -= 1
      takeUpFailed("A connection could not be watched: \(error).", session)
      return nil
    }
    sessions[session.id] = session
    return session
  }

  /// Ends what the mount table and the configuration have no place for any more, and
  /// lets the others go on.
  public func finishTakingUp() {
    mountTableChanged()
    for session in Array(sessions.values) where session.share != nil && !session.isEnded {
      if let reason = reasonToDetach(session) {
        session.filesystem?.finish()
        session.detach(reason)
      }
    }
    for filesystem in Array(filesystems.values) { releaseIfUnused(filesystem) }
    for session in Array(sessions.values) { session.flush() }
    if !sessions.isEmpty { armHousekeeping() }
  }

  private func reasonToDetach(_ session: Session) -> UInt32? {
    guard let name = session.share, let share = share(named: name),
      share.configuration.path == session.path, session.isAllowed(share.configuration)
    else { return UInt32(HW_DETACHED_REMOVED) }
    let isThere = share.filesystem === session.filesystem && share.root == session.root
    return isThere ? nil : UInt32(HW_DETACHED_UNMOUNTED)
  }

  private func takeUpFailed(_ text: String, _ session: Session? = nil) {
    report(
      Diagnostic(
        .takeUpFailed, .error, text, session: session?.id, share: session?.share,
        peer: session?.peer))
  }
}

extension Session {
  fileprivate var root: FileHandle? {
    if let scope { return scope.root }
    guard let filesystem, rootRegistration != 0 else { return nil }
    return filesystem.router.nodes.handle(of: rootRegistration)
  }
}
