import Glibc

/// The words of `-o`, as mount(8) passes them: those that hostwatchfs knows,
/// those that are libfuse's and the kernel's, and those that mean nothing here.
struct MountOptions: Sendable, Equatable {
  enum Events: String, Sendable, CaseIterable { case replay, invalidate, none }

  var events = Events.replay
  /// Seconds; nil: for ever, or 1 second where nobody tells of changes.
  var timeout: Double?
  var maxThreads: UInt32 = 16
  var isReadOnly = false
  var isDirectIO = false
  /// Reading on the host is told, too.
  var tellsAccess = false
  var socket: String?
  /// What libfuse gets.
  var passed: [String] = []

  struct Mistake: Error, Equatable {
    let text: String
  }

  /// mount(8)'s own, and those that say how a device is handled.
  private static let ignored: Set<String> = [
    "defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev",
    "rw",
  ]
  private static let kernel: Set<String> = [
    "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "atime",
    "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime",
    "lazytime", "nolazytime",
    "allow_other", "allow_root", "auto_unmount", "default_permissions",
  ]
  private static let kernelValues: Set<String> = ["fsname", "subtype", "max_read", "blkdev"]

  init(_ lists: [String]) throws(Mistake) {
    for list in lists {
      for word in list.split(separator: ",") { try take(String(word)) }
    }
    if tellsAccess && events == .none {
      throw Mistake(text: "access: with events=none nobody tells what is read on the host")
    }
  }

  private mutating func take(_ word: String) throws(Mistake) {
    let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      .map(String.init)
    let key = parts[0]
    let value = parts.count > 1 ? parts[1] : nil
    switch (key, value) {
    case ("ro", nil):
      isReadOnly = true
      passed.append("ro")
    case ("direct_io", nil): isDirectIO = true
    case ("access", nil): tellsAccess = true
    case ("events", let value?):
      guard let events = Events(rawValue: value) else {
        throw Mistake(text: "events=\(value): replay, invalidate or none is wanted")
      }
      self.events = events
    case ("timeout", let value?):
      guard let seconds = Double(value), seconds >= 0, seconds <= 1e9 else {
        throw Mistake(text: "timeout=\(value): a number of seconds is wanted, 0 … 1000000000")
      }
      timeout = seconds
    case ("max_threads", let value?):
      guard let count = UInt32(value), (2...1024).contains(count) else {
        throw Mistake(text: "max_threads=\(value): a number is wanted, 2 … 1024")
      }
      maxThreads = count
    case ("socket", let value?): socket = value
    default: try takeOther(key, value, word)
    }
  }

  private mutating func takeOther(_ key: String, _ value: String?, _ word: String) throws(Mistake) {
    // systemd's and other programs' notes in fstab.
    if key.hasPrefix("x-") || key.hasPrefix("comment") || Self.ignored.contains(word) { return }
    guard Self.kernel.contains(word) || value != nil && Self.kernelValues.contains(key) else {
      throw Mistake(text: "\(word): hostwatchfs has no such option; see hostwatchfs --help")
    }
    passed.append(word)
  }
}
