import Glibc
import Testing

@testable import hostwatchfs

/// What the kernel was told, without a kernel.
@Suite struct ViewTests {
  private static func object(_ number: UInt8) -> BackingObject {
    BackingObject(key: .init(device: 1, type: 1, bytes: [number]), kept: nil)
  }
  private static func entry(_ name: String, in parent: UInt64 = View.root) -> View.Entry {
    View.Entry(parent: parent, name: Name(Array(name.utf8)))
  }

  private let view: View
  init() {
    view = View(root: Self.object(0), timeout: 100, hasDaemon: true)
    view.isInStep = true
  }

  private func file(_ number: UInt8, _ name: String, in parent: UInt64 = View.root) -> UInt64 {
    view.enter(Self.object(number), type: S_IFREG | 0o644, as: Self.entry(name, in: parent)).id
  }
  private func directory(_ number: UInt8, _ name: String, in parent: UInt64 = View.root) -> UInt64 {
    view.enter(Self.object(number), type: S_IFDIR | 0o755, as: Self.entry(name, in: parent)).id
  }

  /// The timeout for a name that is looked up and told to be absent.
  private func absent(_ entry: View.Entry) -> Double {
    view.enterAbsent(entry, stamp: view.stamp(of: entry.parent))
  }

  @Test func anObjectHasOneNodeAndItsLookupsAreCounted() {
    let first = file(1, "a")
    #expect(file(1, "b") == first)
    #expect(view.node(first)?.lookups == 2)
    #expect(view.node(first)?.names == [Self.entry("a"), Self.entry("b")])
    #expect(!view.forget(first, lookups: 1))
    #expect(view.forget(first, lookups: 1))
    #expect(view.node(first) == nil)
    #expect(view.child(Self.entry("a").name, of: View.root) == nil)
  }

  @Test func aNodeidIsNotUsedAgain() {
    let first = file(1, "a")
    #expect(view.forget(first, lookups: 1))
    #expect(file(1, "a") > first)
  }

  @Test func aNameLeadsToWhatItWasSetToLast() {
    let (first, second) = (file(1, "a"), file(2, "a"))
    #expect(view.child(Self.entry("a").name, of: View.root) == second)
    #expect(view.node(first)?.names == [])
  }

  @Test func aDirectoryHasTheNameOfItsLastLookup() {
    let (first, second) = (directory(1, "d"), directory(2, "e"))
    #expect(directory(1, "moved", in: second) == first)
    #expect(view.node(first)?.names == [Self.entry("moved", in: second)])
    #expect(view.child(Self.entry("d").name, of: View.root) == nil)
    #expect(view.path(of: first)?.map(\.description) == ["e", "moved"])
  }

  @Test func aHeldNodeStaysUntilItIsReleased() {
    let node = view.hold(Self.object(1), type: S_IFREG)
    #expect(!view.isKnown(node.id))
    #expect(file(1, "a") == node.id)
    #expect(!view.forget(node.id, lookups: 1))
    #expect(view.release(node.id))
    #expect(view.node(node.id) == nil)
  }

  @Test func renamesMoveNamesAsTheKernelDoes() {
    let (first, second) = (file(1, "a"), file(2, "b"))
    view.rename(Self.entry("a"), to: Self.entry("b"), exchange: true)
    #expect(view.child(Self.entry("a").name, of: View.root) == second)
    #expect(view.child(Self.entry("b").name, of: View.root) == first)
    view.rename(Self.entry("a"), to: Self.entry("b"), exchange: false)
    #expect(view.child(Self.entry("a").name, of: View.root) == nil)
    #expect(view.child(Self.entry("b").name, of: View.root) == second)
    #expect(view.node(first)?.names == [])
  }

  @Test func onlyWhatIsFollowedIsCached() {
    let (parent, child) = (directory(1, "d"), file(2, "x"))
    #expect(view.timeouts(parent: View.root, node: child).entry == 100)
    #expect(view.timeouts(parent: View.root, node: child).attributes == 0)
    #expect(view.timeouts(parent: parent, node: child).entry == 0)
    view.setFollowing(parent, .refused(EXDEV))
    #expect(absent(Self.entry("none", in: parent)) == 0)
    view.setFollowing(parent, .yes)
    view.setFollowing(child, .yes)
    #expect(view.timeouts(parent: parent, node: child).entry == 100)
    #expect(view.timeouts(parent: parent, node: child).attributes == 100)
    view.isInStep = false
    #expect(view.timeouts(parent: parent, node: child).entry == 0)
    #expect(absent(Self.entry("none")) == 0)
  }

  @Test func absentNamesAreKeptUpToALimit() {
    for number in 0..<View.maxAbsentNames {
      #expect(absent(Self.entry("none\(number)")) == 100)
    }
    #expect(absent(Self.entry("one more")) == 0)
    #expect(absent(Self.entry("none1")) == 100)
    #expect(file(1, "none1") != 0)
    #expect(absent(Self.entry("one more")) == 100)
    #expect(view.children(of: View.root).count == View.maxAbsentNames + 1)
  }

  /// What is looked up before its directory is followed may have changed untold since.
  @Test(arguments: [false, true])
  func aNameIsNotKeptThatWasLookedUpBeforeItsDirectoryWasFollowed(isOutOfStep: Bool) {
    let parent = directory(1, "d")
    let child = file(2, "f", in: parent)
    if isOutOfStep {
      view.setFollowing(parent, .yes)
      view.isInStep = false
    }
    let early = view.stamp(of: parent)
    view.setFollowing(parent, .yes)
    view.setFollowing(child, .yes)
    view.isInStep = true
    let now = view.stamp(of: parent)
    #expect(view.timeouts(parent: parent, node: child, stamp: early).entry == 0)
    #expect(view.timeouts(parent: parent, node: child, stamp: early).attributes == 100)
    #expect(view.enterAbsent(Self.entry("none", in: parent), stamp: early) == 0)
    #expect(view.child(Self.entry("none").name, of: parent) == nil)
    #expect(view.timeouts(parent: parent, node: child, stamp: now).entry == 100)
    #expect(view.enterAbsent(Self.entry("none", in: parent), stamp: now) == 100)
    // Out of step and in again meanwhile.
    view.isInStep = false
    view.isInStep = true
    #expect(view.timeouts(parent: parent, node: child, stamp: now).entry == 0)
    #expect(view.enterAbsent(Self.entry("other", in: parent), stamp: now) == 0)
    #expect(absent(Self.entry("other", in: parent)) == 100)
  }

  @Test func aForgottenDirectoryTakesItsNamesAlong() {
    let parent = directory(1, "d")
    let child = file(2, "x", in: parent)
    #expect(view.forget(parent, lookups: 1))
    #expect(view.node(child)?.names == [])
    #expect(view.path(of: child) == nil)
  }
}

@Suite struct MountOptionsTests {
  @Test func knownWordsAreTakenOrPassedOn() throws {
    let options = try MountOptions([
      "rw,events=invalidate,timeout=2.5,max_threads=4,socket=/run/x", "allow_other,nosuid",
      "noauto,x-systemd.automount,_netdev,direct_io,fsname=a=b",
    ])
    #expect(options.events == .invalidate)
    #expect(options.timeout == 2.5)
    #expect(options.maxThreads == 4)
    #expect(options.socket == "/run/x")
    #expect(options.isDirectIO)
    #expect(!options.isReadOnly)
    #expect(options.passed == ["allow_other", "nosuid", "fsname=a=b"])
  }

  @Test(arguments: [
    "events", "events=all", "timeout=-1", "timeout=nan", "max_threads=0", "max_threads=x", "what",
    "allow_other=1", "ro=1", "fsname",
  ])
  func mistakesAreRefused(_ word: String) {
    #expect(throws: MountOptions.Mistake.self) { try MountOptions([word]) }
  }
}
