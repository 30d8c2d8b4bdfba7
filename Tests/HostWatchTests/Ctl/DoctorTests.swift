import Testing

@testable import hostwatchctl

/// What `hostwatchctl doctor` reads itself.
struct DoctorTests {
  @Test("a program's output and exit status are returned")
  func command() throws {
    let outcome = try #require(Command.run(["sh", "-c", "cat; echo out; echo err >&2; exit 3"]))
    #expect(outcome.status == 3)
    #expect(outcome.output == "out\nerr\n")
    let killed = try #require(Command.run(["sh", "-c", "kill -KILL $$"]))
    #expect(killed.status == 137)
    #expect(Command.run(["/nonexistent/program"]) == nil)
  }

  @Test("what a program writes beyond a pipe's room does not hold it up")
  func longOutput() throws {
    let outcome = try #require(Command.run(["head", "-c", "3000000", "/dev/zero"]))
    #expect(outcome.status == 0)
    #expect(outcome.output.utf8.count >= 1 << 20)
  }

  @Test("a program that does not end is given up, with what it has said")
  func endless() throws {
    let outcome = try #require(Command.run(["sh", "-c", "echo so far; exec sleep 60"], seconds: 1))
    #expect(outcome == Command.Outcome(status: nil, output: "so far\n"))
    let quiet = try #require(Command.run(["sh", "-c", "exec >&- 2>&-; exec sleep 60"], seconds: 1))
    #expect(quiet == Command.Outcome(status: nil, output: ""))
  }
}
