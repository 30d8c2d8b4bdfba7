@testable import HostWatch

/// What the parser makes of bytes that read(2) on a fanotify group might give:
/// it takes them or refuses them, and every place it names lies in them.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzRecords(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  let segment = EventSegment()
  segment.fill(
    with: Array(UnsafeBufferPointer(start: data, count: min(size, EventSegment.capacity))))
  var events: [KernelEvent] = []
  try? segment.parse(into: &events, segment: 0)
  for event in events {
    for offset in [event.object, event.directory, event.newDirectory] where offset != 0 {
      precondition(Int(offset) + 8 <= segment.count, "a handle beyond the buffer")
      guard let handle = segment.view.handle(offset) else { preconditionFailure("a handle is lost") }
      // Reads the whole of it.
      blackHole ^= handle.hash(seed: 7)
    }
    for (offset, length) in [(event.name, event.nameSize), (event.newName, event.newNameSize)] {
      precondition(Int(offset) + Int(length) <= segment.count, "a name beyond the buffer")
      for byte in segment.view.name(offset, length).bytes {
        precondition(byte != 0, "a name with its end in the midst")
      }
    }
  }
  return 0
}

nonisolated(unsafe) private var blackHole: UInt64 = 0
