import Glibc

@testable import HostWatch

/// A filesystem that answers anything, and the same for the same input: nothing, an object
/// that records were about, or that it cannot be asked.
final class MadeNamespace: Namespace {
  /// Which answers are given from here on.
  var salt: UInt8 = 0
  private var objects: [FileHandle] = []
  private var known: Set<FileHandle> = []

  func add(_ handle: FileHandle) {
    if known.insert(handle).inserted { objects.append(handle) }
  }

  func lookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError)
    -> (handle: FileHandle, isDirectory: Bool)?
  {
    let number = number(directory, name)
    if salt & 0x80 != 0, number % 8 == 0 { throw SystemError("lookup", EIO) }
    guard let object = object(number) else { return nil }
    return (object, number & 0x100 == 0)
  }

  func cachedLookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError) -> FileHandle? {
    try lookup(name, in: directory)?.handle
  }

  func location(ofDirectory directory: FileHandle) -> (parent: FileHandle, name: [UInt8])? {
    let number = number(directory, [])
    return object(number).map { ($0, Array("\(number % 4)".utf8)) }
  }

  private func object(_ number: UInt64) -> FileHandle? {
    let index = Int(number >> 32) % (objects.count + objects.count / 2 + 1)
    return index < objects.count ? objects[index] : nil
  }

  private func number(_ handle: FileHandle, _ name: [UInt8]) -> UInt64 {
    let seed = handle.withView { $0.hash(seed: UInt64(salt >> 4)) }
    return NameView.with(name) { $0.hash(seed: seed) }
  }
}
