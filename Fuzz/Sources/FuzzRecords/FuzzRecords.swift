import CFanotify

@testable import HostWatch

/// What the parser makes of bytes that read(2) on a fanotify group might give:
/// it takes them or refuses them; each event is one record, and every place it names lies in
/// that record. libFuzzer gives each input memory of its own that is exactly as long, so
/// that a read beyond it is seen.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzRecords(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  let bytes = UnsafeRawBufferPointer(start: data, count: size)
  var events: [KernelEvent] = []
  var isRefused = false
  do throws(RecordError) {
    try RecordParser.parse(bytes.bytes, into: &events)
  } catch {
    isRefused = true
    precondition((0...size).contains(error.offset), "an offset beyond the bytes")
  }
  // What stood before a record that was refused has been parsed.
  var start = 0
  for event in events {
    let end = start + Int(number(bytes, start, UInt32.self))
    precondition(end > start && end <= size, "an event without a record")
    check(event, in: start..<end, of: bytes)
    start = end
  }
  precondition(isRefused || start == size, "a record without an event")
  return 0
}

private func check(
  _ event: KernelEvent, in record: Range<Int>, of bytes: UnsafeRawBufferPointer
) {
  precondition(event.mask == number(bytes, record.lowerBound + 8, UInt64.self), "another mask")
  precondition(event.pid == number(bytes, record.lowerBound + 20, Int32.self), "another process")
  let view = SegmentView(bytes.baseAddress!)
  let information = record.lowerBound + Int(hw_metadata_size)
  for offset in [event.object, event.directory, event.newDirectory] where offset != 0 {
    let at = Int(offset)
    precondition(at >= information && at + 8 <= record.upperBound, "a handle beyond its record")
    let length = Int(number(bytes, at, UInt32.self))
    precondition(length <= Int(hw_handle_max), "a handle that is too long")
    precondition(at + 8 + length <= record.upperBound, "a handle's end beyond its record")
    guard let handle = view.handle(offset) else { preconditionFailure("a handle is lost") }
    // Reads the whole of it.
    blackHole ^= handle.hash(seed: 7)
  }
  for (offset, length, directory) in [
    (event.name, event.nameSize, event.directory),
    (event.newName, event.newNameSize, event.newDirectory),
  ] {
    guard offset != 0 else {
      precondition(length == 0, "the length of a name that is not there")
      continue
    }
    precondition(directory != 0, "a name without its directory")
    let end = Int(offset) + Int(length)
    precondition(Int(offset) >= information && end < record.upperBound, "a name beyond its record")
    precondition(length <= 255, "a name that is too long")
    precondition(bytes[end] == 0, "a name without its end")
    let name = view.name(offset, length).bytes
    precondition(!name.contains(0), "a name with its end in the midst")
  }
}

private func number<Number: FixedWidthInteger & BitwiseCopyable>(
  _ bytes: UnsafeRawBufferPointer, _ offset: Int, _: Number.Type
) -> Number {
  bytes.loadUnaligned(fromByteOffset: offset, as: Number.self)
}

nonisolated(unsafe) private var blackHole: UInt64 = 0
