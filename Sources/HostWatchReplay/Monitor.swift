import Glibc

/// A value that one thread at a time has, and that threads wait for to change.
@safe final class Monitor<Value: Sendable>: Sendable {
  // Given back in deinit; both need an address of their own.
  private nonisolated(unsafe) let mutex: UnsafeMutablePointer<pthread_mutex_t>
  private nonisolated(unsafe) let condition: UnsafeMutablePointer<pthread_cond_t>
  // Read and written with the mutex held, and nowhere else.
  private nonisolated(unsafe) var value: Value

  init(_ value: Value) {
    unsafe self.value = value
    unsafe mutex = .allocate(capacity: 1)
    unsafe mutex.initialize(to: pthread_mutex_t())
    unsafe condition = .allocate(capacity: 1)
    unsafe condition.initialize(to: pthread_cond_t())
    var attributes = pthread_condattr_t()
    var result = unsafe pthread_condattr_init(&attributes)
    result |= unsafe pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    result |= unsafe pthread_mutex_init(mutex, nil)
    result |= unsafe pthread_cond_init(condition, &attributes)
    precondition(result == 0, "nothing here can be short")
    _ = unsafe pthread_condattr_destroy(&attributes)
  }

  deinit {
    _ = unsafe pthread_cond_destroy(condition)
    _ = unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  /// Calls `body` with the value; it must not come back here.
  func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
    _ = unsafe pthread_mutex_lock(mutex)
    defer { _ = unsafe pthread_mutex_unlock(mutex) }
    return unsafe body(&value)
  }

  /// The same, and wakes whoever waits.
  func change<Result>(_ body: (inout Value) -> Result) -> Result {
    _ = unsafe pthread_mutex_lock(mutex)
    defer {
      _ = unsafe pthread_cond_broadcast(condition)
      _ = unsafe pthread_mutex_unlock(mutex)
    }
    return unsafe body(&value)
  }

  /// Calls `body` now and after each change until it returns something, or
  /// until `deadline` (CLOCK_MONOTONIC, nanoseconds) has passed: then nil.
  func wait<Result>(until deadline: UInt64?, _ body: (inout Value) -> Result?) -> Result? {
    _ = unsafe pthread_mutex_lock(mutex)
    defer { _ = unsafe pthread_mutex_unlock(mutex) }
    while true {
      if let result = unsafe body(&value) { return result }
      guard let deadline else {
        _ = unsafe pthread_cond_wait(condition, mutex)
        continue
      }
      guard deadline > monotonicNanoseconds() else { return nil }
      var time = timespec(
        tv_sec: Int(deadline / 1_000_000_000), tv_nsec: Int(deadline % 1_000_000_000))
      _ = unsafe pthread_cond_timedwait(condition, mutex, &time)
    }
  }
}

/// CLOCK_MONOTONIC.
func monotonicNanoseconds() -> UInt64 {
  var time = timespec()
  _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
