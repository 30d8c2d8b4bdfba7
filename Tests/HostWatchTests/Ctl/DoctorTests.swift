import Glibc
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
    let outcome = try #require(Command.run(["sh", "-c", "echo so far; exec sleep 60"], seconds: 3))
    #expect(outcome == Command.Outcome(status: nil, output: "so far\n"))
    let quiet = try #require(Command.run(["sh", "-c", "exec >&- 2>&-; exec sleep 60"], seconds: 1))
    #expect(quiet == Command.Outcome(status: nil, output: ""))
  }

  @Test("of a daemon's command line the configuration and the shares are taken")
  func commandLine() {
    let command = DaemonCommand(
      ["--log-level", "debug", "--config", "a b.toml", "--share=x=/x", "--share", "y=/y=z"],
      directory: "/srv")
    #expect(command.path == "/srv/a b.toml")
    #expect(
      command.arguments == ["--config", "/srv/a b.toml", "--share", "x=/x", "--share", "y=/y=z"])
    #expect(DaemonCommand(["--config=/c"]).path == "/c")
    #expect(DaemonCommand(["--socket", "--config", "/c"]).path == nil)
    let unknown = DaemonCommand(["--config", "c"])
    #expect(unknown.configuration == "c")
    #expect(unknown.path == nil)
    #expect(DaemonCommand([]).arguments == [])
    #expect(DaemonCommand(pid: Int(getpid())) == nil)
  }

  @Test("what systemctl show says of ExecStart is read")
  func execStart() {
    let shown = """
      { path=/usr/sbin/hostwatchd ; argv[]=/usr/sbin/hostwatchd --config etc/other.toml \
      ; ignore_errors=no ; start_time=[n/a] ; stop_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }
      """
    #expect(DaemonCommand(execStart: shown)?.path == "/etc/other.toml")
    #expect(DaemonCommand(execStart: "") == nil)
  }

  @Test("a line of systemctl list-units is judged by its states")
  func mountUnits() throws {
    func check(_ states: String) -> Check? {
      InstallationChecks.mountUnit("mount-unit", #"hostwatchfs@a\x2db.service loaded \#(states) x"#)
    }
    let failed = try #require(check("failed failed"))
    #expect(failed.state == .fail)
    #expect(failed.advice?.contains(#"journalctl -u 'hostwatchfs@a\x2db.service'"#) ?? false)
    #expect(check("active running")?.state == .ok)
    #expect(check("activating auto-restart")?.state == .warn)
    #expect(check("activating start-pre")?.state == .ok)
    #expect(check("inactive dead") == nil)
    #expect(InstallationChecks.mountUnit("mount-unit", "") == nil)
  }
}
