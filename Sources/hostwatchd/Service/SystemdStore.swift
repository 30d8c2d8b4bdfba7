import CFanotify
import CSystemd
import Glibc
import HostWatch

/// systemd's descriptor store (FileDescriptorStoreMax=).
///
/// systemd does not say whether it kept a descriptor, so what is in the store is counted
/// here, and what would not fit is not sent. One place stays free for the
/// hand-over.
final class SystemdStore: DescriptorStore {
  static let prefix = "hostwatchd-"
  static let handOver = "handover"
  static let listener = "listener"
  /// How long a hand-over waits for a manager that does not read.
  private static let milliseconds: UInt32 = 5000
  /// The same while clients wait for this process.
  private static let shortMilliseconds: UInt32 = 500

  private let socket: String
  /// What earlier processes had stored, by its whole name; -1 once it was taken.
  private var inherited: [String: [Int32]]
  /// Whole names of what is in the store now.
  private var kept: Set<String> = []
  private let capacity: Int
  private let complain: (MessageID, String) -> Void
  private var hasComplained = false

  /// nil when there is no store: for a daemon started by hand, and under a manager
  /// that has a NOTIFY_SOCKET but is not systemd, which tells its own processes
  /// by SYSTEMD_EXEC_PID (systemd 248).
  convenience init?(
    inherited: [String: [Int32]], complain: @escaping (MessageID, String) -> Void
  ) {
    guard let socket = unsafe getenv("NOTIFY_SOCKET") else { return nil }
    guard let own = unsafe getenv("SYSTEMD_EXEC_PID"),
      Int32(unsafe String(cString: own)) == getpid()
    else { return nil }
    let capacity: Int
    do throws(SystemError) {
      capacity = try UnitQuery().storeMax()
    } catch {
      // A store that is too small then shows as connections that end at a restart.
      capacity = inherited.isEmpty ? Self.assumedCapacity : Int.max
    }
    guard capacity > 0 else { return nil }
    self.init(
      socket: unsafe String(cString: socket), capacity: capacity, inherited: inherited,
      complain: complain)
  }

  /// - Parameters:
  ///   - socket: where the manager listens, as NOTIFY_SOCKET has it.
  ///   - capacity: how many descriptors the store has room for.
  init(
    socket: String, capacity: Int, inherited: [String: [Int32]],
    complain: @escaping (MessageID, String) -> Void
  ) {
    self.socket = socket
    self.capacity = capacity
    self.inherited = inherited
    self.complain = complain
    kept = Set(inherited.keys)
  }

  /// As the unit has it.
  private static let assumedCapacity = 512

  deinit {
    for number in inherited.values.joined() { _ = close(number) }
  }

  func add(_ descriptor: Int32, name: String) -> Bool {
    let whole = Self.prefix + name
    // The same name twice would be two descriptors, and nobody could tell which is which.
    if kept.contains(whole) {
      remove(name)
      if kept.contains(whole) { return false }
    }
    let reserve = name == Self.handOver ? 0 : 1
    guard kept.count + reserve < capacity else {
      complainOnce(
        "the service manager's descriptor store has room for \(capacity); raise FileDescriptorStoreMax= in the unit. What does not fit does not outlive a crash"
      )
      return false
    }
    // FDPOLL=0: systemd would drop a descriptor that signals an error or a hang-up.
    let result = send(
      "FDSTORE=1\nFDNAME=\(whole)\nFDPOLL=0", [descriptor],
      milliseconds: reserve == 0 ? Self.milliseconds : Self.shortMilliseconds)
    guard result == 0 else {
      complainOnce("a descriptor could not be stored: \(SystemError("sendmsg", -result))")
      return false
    }
    kept.insert(whole)
    return true
  }

  func remove(_ name: String) {
    for number in inherited.removeValue(forKey: Self.prefix + name) ?? [] { _ = close(number) }
    removeWhole(Self.prefix + name)
  }

  /// What could not be removed counts as kept, and is removed before its name is used again.
  private func removeWhole(_ name: String) {
    let result = send(
      "FDSTOREREMOVE=1\nFDNAME=\(name)", [], milliseconds: Self.shortMilliseconds)
    guard result == 0 else {
      return complainOnce(
        "a stored descriptor could not be removed: \(SystemError("sendmsg", -result))")
    }
    kept.remove(name)
  }

  func take(_ name: String) -> OwnedDescriptor? {
    let whole = Self.prefix + name
    // Of several with one name it is not known which is which.
    guard let numbers = inherited[whole], numbers.count == 1 else { return nil }
    inherited[whole] = nil
    return OwnedDescriptor(numbers[0])
  }

  /// Lets go of all that was stored and that nobody has taken.
  func removeUnknown() {
    for (name, numbers) in inherited {
      for number in numbers { _ = close(number) }
      let what = name.hasPrefix(Self.prefix + "group.") ? "a group without sessions" : "not known"
      complain(
        .storeCleared,
        "removed \(escapingControls(name)) from the service manager's descriptor store: \(what)")
      removeWhole(name)
    }
    inherited = [:]
  }

  /// Waits until the manager has dealt with all that was sent; false if it does not
  /// in time.
  func settle() -> Bool { sd_notify_barrier(0, UInt64(Self.milliseconds) * 1000) >= 0 }

  private func send(_ text: String, _ descriptors: [Int32], milliseconds: UInt32) -> Int32 {
    let bytes = Array(text.utf8)
    // The kernel reads as many of each as the arrays have.
    return unsafe bytes.withUnsafeBytes { text in
      unsafe descriptors.withUnsafeBufferPointer {
        unsafe hw_notify_with_descriptors(
          socket, text.baseAddress, text.count, $0.baseAddress, UInt32($0.count),
          milliseconds)
      }
    }
  }

  private func complainOnce(_ text: String) {
    guard !hasComplained else { return }
    hasComplained = true
    complain(.storeLimited, text)
  }
}
