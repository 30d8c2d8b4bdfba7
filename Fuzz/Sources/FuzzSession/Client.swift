import CFanotify
import CFuzz
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// Room for the longest packet, which all clients share.
nonisolated(unsafe) private let buffer = UnsafeMutableRawBufferPointer.allocate(
  byteCount: 1 << 18, alignment: 16)

/// A client that says whatever the input says, and checks what it is told.
final class Client {
  private let socket: Int32
  private let uid: uid_t
  private var sequence: UInt64 = 0
  private var grant: Grant?
  private var tree: TreeModel?
  private var unique: UInt64 = 0
  private var requests = Requests()
  /// It has been told that something was lost, and not yet that this was made up for.
  private var isLosing = false
  /// The daemon has said that it ends the connection.
  private var isCutOff = false
  /// There is nothing more to read, or the daemon was told that the client goes.
  private var isOver = false
  /// What a state that was changed has put into its queue may be anything.
  var isUnchecked = false

  /// 0 before INIT was granted.
  var session: UInt64 { grant?.session ?? 0 }

  /// nil when the daemon's backlog is full.
  init?(_ place: Place, asUser uid: uid_t) {
    self.uid = uid
    socket = hw_socket(true)
    guard socket >= 0 else { return nil }
    // SO_PEERCRED is of the moment of connect(2).
    if uid != 0 { _ = fuzz_effective_user(uid) }
    let connected = hw_connect_path(socket, place.socketPath)
    if uid != 0 { _ = fuzz_effective_user(0) }
    guard connected == 0 else {
      close(socket)
      return nil
    }
  }

  func hangUp() { close(socket) }

  func sendRaw(_ input: inout FuzzInput, _ place: Place) {
    let kinds = self.kinds(&input)
    send(input.block(4096), kinds, place)
  }

  /// A packet whose header is right, and whose count fits its length as often
  /// as not.
  func sendRequest(_ input: inout FuzzInput, _ place: Place) {
    let type = UInt16(input.below(8))
    let kinds = self.kinds(&input)
    var body = input.block(1024)
    if type == UInt16(HW_INIT) {
      // major, minor: what is spoken.
      if body.count >= 4 { body.replaceSubrange(0..<4, with: [1, 0, 0, 0]) }
    } else if body.count >= 8, body[7] & 1 == 0 {
      let sizes: [UInt16: Int] = [2: 40, 3: 16, 4: 24]
      let count = (body.count - 8) / (sizes[type] ?? 8)
      body.replaceSubrange(0..<8, with: [UInt8(count & 0xff), UInt8(count >> 8), 0, 0, 0, 0, 0, 0])
      if let size = sizes[type] { body.removeLast(body.count - 8 - count * size) }
    }
    send(packet(type, body), kinds, place)
  }

  private func packet(_ type: UInt16, _ body: [UInt8]) -> [UInt8] {
    unique += 1
    var packet: [UInt8] = []
    append(UInt32(16 + body.count), to: &packet)
    append(type, to: &packet)
    append(UInt16(0), to: &packet)
    append(unique, to: &packet)
    return packet + body
  }

  /// Whether a SYNC is answered, `turn` being what makes the daemon go on. False where the
  /// connection has ended.
  func syncs(_ place: Place, _ turn: () -> Void) -> Bool {
    guard !isUnchecked else { return false }
    // A connection that was cut off takes none.
    guard send(packet(UInt16(HW_SYNC), []), [], place) else { return false }
    let asked = unique
    for _ in 0..<200 where isWaiting(for: asked) && !isOver {
      turn()
      drain()
    }
    precondition(isOver || !isWaiting(for: asked), "no answer to a SYNC")
    return !isOver
  }

  private func isWaiting(for unique: UInt64) -> Bool {
    requests.unanswered.contains { $0.unique == unique }
  }

  /// At the end: everything has been answered, and the tree is what the records say.
  func finish(_ place: Place, _ turn: () -> Void) {
    for _ in 0..<50 where !isOver && !requests.unanswered.isEmpty {
      turn()
      drain()
    }
    guard !isUnchecked else { return }
    precondition(
      isOver || requests.unanswered.isEmpty, "not answered: \(requests.unanswered)")
    guard tree != nil, syncs(place, turn), let difference = tree?.difference() else { return }
    preconditionFailure("the tree is another: \(difference)")
  }

  private func append(_ number: some FixedWidthInteger, to packet: inout [UInt8]) {
    withUnsafeBytes(of: number) { packet += $0 }
  }

  private func kinds(_ input: inout FuzzInput) -> [UInt8] {
    (0..<input.below(10)).map { _ in input.byte() }
  }

  /// False if it could not be sent.
  @discardableResult
  private func send(_ packet: [UInt8], _ kinds: [UInt8], _ place: Place) -> Bool {
    let opened = kinds.map { (kind: $0, number: place.open($0)) }.filter { $0.number >= 0 }
    let result = packet.withUnsafeBytes { bytes in
      hw_send_with_descriptors(
        socket, bytes.baseAddress ?? UnsafeRawPointer(bitPattern: 8)!, bytes.count,
        opened.map(\.number), UInt32(opened.count), Int32(MSG_DONTWAIT))
    }
    for (_, number) in opened { close(number) }
    guard result >= 0 else { return false }
    // An empty packet is a hang-up.
    if packet.isEmpty { isOver = true }
    requests.add(Requests.Sent(packet: packet, kinds: opened.map(\.kind)))
    return true
  }

  /// Reads all there is.
  func drain() {
    while true {
      let count = recv(socket, buffer.baseAddress, buffer.count, Int32(MSG_DONTWAIT))
      guard count > 0 else {
        isOver = isOver || count == 0 || errno != EAGAIN
        return
      }
      check(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
    }
  }

  private func check(_ packet: UnsafeRawBufferPointer) {
    guard !isUnchecked else { return }
    precondition(packet.count >= MemoryLayout<hw_header>.size, "a packet without a header")
    let header = packet.loadUnaligned(as: hw_header.self)
    precondition(Int(header.size) == packet.count && header.flags == 0, "a wrong header")
    precondition(!isCutOff, "a packet behind the last")
    if header.type & UInt16(HW_REPLY) != 0 { return checkReply(packet, header) }
    precondition(header.unique == 0, "an answer to nothing")
    guard let grant else { preconditionFailure("told before INIT") }
    switch UInt32(header.type) {
    case HW_EVENTS: checkRecords(packet, grant)
    case HW_LOST:
      let lost = whole(packet, hw_lost.self)
      precondition(lost.sequence == sequence && lost.reserved == 0, "LOST: a gap")
      precondition(!isLosing && (1...3).contains(lost.reason), "LOST twice, or for no reason")
      isLosing = true
    case HW_RESYNCED:
      let resynced = whole(packet, hw_resynced.self)
      precondition(resynced.sequence == sequence && isLosing, "RESYNCED without LOST")
      precondition(resynced.nodes_reported <= resynced.nodes_checked, "RESYNCED: more than there")
      precondition(!grant.isTree || resynced.nodes_checked == 0, "RESYNCED: nodes of a tree")
      isLosing = false
      tree?.rescan()
    case HW_DETACHED:
      let detached = whole(packet, hw_detached.self)
      precondition((1...3).contains(detached.reason) && detached.reserved == 0, "DETACHED")
      isCutOff = true
    default: preconditionFailure("a message that does not exist: \(header.type)")
    }
  }

  private func whole<Body: BitwiseCopyable>(_ packet: UnsafeRawBufferPointer, _: Body.Type) -> Body
  {
    precondition(packet.count == MemoryLayout<Body>.size, "a message of a wrong size")
    return packet.loadUnaligned(as: Body.self)
  }

  private func checkRecords(_ packet: UnsafeRawBufferPointer, _ grant: Grant) {
    let records = SentRecord.all(in: packet)
    grant.check(records, packet: packet.count)
    for record in records {
      sequence += 1
      precondition(record.sequence == sequence, "a gap in the sequence")
      tree?.apply(record)
    }
  }

  private func checkReply(_ packet: UnsafeRawBufferPointer, _ header: hw_header) {
    precondition(packet.count >= MemoryLayout<hw_reply>.size, "a reply that is too short")
    let reply = packet.loadUnaligned(as: hw_reply.self)
    let tail = packet[MemoryLayout<hw_reply>.size...]
    let (forgets, request) = requests.take(header)
    for forget in forgets {
      for index in 0..<forget.count { grant?.forget(forget.node(index, size: 16)) }
    }
    precondition(reply.error <= 0 && reply.error > -4096, "not a negative errno")
    guard reply.error == 0 else {
      let text = String(validating: tail, as: UTF8.self)
      precondition(text?.isEmpty == false && reply.detail == 0, "an error without a sentence")
      isCutOff = reply.error == -EPROTO
      return
    }
    switch UInt32(request.type) {
    case HW_INIT:
      precondition(grant == nil && reply.detail == 0, "INIT was granted twice")
      let granted = Grant(whole(packet, hw_init_reply.self), mode: request.load(48), uid: uid)
      grant = granted
      if granted.isTree { tree = model(granted, request) }
    case HW_REGISTER, HW_INTEREST:
      let statuses = checkStatuses(tail, reply, request)
      guard request.type == UInt16(HW_REGISTER) else { return }
      for (index, status) in statuses.enumerated() where status == 0 {
        grant?.register(request.node(index, size: 40))
      }
    case HW_SYNC:
      precondition(grant != nil && tail.isEmpty && reply.detail == 0, "SYNC's reply")
    case HW_STATUS:
      precondition(reply.detail == 0 && tail.first == 0x7b && tail.last == 0x7d, "not an object")
    default: preconditionFailure("\(request.type) was answered")
    }
  }

  private func checkStatuses(
    _ tail: Slice<UnsafeRawBufferPointer>, _ reply: hw_reply, _ request: Requests.Sent
  ) -> [Int32] {
    let count = request.count
    let bytes = UnsafeRawBufferPointer(rebasing: tail)
    precondition(reply.detail == count && bytes.count == (count * 4 + 7) & ~7, "statuses' count")
    precondition(bytes[(count * 4)...].allSatisfy { $0 == 0 }, "padding that is not zero")
    let statuses = (0..<count).map {
      bytes.loadUnaligned(fromByteOffset: $0 * 4, as: Int32.self)
    }
    precondition(statuses.allSatisfy { $0 <= 0 && $0 > -4096 }, "a status that is no errno")
    return statuses
  }

  /// A model of the share, if the session looks at that and is told all it takes.
  private func model(_ grant: Grant, _ request: Requests.Sent) -> TreeModel? {
    let isShare = request.kinds.isEmpty || request.kinds[0] & 15 < 2
    guard isShare, grant.options & UInt32(HW_SUPPRESS_ECHO) == 0,
      grant.events.isSuperset(of: [.create, .delete, .rename])
    else { return nil }
    return TreeModel(Place.share)
  }
}
