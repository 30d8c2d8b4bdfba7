import Glibc

/// A thread for work that waits in system calls: a task that does so would hold
/// one of the few threads that all tasks share.
package enum BackgroundThread {
  private final class Body {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }

  /// Runs `body` on a new thread that takes none of the process's signals. Fails
  /// with EAGAIN where the process, its user or its cgroup may have no more of them.
  package static func start(_ body: @escaping @Sendable () -> Void) throws(SystemError) {
    var every = sigset_t()
    var before = sigset_t()
    _ = unsafe sigfillset(&every)
    _ = unsafe pthread_sigmask(SIG_BLOCK, &every, &before)
    defer { _ = unsafe pthread_sigmask(SIG_SETMASK, &before, nil) }
    // The new thread releases it.
    let argument = unsafe Unmanaged.passRetained(Body(body))
    var thread = pthread_t()
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        guard let argument = unsafe argument else { return nil }
        unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
        return nil
      }, argument.toOpaque())
    guard result == 0 else {
      unsafe argument.release()
      throw SystemError("pthread_create", result)
    }
    _ = pthread_detach(thread)
  }
}

/// sem_t: what a thread waits on until another one posts.
@safe package final class ThreadSemaphore: Sendable {
  // Given back in deinit; sem_t needs an address of its own.
  private nonisolated(unsafe) let semaphore: UnsafeMutablePointer<sem_t>

  package init() {
    unsafe semaphore = .allocate(capacity: 1)
    unsafe semaphore.initialize(to: sem_t())
    let result = unsafe sem_init(semaphore, 0, 0)
    precondition(result == 0, "0 is a valid value for a semaphore")
  }

  deinit {
    _ = unsafe sem_destroy(semaphore)
    unsafe semaphore.deallocate()
  }

  package func post() { _ = unsafe sem_post(semaphore) }

  package func wait() {
    while unsafe sem_wait(semaphore) != 0 && errno == EINTR {}
  }
}
