import CSystemd
import HostWatch

/// Answers the service manager's watchdog while the loop turns and what the
/// kernel has queued is being read.
final class Watchdog {
  private let interval: UInt64
  private var progress = Progress()
  private var timer: (any LoopTimer)?
  private let observe: () -> [QueueObservation]
  private let stalled: (UInt64) -> Void

  /// - Parameters:
  ///   - observe: the state of every group now.
  ///   - stalled: called once for each group that has stopped being read, with
  ///     its device.
  /// - Returns: nil where the service manager did not ask for it.
  init?(
    loop: any EventLoop, observe: @escaping () -> [QueueObservation],
    stalled: @escaping (UInt64) -> Void
  ) throws(SystemError) {
    var microseconds: UInt64 = 0
    let result = unsafe sd_watchdog_enabled(0, &microseconds)
    guard result >= 0 else { throw SystemError("sd_watchdog_enabled", -result) }
    guard result > 0 else { return nil }
    // A feed that gets lost, or one that is withheld for a moment, is not death.
    interval = max(1000, microseconds / 4)
    self.observe = observe
    self.stalled = stalled
    // Before the groups: a storm must not keep the timer from firing.
    timer = try loop.timer(priority: .urgent) { [unowned self] in tick() }
    tick()
  }

  private func tick() {
    let stuck = progress.update(observe())
    for device in stuck.new { stalled(device) }
    if stuck.all.isEmpty { ServiceManager.watchdog() }
    timer?.arm(afterMicroseconds: interval)
  }

  /// Compares two looks at the groups. Pure.
  struct Progress {
    private var last: [UInt64: QueueObservation] = [:]
    private var stuck: Set<UInt64> = []

    /// A group is stuck when it had something to read at both looks and was
    /// not read from in between.
    mutating func update(_ now: [QueueObservation]) -> (all: Set<UInt64>, new: [UInt64]) {
      let before = stuck
      stuck = Set(
        now.filter { group in
          guard group.isReadable, let old = last[group.device] else { return false }
          return old.isReadable && old.reads == group.reads
        }.map(\.device))
      last = Dictionary(now.map { ($0.device, $0) }) { $1 }
      return (stuck, stuck.subtracting(before).sorted())
    }
  }
}
