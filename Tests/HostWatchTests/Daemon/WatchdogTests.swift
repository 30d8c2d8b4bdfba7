import HostWatch
import Testing

@testable import hostwatchd

@Suite struct WatchdogTests {
  private func look(_ isReadable: Bool, _ reads: UInt64, delay: UInt64 = 1000)
    -> [QueueObservation]
  {
    [
      QueueObservation(
        device: 7, isReadable: isReadable, reads: reads, delayMicroseconds: delay)
    ]
  }

  @Test func groupThatIsNotReadIsStuckAndSaidOnce() {
    var progress = Watchdog.Progress()
    #expect(progress.update(look(true, 3), now: 250_000).all.isEmpty)
    let second = progress.update(look(true, 3), now: 500_000)
    #expect(second.all == [7] && second.new == [7])
    let third = progress.update(look(true, 3), now: 750_000)
    #expect(third.all == [7] && third.new == [])
    #expect(progress.update(look(true, 4), now: 1_000_000).all.isEmpty)
  }

  @Test func groupsAreStuckEachForItself() {
    var progress = Watchdog.Progress()
    func look(_ seventh: UInt64, _ eighth: UInt64) -> [QueueObservation] {
      [(7, seventh), (8, eighth)].map {
        QueueObservation(device: $0, isReadable: true, reads: $1, delayMicroseconds: 0)
      }
    }
    #expect(progress.update(look(1, 1), now: 1).all.isEmpty)
    #expect(progress.update(look(2, 1), now: 2).all == [8])
    let both = progress.update(look(2, 1), now: 3)
    #expect(both.all == [7, 8] && both.new == [7])
    #expect(progress.update([], now: 4).all.isEmpty)
  }

  @Test func readsThatAreHeldBackAreNotMissed() {
    var progress = Watchdog.Progress()
    // Looks each quarter of a second, reads each second.
    for look in 1...4 as ClosedRange<UInt64> {
      let group = self.look(true, 3, delay: 1_000_000)
      #expect(progress.update(group, now: look * 250_000).all.isEmpty)
    }
    // The look comes before a read that is due just now.
    #expect(progress.update(look(true, 3, delay: 1_000_000), now: 1_250_000).all.isEmpty)
    #expect(progress.update(look(true, 3, delay: 1_000_000), now: 1_500_000).all == [7])
    // The client with the long delay has gone; the group is not read still.
    #expect(progress.update(look(true, 3, delay: 0), now: 1_500_001).all == [7])
  }

  @Test func quietOrBusyGroupsAreNotStuck() {
    var progress = Watchdog.Progress()
    for reads in [1, 1, 1] as [UInt64] {
      #expect(progress.update(look(false, reads), now: 1).all.isEmpty)
    }
    for reads in [1, 2, 3] as [UInt64] {
      #expect(progress.update(look(true, reads), now: reads * 1_000_000).all.isEmpty)
    }
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

  @Test func mountsOnEachOtherEnd() {
    let own =
      "1 1 8:1 / / rw - ext4 d rw\n2 1 0:5 / /a rw - fuse d rw\n"
      + "3 2 0:6 / /a rw - fuse d rw\n2 3 0:5 / /a rw - fuse d rw\n"
    #expect(HostView.hidden("/a", own: Array(own.utf8), host: Array(own.utf8)) == nil)
    #expect(hidden("/b", own) == nil)
  }

  @Test func noTableSaysNothing() { #expect(hidden("/srv", "") == nil) }
}
