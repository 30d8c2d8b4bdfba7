import Glibc
import HostWatch

/// Files and directories that clients have open, by the number the kernel has
/// for them. Numbers are not used again, so a late request meets nothing.
final class OpenFiles: Sendable {
  private struct State: Sendable {
    var next: UInt64 = 1
    var files: [UInt64: Descriptor] = [:]
    var directories: [UInt64: DirectoryStream] = [:]
  }
  private let state = Locked(State())

  func add(_ file: Descriptor) -> UInt64 {
    state.withLock { state in
      defer { state.next += 1 }
      state.files[state.next] = file
      return state.next
    }
  }

  func add(_ directory: DirectoryStream) -> UInt64 {
    state.withLock { state in
      defer { state.next += 1 }
      state.directories[state.next] = directory
      return state.next
    }
  }

  func file(_ number: UInt64) -> Descriptor? { state.withLock { $0.files[number] } }
  func directory(_ number: UInt64) -> DirectoryStream? {
    state.withLock { $0.directories[number] }
  }

  func requireFile(_ number: UInt64) throws(Failure) -> Descriptor {
    guard let file = file(number) else { throw Failure(EBADF) }
    return file
  }

  /// Closed once nobody uses it.
  func remove(_ number: UInt64) {
    let removed = state.withLock {
      ($0.files.removeValue(forKey: number), $0.directories.removeValue(forKey: number))
    }
    withExtendedLifetime(removed) {}
  }
}
