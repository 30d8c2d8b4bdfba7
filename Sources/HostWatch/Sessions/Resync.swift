import CHostWatch
import Glibc

/// Looks at every node of a session after records were lost.
///
/// In: the session's registrations, none for TREE, and the last moment before the gap at
/// which nothing was missing. Out: DELETE_SELF for what is gone, RECHECK for what has
/// changed since, then RESYNCED. It begins when the stream is whole again; in slices,
/// one in a turn of the loop, so that live events do not wait, and only while the client
/// takes what it is sent.
final class Resync {
  static let nodesPerSlice = 128
  /// A system call stamps the ctime, and its event is queued when it is done: the queue
  /// may have been empty in between. So much the loss of an event goes back.
  static let callsUnderWayNanoseconds: UInt32 = 10_000_000

  private(set) var registrations: [UInt32]
  private var next = 0
  private(set) var since: Timestamp
  private(set) var checked: UInt64 = 0
  private(set) var reported: UInt64 = 0

  init(_ registrations: [UInt32], since: Timestamp) {
    self.registrations = registrations
    self.since = since
  }

  /// Goes on with one that an earlier process has begun; `registrations` are those
  /// that it had not come to.
  init(_ registrations: [UInt32], takingUp state: HandOverState.ResyncState) {
    self.registrations = registrations
    (since, checked, reported) = (state.since, state.checked, state.reported)
  }

  /// Why the last slice ended early: descriptors or memory were missing. It is tried again.
  private(set) var lacking: SystemError?

  /// Those that have not been looked at yet.
  var unchecked: ArraySlice<UInt32> { registrations[next...] }

  /// A node that was registered meanwhile. Whoever registers and forgets in turn does not
  /// make the list longer and longer: it is at most twice as long as the session's `live`
  /// registrations are many, and `sparseness` more.
  func add(_ registration: UInt32, live: Int, isLive: (UInt32) -> Bool) {
    registrations.append(registration)
    guard registrations.count > 2 * live + Self.sparseness else { return }
    var seen: Set<UInt32> = []
    registrations = registrations[next...].filter { isLive($0) && seen.insert($0).inserted }
    next = 0
  }

  private static let sparseness = 1024

  /// Another loss: everything is looked at again, against the earlier moment.
  func restart(_ registrations: [UInt32], since: Timestamp) {
    self.registrations = registrations
    self.since = min(self.since, since)
    (next, checked, reported) = (0, 0, 0)
  }

  /// Looks at the next nodes; false when there are none left. Stops where a
  /// record does not fit, and where the host lacks what looking takes.
  func advance(_ session: Session, _ filesystem: WatchedFilesystem) -> Bool {
    let end = min(next + Self.nodesPerSlice, registrations.count)
    lacking = nil
    while next < end {
      let index = registrations[next]
      next += 1
      let entry = filesystem.router.nodes.registration(index)
      guard entry.session == session.slot else { continue }
      checked += 1
      if entry.isDead { continue }
      let wantsEnd =
        unsafe session.state.pointee.events.contains(.deleteSelf)
        && EventMask(rawValue: UInt64(entry.interest)).contains(.deleteSelf)
      let (mask, flags) = verdict(
        filesystem.router.nodes.handle(of: index), filesystem,
        since: entry.owesRecheck ? nil : since,
        wantsEnd: wantsEnd)
      if lacking != nil {
        next -= 1
        checked -= 1
        return true
      }
      guard let mask else { continue }
      // A record that does not fit waits; it must not count as another loss.
      guard session.hasRoomForRecheck,
        filesystem.router.tell(mask, flags: flags, registration: index, slot: session.slot)
      else {
        next -= 1
        checked -= 1
        return true
      }
      reported += 1
    }
    return next < registrations.count
  }

  /// What to say of a node, or nil for nothing. Who did not ask for DELETE_SELF is told to
  /// look, and so is who has to look whatever the ctime: `since` is nil then.
  private func verdict(
    _ handle: FileHandle, _ filesystem: WatchedFilesystem, since: Timestamp?, wantsEnd: Bool
  ) -> (EventMask?, UInt32) {
    do throws(SystemError) {
      let object = try Syscall.open(handle, on: filesystem.mount)
      let status = try Syscall.status(of: object.rawValue)
      if let since, !status.ctime.isLater(than: since) { return (nil, 0) }
      return (status.isDirectory ? .isDirectory : [], UInt32(HW_RECHECK))
    } catch {
      if error.code == ESTALE && wantsEnd { return (.deleteSelf, 0) }
      if [EMFILE, ENFILE, ENOMEM].contains(error.code) { lacking = error }
      // Not known: the server has to look itself, at its names as well if it has some.
      return (.isDirectory, UInt32(HW_RECHECK))
    }
  }
}

extension Session {
  /// Records for this session were lost, `since` being the last moment at
  /// which none were.
  func lose(_ reason: UInt32, since: Timestamp) {
    guard isAttached, !isEnded else { return }
    let since = min(since, losingSince ?? since).earlier(
      byNanoseconds: Resync.callsUnderWayNanoseconds)
    if let resync {
      resync.restart(registrations(), since: since)
      return
    }
    countLoss()
    reply(ReplyBuilder.lost(reason: reason, sequence: unsafe state.pointee.sequence))
    guard !isEnded else { return }
    resync = Resync(registrations(), since: since)
    hub.scheduleResync()
  }

  /// Records are being dropped, the first of them later than `since`.
  func noteLoss(since: Timestamp) {
    guard unsafe state.pointee.isLosing else { return }
    losingSince = min(losingSince ?? since, since)
  }

  /// The queue was full and has been emptied: the client learns of the gap.
  func announceLoss() {
    unsafe state.pointee.isLosing = false
    let since = losingSince ?? filesystem?.lastEmpty ?? .zero
    losingSince = nil
    if resync == nil {
      hub.report(
        Diagnostic(
          .sessionQueueOverflow, .notice,
          "A client did not read fast enough; its queue overflowed and it looks again at what it holds.",
          session: id, share: share, peer: peer))
    }
    lose(UInt32(HW_LOST_SESSION), since: since)
    flush()
  }

  /// One slice; called once in a turn of the loop.
  func stepResync() {
    guard let resync, let filesystem, !isEnded, canStepResync else { return }
    let more = resync.advance(self, filesystem)
    if let lacking = resync.lacking {
      hub.report(
        Diagnostic(
          .filesystemFailed, .warning,
          "A session's nodes cannot be looked at after a loss: \(lacking); it is tried again.",
          session: id, share: share, peer: peer, errno: lacking.code))
    }
    if unsafe !more && !state.pointee.isLosing { finishResync(resync) }
    filesystem.flush()
    flush()
  }

  /// Whether a slice can be done now. Half of the queue stays free for live events.
  var canStepResync: Bool {
    unsafe resync != nil && filesystem?.gapEnd == nil && state.pointee.queue.isHalfFree
      && hasRoomForRecheck
  }

  /// A RECHECK or DELETE_SELF fits into the queue.
  var hasRoomForRecheck: Bool {
    unsafe !state.pointee.isLosing
      && state.pointee.queue.hasRoom(forRecordOf: MemoryLayout<hw_record>.size)
  }

  func continueResync() {
    if resync != nil { hub.scheduleResync() }
  }

  private func finishResync(_ finished: Resync) {
    resync = nil
    reply(
      ReplyBuilder.resynced(
        sequence: unsafe state.pointee.sequence, checked: finished.checked,
        reported: finished.reported))
    if let filesystem { answerSyncs(filesystem.reconciler.closedRecords) }
  }

  private func registrations() -> [UInt32] {
    var all: [UInt32] = []
    all.reserveCapacity(identities.count)
    identities.visit { all.append($0) }
    return all
  }
}
