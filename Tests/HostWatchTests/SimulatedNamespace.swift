import CFanotify
import TestSupport

@testable import HostWatch

/// The simulated filesystem as the reconciler asks for it.
final class SimulatedNamespace: Namespace {
  let simulator: KernelSimulator
  private(set) var lookups = 0

  init(_ simulator: KernelSimulator) { self.simulator = simulator }

  func lookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError)
    -> (handle: FileHandle, isDirectory: Bool)?
  {
    lookups += 1
    let number = directory.withView { KernelSimulator.number($0) }
    let entry = KernelSimulator.Entry(
      directory: number, name: String(decoding: name, as: UTF8.self))
    guard let found = simulator.entries[entry], let inode = simulator.inodes[found] else {
      return nil
    }
    return (KernelSimulator.handle(found), inode.isDirectory)
  }

  func cachedLookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError) -> FileHandle? {
    try lookup(name, in: directory)?.handle
  }

  func location(ofDirectory directory: FileHandle) -> (parent: FileHandle, name: [UInt8])? {
    let number = directory.withView { KernelSimulator.number($0) }
    guard let place = simulator.place(of: number) else { return nil }
    return (KernelSimulator.handle(place.directory), Array(place.name.utf8))
  }
}

/// Its objects' handles, as an ext4 would have them.
extension KernelSimulator {
  static func handle(_ number: UInt32) -> FileHandle {
    var raw = hw_file_handle()
    raw.bytes = 8
    raw.type = 1
    unsafe withUnsafeMutableBytes(of: &raw.data) {
      unsafe $0.storeBytes(of: number, as: UInt32.self)
      unsafe $0.storeBytes(of: number &* 7, toByteOffset: 4, as: UInt32.self)
    }
    return FileHandle(raw)
  }

  static func number(_ handle: HandleView) -> UInt32 { handle.load(0, as: UInt32.self) }
}
