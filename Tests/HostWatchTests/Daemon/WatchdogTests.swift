import HostWatch
import Testing

@testable import hostwatchd

@Suite struct WatchdogTests {
  private func look(_ isReadable: Bool, _ reads: UInt64) -> [QueueObservation] {
    [QueueObservation(device: 7, isReadable: isReadable, reads: reads)]
  }

  @Test func groupThatIsNotReadIsStuckAndSaidOnce() {
    var progress = Watchdog.Progress()
    #expect(progress.update(look(true, 3)).all.isEmpty)
    let second = progress.update(look(true, 3))
    #expect(second.all == [7] && second.new == [7])
    let third = progress.update(look(true, 3))
    #expect(third.all == [7] && third.new == [])
    #expect(progress.update(look(true, 4)).all.isEmpty)
  }

  @Test func quietOrBusyGroupsAreNotStuck() {
    var progress = Watchdog.Progress()
    for reads in [1, 1, 1] as [UInt64] { #expect(progress.update(look(false, reads)).all.isEmpty) }
    for reads in [1, 2, 3] as [UInt64] { #expect(progress.update(look(true, reads)).all.isEmpty) }
  }
}

@Suite struct HiddenShareTests {
  private let host = "1 1 8:1 / / rw - ext4 d rw\n2 1 8:2 / /home rw - xfs d rw\n"

  private func hidden(_ path: String, _ own: String) -> HostView.Hidden? {
    HostView.hidden(path, own: Array(own.utf8), host: Array(host.utf8))
  }

  @Test func sameTreeUnderOtherMountsHidesNothing() {
    let own =
      "5 5 8:1 / / ro - ext4 d rw\n6 5 8:2 / /home ro - xfs d rw\n"
      + "7 6 8:2 /x /home/x ro - xfs d rw\n"
    #expect(hidden("/home/x/y", own) == nil)
    #expect(hidden("/homely", own) == nil)
  }

  @Test func mountAboveHidesWhatIsBelow() throws {
    let own =
      "5 5 8:1 / / ro - ext4 d rw\n6 5 8:2 / /home ro - xfs d rw\n8 6 0:9 / /home ro - tmpfs d rw\n"
    let found = try #require(hidden("/home/x", own))
    #expect(found.mountPoint == "/home" && found.type == "tmpfs")
    #expect(HiddenShares.advice(found).contains("ProtectHome=read-only"))
    #expect(hidden("/srv", own) == nil)
  }

  @Test func anotherDirectoryOfTheSameFilesystemHides() throws {
    let own =
      "5 5 8:1 / / ro - ext4 d rw\n6 5 8:1 /tmp/systemd-private-1-h/tmp /tmp rw - ext4 d rw\n"
    #expect(HiddenShares.advice(try #require(hidden("/tmp/s", own))) == "set PrivateTmp=no")
  }

  @Test func anotherRootHidesEverything() throws {
    let own = "5 5 7:0 / / ro - squashfs d rw\n"
    #expect(HiddenShares.advice(try #require(hidden("/srv", own))).contains("RootDirectory="))
  }

  @Test func noTableSaysNothing() { #expect(hidden("/srv", "") == nil) }
}
