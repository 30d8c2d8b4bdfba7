import CFanotify
import CFuzz
import Glibc

/// A tmpfs with a share and something beside it, and one descriptor of each
/// kind that a client might pass.
final class Place {
  static let root = "/tmp/hostwatch-fuzz-\(getpid())"
  static let share = root + "/share"
  static let names = ["a", "b", "c", "d", "é\u{301}", String(repeating: "x", count: 255)]
  let socketPath = root + "/socket"

  init() {
    // Mounts go with the process.
    let result = fuzz_private_mounts()
    guard result == 0 else { fatalError("FuzzSession needs root: unshare: errno \(-result)") }
    check(mkdir(Place.root, 0o755), "mkdir \(Place.root)")
    check(mount("none", Place.root, "tmpfs", 0, nil), "mount")
    atexit {
      umount2(Place.root, Int32(MNT_DETACH))
      rmdir(Place.root)
    }
    check(mkdir(Place.share, 0o755), "mkdir")
    check(mkdir(Place.root + "/beside", 0o755), "mkdir")
  }

  private func check(_ result: Int32, _ what: String) {
    if result != 0 { fatalError("\(what): errno \(errno)") }
  }

  /// A new descriptor of kind `kind`, or -1 when there is no such thing now.
  func open(_ kind: UInt8) -> Int32 {
    let name = Place.names[Int(kind >> 4) % Place.names.count]
    switch kind & 15 {
    case 0: return Glibc.open(Place.share, O_RDONLY | O_DIRECTORY)
    case 1: return Glibc.open(Place.share, O_PATH)
    case 2: return Glibc.open(Place.share + "/" + name, O_PATH | O_NOFOLLOW)
    case 3: return Glibc.open(Place.share + "/" + name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW)
    case 4: return Glibc.open(Place.share + "/" + name, O_WRONLY | O_NONBLOCK | O_NOFOLLOW)
    case 5: return Glibc.open(Place.root + "/beside", O_RDONLY | O_DIRECTORY)
    case 6: return Glibc.open("/proc/self", O_RDONLY | O_DIRECTORY)
    case 7: return Glibc.open("/dev/null", O_RDWR)
    case 8: return socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    case 9: return fuzz_memfd()
    case 10: return fuzz_epoll()
    case 11: return Glibc.open("/", O_RDONLY | O_DIRECTORY)
    case 12: return Glibc.open(Place.root, O_RDONLY | O_DIRECTORY)
    case 13: return fuzz_eventfd()
    case 14: return hw_pidfd_open(getpid())
    default: return Glibc.open("/etc", O_RDONLY | O_DIRECTORY)
    }
  }

  /// One change on the host, of names in the share or in directories of it.
  func change(_ what: UInt8, _ which: UInt8) {
    let (deep, deeper) = (what / 10 & 1 != 0, what / 10 & 2 != 0)
    let first = path(deep ? "/a/" : "/", which & 15)
    let second = path(deeper ? "/b/" : "/", which >> 4)
    switch what % 10 {
    case 0: _ = close(Glibc.open(first, O_CREAT | O_WRONLY | O_NONBLOCK, 0o644))
    case 1: _ = unlink(first)
    case 2: _ = mkdir(first, 0o755)
    case 3: _ = rmdir(first)
    case 4: _ = rename(first, second)
    case 5: _ = fuzz_exchange(first, second)
    case 6: _ = link(first, second)
    case 7: _ = rename(first, Place.root + "/beside/x")
    case 8: _ = rename(Place.root + "/beside/x", second)
    default: _ = chmod(first, mode_t(0o600 | Int(which & 7)))
    }
  }

  private func path(_ folder: String, _ which: UInt8) -> String {
    Place.share + folder + Place.names[Int(which) % Place.names.count]
  }

  func empty() {
    for name in Place.names { removeEntry(Place.share + "/" + name) }
    removeEntry(Place.root + "/beside/x")
  }

  private func removeEntry(_ path: String) {
    if unlink(path) == 0 || errno == ENOENT { return }
    for name in Place.names { removeEntry(path + "/" + name) }
    rmdir(path)
  }
}
