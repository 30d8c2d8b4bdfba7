import CHostWatchFS
import HostWatch

/// Runs `body` on a new thread that takes no signals; `name`, of at most 15 bytes, is
/// what ps(1) shows.
func startThread(named name: String, _ body: @escaping @Sendable () -> Void) throws(Failure) {
  do throws(SystemError) {
    try BackgroundThread.start {
      _ = unsafe name.withCString { unsafe hwfs_name_thread($0) }
      body()
    }
  } catch {
    throw Failure(error.code)
  }
}
