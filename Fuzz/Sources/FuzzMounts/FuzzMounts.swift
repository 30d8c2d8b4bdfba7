import FuzzSupport

@testable import HostWatch

/// Mount tables, whose mount points and sources users of fusermount choose: whatever the text
/// is, it is read to its end. Of mounts that the input makes, mountinfo's text is taken apart
/// into the same mounts, and a path is hidden just when it leads elsewhere in the two tables.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzMounts(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  var input = FuzzInput(data, size)
  if input.byte() & 1 == 0 {
    checkAnything(Array(UnsafeBufferPointer(start: data, count: size)))
    return 0
  }
  var own = Mounts(first: input.byte())
  var host = own
  for _ in 0..<12 where !input.isAtEnd {
    let what = input.byte()
    let mount = Mounts.Made(&input)
    if what & 1 == 0 { own.add(mount) }
    if what & 2 == 0 { host.add(mount) }
  }
  let text = own.text
  precondition(MountTable.parse(text) == own.entries, "the table says something else")
  for path in (own.entries.suffix(2) + host.entries.suffix(2)).map(\.mountPoint) {
    // A share's path is text.
    guard let path = String(validating: path + Array("/a".utf8), as: UTF8.self) else { continue }
    let hidden = HostView.hidden(path, own: text, host: host.text)
    let (here, there) = (own.place(of: path), host.place(of: path))
    precondition((hidden == nil) == (here == there), "\(path): \(here) and \(there)")
  }
  return 0
}

private func checkAnything(_ bytes: [UInt8]) {
  let halves = bytes.split(separator: 0, maxSplits: 1).map(Array.init)
  guard let own = halves.first else { return }
  let entries = MountTable.parse(own)
  precondition(entries.count <= own.split(separator: 0x0a).count, "more mounts than lines")
  for path in entries.suffix(2).map(\.mountPoint) + [Array("/a/b".utf8)] {
    guard let path = String(validating: path, as: UTF8.self) else { continue }
    _ = HostView.hidden(path, own: own, host: halves.last ?? own)
    precondition(HostView.hidden(path, own: own, host: own) == nil, "hidden by nothing")
  }
}
