import Glibc
import HostWatch
import Testing

@testable import hostwatchd

/// A directory that is there for one test.
struct TemporaryDirectory: ~Copyable {
  let path: String

  init() throws {
    var template = Array("/tmp/hostwatch-test.XXXXXX".utf8CString)
    // mkdtemp writes within the template, whose NUL is part of the array.
    let made: String? = unsafe template.withUnsafeMutableBufferPointer { buffer in
      guard let base = buffer.baseAddress, let made = unsafe mkdtemp(base) else {
        return nil
      }
      return unsafe String(cString: made)
    }
    path = try #require(made)
  }

  func write(_ text: String, to name: String) {
    let file = "\(path)/\(name)"
    guard let stream = unsafe fopen(file, "w") else { return }
    unsafe fputs(text, stream)
    unsafe fclose(stream)
  }

  deinit {
    for name in ["s", "s.lock", "f", "d/s", "d/s.lock", "d"] {
      _ = unsafe remove("\(path)/\(name)")
    }
    _ = unsafe rmdir(path)
  }
}

// Serialized: the umask belongs to the whole process.
@Suite(.serialized) struct OwnSocketTests {
  private func refusal(_ path: String) -> StartFailure? {
    do {
      let socket = try OwnSocket.open(path, mode: 0o600)
      _ = close(socket.listener)
      socket.remove()
      return nil
    } catch {
      return error
    }
  }

  @Test func bindsBelowANewDirectoryAndLeavesNothing() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/d/s"
    let socket = try OwnSocket.open(path, mode: 0o620)
    var status = stat()
    #expect(unsafe lstat(path, &status) == 0)
    #expect(status.st_mode == S_IFSOCK | 0o620)
    _ = close(socket.listener)
    socket.remove()
    #expect(FileIdentity(path: path) == nil)
    #expect(FileIdentity(path: path + ".lock") == nil)
  }

  @Test func refusesAServedSocketAndNamesThePid() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/s"
    let socket = try OwnSocket.open(path, mode: 0o600)
    let failure = try #require(refusal(path))
    #expect(failure.code == .unavailable)
    #expect(failure.message == "another hostwatchd serves \(path) (pid \(getpid()))")
    _ = close(socket.listener)
    socket.remove()
  }

  @Test func refusesASocketThatAnswersWithoutALock() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/s"
    let socket = try OwnSocket.open(path, mode: 0o600)
    _ = unsafe unlink(path + ".lock")
    let failure = try #require(refusal(path))
    #expect(failure.message == "another hostwatchd serves \(path) (pid \(getpid()))")
    _ = close(socket.listener)
    socket.remove()
  }

  @Test func takesOverAStaleSocket() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/s"
    let stale = try OwnSocket.open(path, mode: 0o600)
    _ = close(stale.listener)
    _ = unsafe unlink(path + ".lock")
    let before = FileIdentity(path: path)
    #expect(before?.isSocket == true)
    let socket = try OwnSocket.open(path, mode: 0o600)
    #expect(FileIdentity(path: path)?.isSocket == true)
    // The stale value's path is another's socket now: it is not removed.
    _ = close(socket.listener)
    socket.remove()
    #expect(FileIdentity(path: path) == nil)
    _ = consume stale
  }

  @Test func neverTouchesWhatIsNoSocket() throws {
    let directory = try TemporaryDirectory()
    directory.write("precious", to: "f")
    let failure = try #require(refusal("\(directory.path)/f"))
    #expect(failure.code == .configuration)
    #expect(FileIdentity(path: "\(directory.path)/f") != nil)
    _ = unsafe remove("\(directory.path)/f.lock")
  }

  @Test func removesOnlyItsOwn() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/s"
    let socket = try OwnSocket.open(path, mode: 0o600)
    _ = unsafe unlink(path)
    directory.write("another's", to: "s")
    _ = close(socket.listener)
    socket.remove()
    #expect(FileIdentity(path: path) != nil)
  }
}

@Suite struct QueueSizeTests {
  @Test func raisesAndNeverLowers() throws {
    let directory = try TemporaryDirectory()
    directory.write("16384\n", to: "f")
    let path = "\(directory.path)/f"
    #expect(QueueSize.ensure(1000, path: path).effective == 16384)
    let raised = QueueSize.ensure(99_999, path: path)
    #expect(raised.effective == 99_999)
    #expect(raised.shortfall == nil)
    #expect(QueueSize.ensure(1000, path: path).effective == 99_999)
  }

  @Test func saysWhyItCouldNot() {
    let outcome = QueueSize.ensure(10, path: "/nonexistent/queue")
    #expect(outcome.shortfall?.contains("cannot be read") == true)
  }
}

@Suite struct StatusLineTests {
  @Test func changesOnlyWithTheFigures() {
    var line = StatusLine()
    var figures = Figures()
    #expect(line.update(figures, now: 1) == "0 sessions, 0 nodes, 0 events/s, 0 lost")
    #expect(line.update(figures, now: 2) == nil)
    figures.sessions = 1
    figures.nodes = 5
    figures.kernelEvents = 100
    figures.lost = 2
    #expect(line.update(figures, now: 500_002) == "1 session, 5 nodes, 200 events/s, 2 lost")
    #expect(line.showsActivity)
    #expect(line.update(figures, now: 1_500_002) == "1 session, 5 nodes, 0 events/s, 2 lost")
    #expect(!line.showsActivity)
  }

  @Test func lagIsThatOf99OfAHundredBatchesSinceTheLineBefore() {
    var line = StatusLine()
    var figures = Figures()
    figures.lag[11] = 1000
    #expect(line.update(figures, now: 1) == "0 sessions, 0 nodes, 0 events/s, 0 lost")
    figures.lag[0] += 99
    figures.lag[4] += 1
    #expect(line.update(figures, now: 2)?.hasSuffix(" 0 lost, lag up to 0.05 ms") == true)
    #expect(line.showsActivity)
    figures.lag[0] += 98
    figures.lag[4] += 2
    #expect(line.update(figures, now: 3)?.hasSuffix(", lag up to 1 ms") == true)
    figures.lag[11] += 1
    #expect(line.update(figures, now: 4)?.hasSuffix(", lag over 1000 ms") == true)
    #expect(line.update(figures, now: 5)?.hasSuffix(" 0 lost") == true)
    #expect(!line.showsActivity)
  }
}

@Suite struct ArgumentTests {
  @Test func sharesOfTheCommandLine() {
    let share = ShareArgument(argument: "src=/srv/a=b")
    #expect(share?.name == "src")
    #expect(share?.path == "/srv/a=b")
    #expect(share?.configuration.allowedUsers == [0, geteuid()])
    for wrong in ["", "src", "=/srv", "src=", "a\nb=/srv"] {
      #expect(ShareArgument(argument: wrong) == nil)
    }
    #expect(ShareArgument(argument: "a=b")?.path.hasSuffix("/b") == true)
  }

  @Test func exitCodesAreTheUsualOnes() {
    #expect(Hostwatchd.exitCode(for: ParsingFailure.error(["--bogus"])).rawValue == 64)
    #expect(Hostwatchd.exitCode(for: ParsingFailure.error(["--log-level", "x"])).rawValue == 64)
    #expect(
      Hostwatchd.exitCode(for: ParsingFailure.error(["--share", "a=/", "--share", "a=/"])).rawValue
        == 64)
    #expect(Hostwatchd.exitCode(for: ParsingFailure.error(["--version"])).rawValue == 0)
  }
}

/// What parsing a command line fails with.
enum ParsingFailure {
  struct None: Error {}

  static func error(_ arguments: [String]) -> any Error {
    do {
      _ = try Hostwatchd.parse(arguments)
      return None()
    } catch {
      return error
    }
  }
}
