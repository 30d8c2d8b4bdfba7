import CFanotify
import CHostWatch
import Glibc

/// One client: its connection, and after INIT what it watches.
///
/// In: packets, and records that the router writes into its queue. Out:
/// packets, in order. A client that stops reading costs its queue; one that
/// breaks the protocol, its session. It ends once, by `end`.
@safe final class Session {
  /// What INIT has made of a connection.
  struct Attachment {
    let filesystem: WatchedFilesystem
    let slot: UInt32
    let scope: TreeScope?
    /// The share's name, if it was attached by one.
    let share: String?
    let path: String
    let identities: IdentityIndex
    let rootRegistration: UInt32
    let maxNodes: Int
  }

  let id: UInt64
  let peer: PeerIdentity
  let socket: ClientSocket
  let created = Syscall.monotonicMicroseconds()
  /// Shared with the router once INIT has been granted; freed at the end.
  let state: UnsafeMutablePointer<SessionState>
  private(set) unowned var hub: Hub
  var source: (any LoopSource)?

  var filesystem: WatchedFilesystem?
  var slot: UInt32 = 0
  var scope: TreeScope?
  var share: String?
  var path = ""
  var identities = IdentityIndex(seed: 0)
  var rootRegistration: UInt32 = 0
  var maxNodes = 0
  var maxDelayMicroseconds: UInt32 = 0
  var user: UserAccount

  /// Replies from before INIT was granted; they go before the queue.
  var early: [[UInt8]] = []
  var pendingSyncs: [(unique: UInt64, barrier: UInt64)] = []
  private(set) var isEnded = false
  var hasLeft = false
  /// The process whose changes are the session's own has ended.
  var hasLostProcess = false
  var ownProcess: (pidfd: DescriptorList, source: any LoopSource)?
  /// The connection is closed once everything queued has been sent.
  var isClosing = false
  /// Since when the client takes nothing of what is queued while its requests
  /// wait, in monotonic microseconds.
  private(set) var stalledSince: UInt64?
  /// Since when requests with descriptors wait, as too many are still being closed.
  private var crowdedSince: UInt64?
  private(set) var waitsForCloser = false
  /// More requests may be there, and others' come first.
  private var isWaitingForTurn = false
  /// It has been reported, and nothing has been received since.
  private var hasLackedDescriptors = false
  private var wantsWritable = false
  private var isInputPaused = false
  var resync: Resync?
  /// Since when records are being dropped.
  var losingSince: Timestamp?
  var lostCount: UInt64 = 0
  private(set) var lag = Lag()
  /// When the first of the batches that wait for the client was found readable; 0:
  /// none waits.
  private var batchSince: UInt64 = 0

  init(
    id: UInt64, socket: ClientSocket, peer: PeerIdentity, user: UserAccount, hub: Hub
  ) {
    self.id = id
    self.socket = socket
    self.peer = peer
    self.user = user
    self.hub = hub
    unsafe state = UnsafeMutablePointer<SessionState>.allocate(capacity: 1)
    unsafe state.initialize(
      to: SessionState(
        id: id, isTree: false, events: [], options: 0, ownPID: peer.pid,
        queue: PacketQueue(
          limit: 0, maxPacket: 0, userQueued: user.queued, userLimit: user.queueLimit)))
    user.sessions += 1
  }

  deinit {
    unsafe state.pointee.queue.release()
    unsafe state.deallocate()
  }

  var isAttached: Bool { filesystem != nil }
  var isTree: Bool { scope != nil }
  var isPrivileged: Bool { peer.isPrivileged }
  var nodeCount: Int { identities.count }
  var hasPendingSync: Bool { !pendingSyncs.isEmpty }

  /// What the group's mark must ask for on this session's behalf.
  var wantedEvents: EventMask { unsafe state.pointee.events }

  // MARK: Input

  /// What one turn may take, so that others have theirs: packets, and microseconds.
  private static let packetsPerTurn = 32
  private static let earlyLimit = 1
  /// How long a request waits for the peer's descriptors to be closed.
  private static let crowdedPatience: UInt64 = 3_000_000

  func becameReady(_ readiness: Readiness) {
    if readiness.contains(.writable) { flush() }
    guard !isEnded, !isClosing else {
      if readiness.contains(.hangUp) || readiness.contains(.error) { end("the peer hung up") }
      return
    }
    if readiness.contains(.readable) {
      requestTurn()
    } else if readiness.contains(.hangUp) || readiness.contains(.error) {
      end("the peer hung up")
    }
  }

  private func requestTurn() {
    guard !isWaitingForTurn else { return }
    if hub.mustWait(self) { waitForTurn() } else { receive() }
    adjustReadiness()
  }

  private func waitForTurn() {
    isWaitingForTurn = true
    hub.queueTurn(self)
  }

  func takeTurn() {
    isWaitingForTurn = false
    guard !isClosing else { return }
    receive()
  }

  private func receive() {
    let sender = DescriptorCloser.Sender(uid: peer.uid, session: id)
    let began = Syscall.monotonicMicroseconds()
    let deadline = began + Turns.microseconds
    defer { hub.charge(self, microseconds: Syscall.monotonicMicroseconds() - began) }
    for count in 1... {
      guard !isEnded, !isClosing, canReply, isAdmitted(sender) else { break }
      guard count <= Self.packetsPerTurn,
        count == 1 || Syscall.monotonicMicroseconds() < deadline
      else {
        waitForTurn()
        break
      }
      switch hub.receiver.receive(
        from: socket.rawValue, closer: hub.closer, sender: sender)
      {
      case .nothing: return flush()
      case .hangUp: return end("the peer hung up")
      case .failed(let error): return end("\(error)")
      case .tooLarge:
        violate(.malformed("The packet is longer than 131,072 bytes."))
      case .incomplete: refuseForLack()
      case .packet(let descriptors): handlePacket(descriptors)
      }
    }
    flush()
  }

  /// No descriptor was free for those of a request, which is not the client's fault: it may
  /// ask again.
  private func refuseForLack() {
    let (type, unique) = hub.receiver.withPacket { RequestDecoder.header($0) }
    guard type == UInt16(HW_REGISTER) || type == UInt16(HW_INIT) else {
      return violate(.malformed("Only INIT and REGISTER come with descriptors."))
    }
    if !hasLackedDescriptors {
      hub.report(
        Diagnostic(
          .other, .warning,
          "The daemon has no free descriptors to receive a client's with; requests are refused until it has. Raise its limit (LimitNOFILE=).",
          session: id, share: share, peer: peer, errno: EMFILE))
    }
    hasLackedDescriptors = true
    reply(
      ReplyBuilder.error(
        EMFILE, "The daemon has no free descriptors to receive these with; try again later.",
        type: type, unique: unique))
  }

  /// Whether the next packet may be received. One with descriptors has to wait while too
  /// many are being closed; in the end it stays where it is, and the connection ends.
  private func isAdmitted(_ sender: DescriptorCloser.Sender) -> Bool {
    waitsForCloser = false
    if hub.closer.admits(sender) {
      crowdedSince = nil
      return true
    }
    guard hub.receiver.nextHasDescriptors(in: socket.rawValue) else { return true }
    let now = Syscall.monotonicMicroseconds()
    let since = crowdedSince ?? now
    crowdedSince = since
    guard now - since >= Self.crowdedPatience else {
      waitsForCloser = true
      hub.armHousekeeping()
      return false
    }
    violate(
      .malformed(
        """
        The packet's descriptors were not received: too many of this connection's or this \
        user's are still being closed, which takes as long as the servers of their files like.
        """))
    return false
  }

  /// Some of the user's descriptors have been closed, or time has passed.
  func receiveAgain() {
    guard waitsForCloser else { return }
    waitsForCloser = false
    requestTurn()
  }

  /// There is room for the answer to whatever comes next, and no earlier
  /// request waits for its own: replies come in the order of the requests.
  private var canReply: Bool {
    guard pendingSyncs.isEmpty else { return false }
    return isAttached ? unsafe state.pointee.queue.hasRoomForReply : early.count < Self.earlyLimit
  }

  private func handlePacket(_ descriptors: DescriptorList) {
    // What happened before a request is told before it takes effect.
    if let filesystem, filesystem.hasEvents { filesystem.drain() }
    guard !isEnded else { return }
    if !descriptors.numbers.isEmpty { hasLackedDescriptors = false }
    let (type, unique) = hub.receiver.withPacket { RequestDecoder.header($0) }
    do throws(RequestError) {
      let request = try hub.receiver.withPacket { packet throws(RequestError) in
        try RequestDecoder.decode(packet, descriptors: descriptors.numbers.count)
      }
      try handle(request, type: type, unique: unique, descriptors)
    } catch {
      if error.isProtocolError {
        violate(error)
      } else {
        reply(ReplyBuilder.error(EINVAL, error.text, type: type, unique: unique))
      }
    }
  }

  /// Answers -EPROTO, says so in the log, and ends the session.
  func violate(_ error: RequestError) {
    let (type, unique) = hub.receiver.withPacket { RequestDecoder.header($0) }
    hub.report(
      Diagnostic(
        .protocolViolation, .warning, "A client broke the protocol and was cut off: \(error.text)",
        session: id, share: share, peer: peer, errno: EPROTO))
    reply(ReplyBuilder.error(EPROTO, error.text, type: type, unique: unique))
    closeWhenSent()
  }

  // MARK: Output

  /// Queues a finished packet behind everything that is queued.
  func reply(_ packet: [UInt8]) {
    guard !isEnded else { return }
    guard isAttached else {
      early.append(packet)
      return
    }
    let fits = unsafe packet.withUnsafeBytes { unsafe state.pointee.queue.append($0) }
    if !fits { end("its replies do not fit into its queue") }
  }

  /// Sends what came of a batch that was found readable at `since`.
  func flush(since: UInt64) {
    if batchSince == 0 { batchSince = since }
    flush()
  }

  /// Sends what can be sent without blocking.
  func flush() {
    guard !isEnded else { return }
    do {
      while try sendOnce() {}
    } catch {
      return end("\(error)")
    }
    if isDrained {
      if batchSince != 0 {
        lag.add(Syscall.monotonicMicroseconds() - batchSince)
        batchSince = 0
      }
      if isClosing { return end("closed by the daemon") }
      if unsafe isAttached && state.pointee.isLosing { return announceLoss() }
    }
    if canStepResync { continueResync() }
    adjustReadiness()
  }

  private var isDrained: Bool { unsafe early.isEmpty && state.pointee.queue.isEmpty }

  /// One sendmmsg; true when there may be more to send.
  private func sendOnce() throws(SystemError) -> Bool {
    if !early.isEmpty { return try sendEarly() }
    guard unsafe !state.pointee.queue.isEmpty else { return false }
    return try unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: 64) {
      pieces throws(SystemError) in
      let count = unsafe state.pointee.queue.gather(pieces)
      let sent = unsafe hw_send_packets(socket.rawValue, pieces.baseAddress, UInt32(count))
      if sent == -EAGAIN { return false }
      stalledSince = nil
      unsafe state.pointee.queue.drop(Int(try checked(sent, "sendmmsg")))
      return unsafe !state.pointee.queue.isEmpty
    }
  }

  private func sendEarly() throws(SystemError) -> Bool {
    let sent = unsafe early[0].withUnsafeMutableBytes { bytes in
      var piece = unsafe iovec(iov_base: bytes.baseAddress, iov_len: bytes.count)
      return unsafe hw_send_packets(socket.rawValue, &piece, 1)
    }
    if sent == -EAGAIN { return false }
    try checked(sent, "sendmmsg")
    early.removeFirst()
    return true
  }

  /// Waits for room when something is left, and for requests while there is
  /// room for replies.
  private func adjustReadiness() {
    guard !isEnded else { return }
    let writable = !isDrained
    let cannotReply = !canReply || isClosing
    let paused = cannotReply || waitsForCloser || isWaitingForTurn
    if !(writable && cannotReply) {
      stalledSince = nil
    } else if stalledSince == nil {
      stalledSince = Syscall.monotonicMicroseconds()
      hub.armHousekeeping()
    }
    guard writable != wantsWritable || paused != isInputPaused else { return }
    (wantsWritable, isInputPaused) = (writable, paused)
    var readiness: Readiness = []
    if writable { readiness.insert(.writable) }
    if !paused { readiness.insert(.readable) }
    source?.setReadiness(readiness)
  }

  /// Nothing more is queued; the connection is closed when all has been sent.
  func closeWhenSent() {
    isClosing = true
    leaveFilesystem()
    flush()
  }

  /// DETACHED, then the end.
  func detach(_ reason: UInt32) {
    guard !isEnded, !isClosing else { return }
    if isAttached {
      if unsafe state.pointee.isLosing && resync == nil {
        // The gap must be known even if it is the last that is told.
        let sequence = unsafe state.pointee.sequence
        reply(ReplyBuilder.lost(reason: UInt32(HW_LOST_SESSION), sequence: sequence))
      }
      unsafe state.pointee.isLosing = false
      reply(ReplyBuilder.detached(reason: reason))
    }
    closeWhenSent()
  }

  func end(_ reason: String) {
    guard !isEnded else { return }
    isEnded = true
    source?.cancel()
    source = nil
    leaveFilesystem()
    unsafe state.pointee.queue.release()
    user.sessions -= 1
    hub.ended(self, reason)
  }

  /// No record reaches the session from here on.
  private func leaveFilesystem() {
    ownProcess?.source.cancel()
    ownProcess = nil
    resync = nil
    pendingSyncs = []
    guard let filesystem, !hasLeft else { return }
    hasLeft = true
    filesystem.remove(slot: slot)
    filesystem.removeRegistrations(identities, slot: slot)
    identities.removeAll()
  }

  // MARK: SYNC

  func addSync(_ unique: UInt64) {
    guard let filesystem else { return }
    pendingSyncs.append((unique, filesystem.barrier))
    filesystem.sync(self)
  }

  /// Answers what the records read so far cover, unless a resync runs.
  func answerSyncs(_ closedRecords: UInt64) {
    guard resync == nil, unsafe !state.pointee.isLosing else { return }
    while let sync = pendingSyncs.first, sync.barrier <= closedRecords {
      pendingSyncs.removeFirst()
      reply(ReplyBuilder.synced(unique: sync.unique))
    }
  }

  /// The filesystem's queue has been empty.
  func passUnknownBarriers(_ closedRecords: UInt64) {
    for index in pendingSyncs.indices
    where pendingSyncs[index].barrier == WatchedFilesystem.unknownBarrier {
      pendingSyncs[index].barrier = closedRecords
    }
  }

  func countLoss() { lostCount += 1 }
}

/// What one user's sessions have together.
@safe final class UserAccount {
  let uid: UInt32
  var sessions = 0
  /// Bytes queued for all of them.
  let queued: UnsafeMutablePointer<Int>
  let queueLimit: Int

  init(uid: UInt32, queueLimit: Int) {
    self.uid = uid
    self.queueLimit = queueLimit
    unsafe queued = UnsafeMutablePointer<Int>.allocate(capacity: 1)
    unsafe queued.initialize(to: 0)
  }

  deinit { unsafe queued.deallocate() }
}
