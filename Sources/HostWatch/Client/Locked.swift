import Glibc

/// A value that one thread at a time has. It is a pthread_mutex_t and not
/// Synchronization's Mutex, which ThreadSanitizer does not see on Linux: it
/// takes every access under one for a race.
@safe package final class Locked<Value: Sendable>: Sendable {
  // Given back in deinit; a mutex needs an address of its own.
  private nonisolated(unsafe) let mutex: UnsafeMutablePointer<pthread_mutex_t>
  // Read and written with the mutex held, and nowhere else.
  private nonisolated(unsafe) var value: Value

  package init(_ value: Value) {
    unsafe self.value = value
    unsafe mutex = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    let result = unsafe pthread_mutex_init(mutex, nil)
    precondition(result == 0, "a mutex without attributes needs nothing that can be short")
  }

  deinit {
    _ = unsafe pthread_mutex_destroy(mutex)
    unsafe mutex.deallocate()
  }

  /// Calls `body` with the value; it must not call `withLock` again.
  package func withLock<Result, Failure: Error>(_ body: (inout Value) throws(Failure) -> Result)
    throws(Failure) -> Result
  {
    _ = unsafe pthread_mutex_lock(mutex)
    defer { _ = unsafe pthread_mutex_unlock(mutex) }
    return try unsafe body(&value)
  }
}
