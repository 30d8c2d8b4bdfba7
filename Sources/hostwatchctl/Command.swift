import CFanotify
import Glibc
import HostWatch

/// A program that is run for what it says.
enum Command {
  struct Outcome: Equatable {
    /// The exit status; 128 and the signal's number for one that was killed; nil for one that
    /// had not ended in time.
    let status: Int32?
    let output: String
  }

  /// Runs a program, found by PATH unless it has a "/", and waits for its end. What it
  /// writes on both outputs is returned; its input is empty. Nil if it cannot be run.
  /// After `seconds` it is killed and not waited for: it may be asleep in a call that nothing
  /// ends.
  static func run(_ words: [String], seconds: Int = 30) -> Outcome? {
    var ends: [Int32] = [-1, -1]
    guard unsafe pipe(&ends) == 0 else { return nil }
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    let reading = OwnedDescriptor(ends[0])
    guard let pid = start(words, output: ends[1]) else { return nil }
    var all: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 65536)
    let deadline = Self.now() + Double(seconds)
    while true {
      var polled = pollfd(fd: reading.rawValue, events: Int16(POLLIN), revents: 0)
      let left = max(0, Int32((deadline - Self.now()) * 1000))
      let ready = unsafe poll(&polled, 1, left)
      if ready < 0 && errno == EINTR { continue }
      guard ready > 0 else { break }
      let got = unsafe chunk.withUnsafeMutableBytes {
        unsafe read(reading.rawValue, $0.baseAddress, $0.count)
      }
      if got < 0 && errno == EINTR { continue }
      guard got > 0 else { break }
      // What is longer is not for a line of ours, but is read for the program to end.
      if all.count < 1 << 20 { all += chunk[0..<got] }
    }
    let output = String(decoding: all, as: UTF8.self)
    var status: Int32 = 0
    while true {
      let ended = unsafe waitpid(pid, &status, WNOHANG)
      if ended == pid { break }
      guard ended == 0 else { return nil }
      guard Self.now() < deadline else {
        _ = kill(pid, SIGKILL)
        return Outcome(status: nil, output: output)
      }
      _ = usleep(1000)
    }
    let code = status & 0x7f == 0 ? status >> 8 & 0xff : 128 + status & 0x7f
    return Outcome(status: code, output: output)
  }

  private static func now() -> Double {
    var time = timespec()
    _ = unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
  }

  /// Closes `output`, the program's end of the pipe, in this process.
  private static func start(_ words: [String], output: Int32) -> pid_t? {
    defer { _ = close(output) }
    var actions = unsafe posix_spawn_file_actions_t()
    guard unsafe posix_spawn_file_actions_init(&actions) == 0 else { return nil }
    defer { _ = unsafe posix_spawn_file_actions_destroy(&actions) }
    guard
      unsafe posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
        == 0,
      unsafe posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO) == 0,
      unsafe posix_spawn_file_actions_adddup2(&actions, output, STDERR_FILENO) == 0
    else { return nil }
    var arguments = unsafe words.map { unsafe strdup($0) }
    unsafe arguments.append(nil)
    defer {
      while let last = unsafe arguments.popLast() { unsafe free(last) }
    }
    var pid: pid_t = 0
    // The array ends with a null pointer, as its strings do with a NUL.
    let result = unsafe posix_spawnp(&pid, words[0], &actions, nil, arguments, environ)
    return result == 0 ? pid : nil
  }
}
