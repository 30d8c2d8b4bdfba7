extension HostWatchClient {
  /// What a session tells, in order.
  public enum Event: Sendable, Equatable {
    /// Something changed.
    case record(Record)
    /// Changes after the record `sequence` were lost. In NODES mode the daemon
    /// checks what is registered and says so with `.resynced`; new records
    /// keep coming meanwhile.
    case lost(LossReason, sequence: UInt64)
    /// The gap is over: what changed in it has been told as records with `.recheck`.
    case resynced(Resync)
    /// The daemon ends the session; `.disconnected` follows.
    case detached(DetachReason)
    /// The connection ended: nil when the daemon hung up, else why. The
    /// sequence ends here unless `reconnect` is called.
    case disconnected(SystemError?)
    /// `reconnect` was granted this session. Nothing is registered in it.
    case connected(sessionID: UInt64)
    /// With `Reconnection`: from here on something may be missing.
    case outOfStep
    /// With `Reconnection`: all is told again. In TREE mode, read the tree.
    case inStep
  }
}

/// The events that wait for their consumer, as few bytes as they came in.
struct EventBuffer {
  typealias Event = HostWatchClient.Event

  private enum Item {
    case batch(HostWatchClient.RecordBatch)
    case event(Event)
  }

  /// What an item costs beside its packet: about the space in `items`.
  private static let itemBytes = 64

  private var items: [Item] = []
  // Items before it are gone; they are dropped when they are half of all.
  private var head = 0
  /// What the buffer holds, in bytes of packets.
  private(set) var bytes = 0

  var isEmpty: Bool { head == items.count }

  mutating func push(_ batch: HostWatchClient.RecordBatch) {
    items.append(.batch(batch))
    bytes += batch.packet.count + Self.itemBytes
  }

  mutating func push(_ event: Event) {
    items.append(.event(event))
    bytes += Self.itemBytes
  }

  /// The oldest event.
  mutating func pop() -> Event? {
    while head < items.count {
      switch items[head] {
      case .event(let event):
        drop(Self.itemBytes)
        return event
      case .batch(var batch):
        guard let record = batch.next() else {
          drop(batch.packet.count + Self.itemBytes)
          continue
        }
        items[head] = .batch(batch)
        return .record(record)
      }
    }
    return nil
  }

  private mutating func drop(_ size: Int) {
    bytes -= size
    // Frees the packet now rather than when the array is packed.
    items[head] = .event(.disconnected(nil))
    head += 1
    if head * 2 >= items.count && (head >= 64 || head == items.count) {
      items.removeFirst(head)
      head = 0
    }
  }
}
