import CFanotify
import Glibc

/// One buffer that kernel records are read into. It stays as it is while any
/// event in it is looked at.
@safe final class EventSegment {
  /// Larger than 64 KiB, so that no event is ever too large for it, and so
  /// large that a storm's millisecond fits.
  static let capacity = 256 * 1024
  /// No record is longer than this: metadata and three information records
  /// with a handle and a name each.
  static let maximalRecord = 24 + 3 * (20 + 128 + 256 + 4)

  private let base: UnsafeMutableRawPointer
  private(set) var count = 0

  init() {
    unsafe base = UnsafeMutableRawPointer.allocate(
      byteCount: EventSegment.capacity, alignment: 16)
  }

  deinit { unsafe base.deallocate() }

  /// Reads once; how many bytes, 0 when the queue is empty.
  func fill(from group: Int32) throws(SystemError) -> Int {
    while true {
      let got = unsafe read(group, base, EventSegment.capacity)
      if got >= 0 {
        count = got
        return got
      }
      if errno == EINTR { continue }
      if errno == EAGAIN {
        count = 0
        return 0
      }
      throw SystemError("read(fanotify)", errno)
    }
  }

  /// Takes bytes over instead of reading them, for recorded streams.
  func fill(with bytes: [UInt8]) {
    precondition(bytes.count <= EventSegment.capacity)
    unsafe bytes.withUnsafeBytes { source in
      if let start = source.baseAddress {
        unsafe base.copyMemory(from: start, byteCount: bytes.count)
      }
    }
    count = bytes.count
  }

  /// The kernel had no further event when the buffer was filled.
  var reachedEnd: Bool { EventSegment.capacity - count >= EventSegment.maximalRecord }

  /// Appends the events in the buffer to `events`.
  func parse(into events: inout [KernelEvent], segment: UInt32) throws(RecordError) {
    let first = events.count
    // `count` bytes have been written, and the buffer outlives the span.
    let bytes = unsafe RawSpan(_unsafeStart: base, byteCount: count)
    try RecordParser.parse(bytes, into: &events)
    for index in first..<events.count { events[index].segment = segment }
  }

  /// What is in the buffer, for as long as the segment lives.
  var view: SegmentView { unsafe SegmentView(base) }
}

/// A segment's bytes without a reference to it, so that looking at an event
/// counts none. Whoever keeps one keeps the segment.
@safe struct SegmentView {
  private let base: UnsafeRawPointer

  @unsafe init(_ base: UnsafeRawPointer) { unsafe self.base = base }

  /// The handle at an offset that the parser gave; nil for 0.
  @inline(__always)
  func handle(_ offset: UInt32) -> HandleView? {
    // The parser has checked that the whole handle lies in the buffer.
    offset == 0 ? nil : unsafe HandleView(base + Int(offset))
  }

  @inline(__always)
  func name(_ offset: UInt32, _ size: UInt16) -> NameView {
    unsafe NameView(base + Int(offset), count: Int(size))
  }
}
