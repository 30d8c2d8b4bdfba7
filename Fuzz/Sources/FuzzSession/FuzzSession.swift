import CFanotify
import CHostWatch
import FuzzSupport
import Glibc

@testable import HostWatch

/// Whole sessions: requests in any order, descriptors of any kind, changes of
/// the files, peers that come and go, configurations that change. What the
/// daemon sends is well formed and without gaps, nothing is left of anybody,
/// and it does not trap.
///
/// Each byte of an input is a step of `Scene.step`. A scratch tmpfs is mounted
/// in a mount namespace of the fuzzer's own.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzSession(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  var input = FuzzInput(data, size)
  let descriptors = openDescriptors()
  do {
    let scene = Scene(place)
    for _ in 0..<400 where !input.isAtEnd { scene.step(&input) }
    scene.finish()
  }
  place.empty()
  precondition(openDescriptors() == descriptors, "a descriptor was left open")
  return 0
}

nonisolated(unsafe) private let place = Place()

func openDescriptors() -> Int {
  guard let directory = opendir("/proc/self/fd") else { fatalError("no /proc") }
  defer { closedir(directory) }
  var count = 0
  while readdir(directory) != nil { count += 1 }
  return count
}
