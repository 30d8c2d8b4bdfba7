import CFanotify
import Glibc
import Testing

@testable import HostWatch
@testable import hostwatchd

// Serialized: helpers are started by one thread at a time.
@Suite(.serialized) struct DescriptorCloserTests {
  /// Helpers that outlive their closer take no place for ever: a process may have many
  /// closers, one after the other.
  @Test func helpersOfCloserThatIsGoneAreForgotten() throws {
    let loop = try SystemdLoop()
    for _ in 0..<600 {
      var ends: [Int32] = [-1, -1]
      // The kernel writes two numbers.
      try #require(unsafe hw_socket_pair(&ends) == 0)
      do {
        let closer = try DescriptorCloser(loop: loop)
        closer.closeLater([ends[1]])
      }
      var byte: UInt8 = 0
      // It ends where nobody has the other end any more.
      var ready = pollfd(fd: ends[0], events: Int16(POLLIN), revents: 0)
      try #require(unsafe poll(&ready, 1, 10_000) == 1)
      #expect(unsafe read(ends[0], &byte, 1) == 0)
      close(ends[0])
    }
  }

  /// More of the daemon's own than one helper takes, as when very many roots are unmounted.
  @Test func manyAreClosedByOneHelperAfterTheOther() throws {
    let loop = try SystemdLoop()
    let closer = try DescriptorCloser(loop: loop)
    var ends: [Int32] = [-1, -1]
    // The kernel writes two numbers.
    let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    try #require(unsafe socketpair(AF_UNIX, kind, 0, &ends) == 0)
    let count = Int(hw_close_elsewhere_max) * 5 / 2
    var limit = rlimit()
    _ = unsafe getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    limit.rlim_cur = limit.rlim_max
    _ = unsafe setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
    let copies = (0..<count).map { _ in fcntl(ends[1], F_DUPFD_CLOEXEC, 0) }
    try #require(!copies.contains(-1))
    close(ends[1])
    closer.closeLater(copies)
    // The other end hangs up with the last of them.
    let source = try loop.watch(ends[0], for: .readable, priority: .normal) { _ in loop.exit(3) }
    let timer = try loop.timer(priority: .idle) { loop.exit(4) }
    timer.arm(afterMicroseconds: 20_000_000)
    #expect(try loop.run() == 3)
    source.cancel()
    timer.cancel()
    close(ends[0])
  }
}
