import CFanotify
import CHostWatch
import Glibc

/// What waits to be sent to one client: whole packets, in order, in one
/// bounded piece of memory.
///
/// In: records, put together into EVENTS packets while they fit, and finished
/// packets. Out: pieces for sendmmsg(2). It holds that a packet lies in one
/// piece, that packets leave in the order they came, and that records never
/// take more than `limit` bytes nor, beyond what each session is guaranteed, more
/// than the user's share; replies have
/// room of their own behind the limit, and who lets them pile up is not
/// listened to. A record that does not fit is refused,
/// and nothing of it is kept.
///
/// It is plain memory without references, so that it costs no reference
/// counting on the way of an event; `release` must be called at the end.
@safe struct PacketQueue: BitwiseCopyable {
  /// So much each session may have queued whatever the user's others have.
  static let guaranteed = 65536
  /// Room for replies beyond the limit.
  static let replyReserve = Int(HW_PACKET_MAX) + 65536
  private static let noPacket = -1

  private var base: UnsafeMutableRawPointer?
  private var capacity: Int
  private var head = 0
  private var tail = 0
  /// Where the data ends before it goes on at 0; 0 while it does not wrap.
  private var wrap = 0
  /// Where the EVENTS packet starts that records are still added to.
  private var open = PacketQueue.noPacket
  private var highest = 0
  /// Bytes that wait.
  private(set) var queued = 0
  let limit: Int
  let maxPacket: Int
  /// What all sessions of the user have queued; shared by them.
  private let userQueued: UnsafeMutablePointer<Int>
  private let userLimit: Int

  @unsafe init(limit: Int, maxPacket: Int, userQueued: UnsafeMutablePointer<Int>, userLimit: Int) {
    self.limit = limit
    self.maxPacket = maxPacket
    unsafe self.userQueued = userQueued
    self.userLimit = userLimit
    capacity = limit + PacketQueue.replyReserve
    unsafe base = nil
  }

  var isEmpty: Bool { queued == 0 }

  /// Whether a reply of any size fits.
  ///
  /// It must lie in one piece, and the user's share counts unless nothing waits.
  var hasRoomForReply: Bool {
    if queued == 0 { return true }
    let size = Int(HW_PACKET_MAX) + 8
    let fits = fitsBehind(size) || (wrap == 0 && size <= head)
    return unsafe fits && userQueued.pointee + size <= userLimit
  }

  /// Memory for a record of `size` bytes (a multiple of 8) in an EVENTS
  /// packet, or nil when the queue is full.
  @inline(__always)
  @unsafe mutating func reserveRecord(_ size: Int) -> UnsafeMutableRawPointer? {
    guard isWithinLimits(size) else { return nil }
    if open != PacketQueue.noPacket, tail - open + size <= maxPacket, fitsBehind(size),
      let base = unsafe base
    {
      let header = unsafe (base + open).assumingMemoryBound(to: hw_events.self)
      unsafe header.pointee.header.size += UInt32(size)
      unsafe header.pointee.count += 1
      return unsafe advance(size)
    }
    return unsafe openPacket(size)
  }

  @inline(__always)
  private func isWithinLimits(_ size: Int) -> Bool {
    let own = queued + size + MemoryLayout<hw_events>.size
    return unsafe own <= limit
      && (own <= PacketQueue.guaranteed || userQueued.pointee + size <= userLimit)
  }

  /// Whether half of what it may hold is free: of its limit, or of what it is guaranteed
  /// where the user's share has no such room.
  var isHalfFree: Bool {
    unsafe queued * 2 <= limit
      && (queued * 2 <= PacketQueue.guaranteed || userQueued.pointee + queued <= userLimit)
  }

  /// Whether `reserveRecord` has room for that.
  func hasRoom(forRecordOf size: Int) -> Bool {
    let whole = size + MemoryLayout<hw_events>.size
    return isWithinLimits(size) && (fitsBehind(whole) || (wrap == 0 && whole <= head))
  }

  @unsafe private mutating func openPacket(_ size: Int) -> UnsafeMutableRawPointer? {
    let whole = MemoryLayout<hw_events>.size + size
    guard let start = unsafe allocate(whole) else { return nil }
    guard let base = unsafe base else { return nil }
    open = unsafe start - base
    var header = hw_events()
    header.header.size = UInt32(whole)
    header.header.type = UInt16(HW_EVENTS)
    header.count = 1
    unsafe start.storeBytes(of: header, as: hw_events.self)
    return unsafe start + MemoryLayout<hw_events>.size
  }

  /// Adds a finished packet behind everything else; false when it does not fit.
  mutating func append(_ packet: UnsafeRawBufferPointer) -> Bool {
    open = PacketQueue.noPacket
    let size = (packet.count + 7) & ~7
    guard let start = unsafe allocate(size), let source = packet.baseAddress else { return false }
    unsafe start.copyMemory(from: source, byteCount: packet.count)
    return true
  }

  /// Points `pieces` at the packets at the front and closes the last one.
  mutating func gather(_ pieces: UnsafeMutableBufferPointer<iovec>) -> Int {
    open = PacketQueue.noPacket
    var count = 0
    var position = head
    var left = queued
    while left > 0, count < pieces.count, let base = unsafe base {
      if wrap != 0 && position == wrap { position = 0 }
      let size = Int(unsafe (base + position).load(as: UInt32.self))
      unsafe pieces[count] = iovec(iov_base: base + position, iov_len: size)
      count += 1
      position += (size + 7) & ~7
      left -= (size + 7) & ~7
    }
    return count
  }

  /// Takes the first `count` packets out: they have been sent.
  mutating func drop(_ count: Int) {
    guard let base = unsafe base else { return }
    for _ in 0..<count {
      if wrap != 0 && head == wrap { (head, wrap) = (0, 0) }
      let size = (Int(unsafe (base + head).load(as: UInt32.self)) + 7) & ~7
      head += size
      queued -= size
      unsafe userQueued.pointee -= size
    }
    if queued == 0 { reset() }
  }

  /// What waits, in order, each packet padded to a multiple of 8.
  func contents() -> [UInt8] {
    guard queued > 0, let base = unsafe base else { return [] }
    // From the head to the tail, or to the wrap and from 0 to the tail.
    let end = wrap == 0 ? tail : wrap
    var bytes = unsafe [UInt8](UnsafeRawBufferPointer(start: base + head, count: end - head))
    if wrap != 0 {
      unsafe bytes.append(contentsOf: UnsafeRawBufferPointer(start: base, count: tail))
    }
    return bytes
  }

  /// Gives the memory back. What waits is dropped.
  mutating func release() {
    unsafe userQueued.pointee -= queued
    if let base = unsafe base { _ = unsafe munmap(base, capacity) }
    unsafe base = nil
    (head, tail, wrap, open, queued) = (0, 0, 0, PacketQueue.noPacket, 0)
  }

  private mutating func reset() {
    (head, tail, wrap, open) = (0, 0, 0, PacketQueue.noPacket)
    // A burst's pages go back to the system; a normal day's stay.
    if highest > 1 << 20, let base = unsafe base {
      _ = unsafe madvise(base, capacity, MADV_DONTNEED)
      highest = 0
    }
  }

  private func fitsBehind(_ size: Int) -> Bool { tail + size <= (wrap == 0 ? capacity : head) }

  @unsafe private mutating func allocate(_ size: Int) -> UnsafeMutableRawPointer? {
    if unsafe base == nil && !mapMemory() { return nil }
    if !fitsBehind(size) {
      guard wrap == 0, size <= head else { return nil }
      (wrap, tail) = (tail, 0)
    }
    return unsafe advance(size)
  }

  @unsafe private mutating func advance(_ size: Int) -> UnsafeMutableRawPointer? {
    guard let base = unsafe base else { return nil }
    let start = unsafe base + tail
    tail += size
    queued += size
    unsafe userQueued.pointee += size
    highest = max(highest, tail)
    return unsafe start
  }

  private mutating func mapMemory() -> Bool {
    let memory = unsafe mmap(
      nil, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    // MAP_FAILED is (void *)-1, which Swift cannot import.
    guard let memory = unsafe memory, Int(bitPattern: memory) != -1 else { return false }
    unsafe base = memory
    return true
  }
}
