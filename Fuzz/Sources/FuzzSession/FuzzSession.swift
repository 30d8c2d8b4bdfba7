import CFanotify
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// Whole sessions: requests in any order, descriptors of any kind, changes of
/// the files, peers that come and go, configurations that change. What the
/// daemon sends is well formed and without gaps; every request is answered once,
/// in order; a session hears of what it has registered alone; a TREE session's records
/// end in the tree that is there; nothing is left of anybody, and it does not trap.
///
/// Each byte of an input is a step of `Scene.step`. A scratch tmpfs is mounted
/// in a mount namespace of the fuzzer's own. The daemon serves one input after
/// the other: the end of a fanotify group takes the kernel 20 ms.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzSession(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  var input = FuzzInput(data, size)
  let descriptors = scene.descriptors
  for _ in 0..<400 where !input.isAtEnd { scene.step(&input) }
  scene.finish()
  var left = openDescriptors()
  // A helper process may still be closing some.
  for _ in 0..<2000 where left != descriptors {
    usleep(1000)
    scene.settle()
    left = openDescriptors()
  }
  precondition(left == descriptors, "open were \(descriptors), now \(left)")
  return 0
}

nonisolated(unsafe) private let scene = Scene(Place())

/// What is open. Pipes are the fuzzer's, to its symbolizer.
func openDescriptors() -> [String] {
  guard let folder = opendir("/proc/self/fd") else { fatalError("opendir: errno \(errno)") }
  let own = "\(dirfd(folder))"
  defer { closedir(folder) }
  var names: [String] = []
  while let entry = readdir(folder) {
    let number = withUnsafePointer(to: &entry.pointee.d_name) {
      $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
    }
    guard number != own, let name = target("/proc/self/fd/" + number), !name.hasPrefix("pipe:")
    else { continue }
    names.append(name)
  }
  return names.sorted()
}

private func target(_ link: String) -> String? {
  var bytes = [UInt8](repeating: 0, count: 256)
  let count = bytes.withUnsafeMutableBytes { readlink(link, $0.baseAddress!, $0.count) }
  return count > 0 ? String(decoding: bytes[..<count], as: UTF8.self) : nil
}
