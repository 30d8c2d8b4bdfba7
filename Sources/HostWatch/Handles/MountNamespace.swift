import Glibc

/// The filesystem behind a mount, asked by handles and names.
final class MountNamespace: Namespace {
  private let mount: Int32

  /// - Parameter mount: a descriptor that outlives this object.
  init(_ mount: Int32) { self.mount = mount }

  func lookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError)
    -> (handle: FileHandle, isDirectory: Bool)?
  {
    do throws(SystemError) {
      let parent = try Syscall.open(directory, onMount: mount)
      let entry = try Syscall.openEntry(of: parent, name: name)
      let handle = try Syscall.handle(of: entry.rawValue)
      return (handle, try Syscall.status(of: entry.rawValue).isDirectory)
    } catch {
      if Self.isGone(error) { return nil }
      throw error
    }
  }

  func cachedLookup(_ name: [UInt8], in directory: FileHandle) throws(SystemError) -> FileHandle? {
    do throws(SystemError) {
      let parent = try Syscall.open(directory, onMount: mount)
      guard let entry = try Syscall.openCachedEntry(of: parent, name: name) else { return nil }
      return try Syscall.handle(of: entry.rawValue)
    } catch {
      if Self.isGone(error) { return nil }
      throw error
    }
  }

  /// The name is not there, or its directory is gone with all its names.
  private static func isGone(_ error: SystemError) -> Bool {
    [ENOENT, ESTALE, ENOTDIR].contains(error.code)
  }

  func location(ofDirectory directory: FileHandle) throws(SystemError)
    -> (parent: FileHandle, name: [UInt8])?
  {
    do throws(SystemError) {
      let open = try Syscall.open(directory, onMount: mount)
      guard try Syscall.status(of: open.rawValue).links > 0 else { return nil }
      let parent = try Syscall.parentHandle(of: open)
      let path = try Syscall.path(of: open)
      guard let slash = path.lastIndex(of: 0x2f), slash + 1 < path.count else { return nil }
      // It may have been moved or removed between these calls.
      let name = Array(path[(slash + 1)...])
      guard let found = try lookup(name, in: parent), found.handle == directory else { return nil }
      return (parent, name)
    } catch {
      if Self.isGone(error) { return nil }
      throw error
    }
  }
}
