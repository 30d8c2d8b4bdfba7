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
    let stuck = progress.update(observe(), now: monotonicMicroseconds())
    for device in stuck.new { stalled(device) }
    if stuck.all.isEmpty { ServiceManager.watchdog() }
    timer?.arm(afterMicroseconds: interval)
  }

  /// Compares looks at the groups. Pure: the caller says what time it is.
  struct Progress {
    /// Groups that had something to read, how often they had been read by then, and
    /// since which look that has not changed.
    private var waiting: [UInt64: (reads: UInt64, since: UInt64)] = [:]
    private var stuck: Set<UInt64> = []

    /// How late a read that was held back may come, in microseconds.
    static let graceMicroseconds: UInt64 = 100_000

    /// A group is stuck when it had something to read at two looks, and was not
    /// read in between although reads are not held back for so long.
    ///
    /// - Parameter now: microseconds on CLOCK_MONOTONIC.
    mutating func update(_ groups: [QueueObservation], now: UInt64)
      -> (all: Set<UInt64>, new: [UInt64])
    {
      let (before, past) = (stuck, waiting)
      (stuck, waiting) = ([], [:])
      for group in groups where group.isReadable {
        guard let old = past[group.device], old.reads == group.reads else {
          waiting[group.device] = (group.reads, now)
          continue
        }
        waiting[group.device] = old
        let delay = group.delayMicroseconds
        if now - old.since >= delay + min(delay, Self.graceMicroseconds) {
          stuck.insert(group.device)
        }
      }
      return (stuck, stuck.subtracting(before).sorted())
    }
  }
}
