import CFanotify
import Glibc
import HostWatch
import Synchronization

/// SIGINT and SIGTERM while a stream is printed: they end the connection, so
/// that what is being printed is printed whole.
enum Interrupt {
  private static let flag = Atomic<Bool>(false)
  private static let connection = Mutex<HostWatchClient.Connection?>(nil)

  static var happened: Bool { flag.load(ordering: .sequentiallyConsistent) }

  /// From here on a signal makes `connection.receive` return nil. The signals
  /// are taken by a thread that waits for them, where more is allowed than in
  /// a handler.
  static func shutsDown(_ connection: HostWatchClient.Connection) {
    self.connection.withLock { $0 = connection }
    var signals = sigset_t()
    _ = unsafe sigemptyset(&signals)
    _ = unsafe sigaddset(&signals, SIGINT)
    _ = unsafe sigaddset(&signals, SIGTERM)
    _ = unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
    var thread = pthread_t()
    let result = unsafe pthread_create(
      &thread, nil,
      { _ in
        Interrupt.wait()
        return nil
      }, nil)
    // Without the thread the signals do what they do by default.
    if result != 0 { _ = unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil) }
  }

  private static func wait() {
    var signals = sigset_t()
    _ = unsafe sigemptyset(&signals)
    _ = unsafe sigaddset(&signals, SIGINT)
    _ = unsafe sigaddset(&signals, SIGTERM)
    var signal: Int32 = 0
    _ = unsafe sigwait(&signals, &signal)
    flag.store(true, ordering: .sequentiallyConsistent)
    connection.withLock { $0 }?.shutDown()
    // Whoever interrupts twice does not want to wait for a full pipe.
    _ = unsafe sigwait(&signals, &signal)
    _exit(128 + signal)
  }
}
