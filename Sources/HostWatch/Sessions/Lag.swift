/// How long batches took from the moment the loop found their group readable to
/// the moment what came of them had been handed to the sessions' sockets, the
/// delay included by which reads are held back. Microseconds, CLOCK_MONOTONIC.
///
/// For a filesystem it ends when all its sessions have been tried; for a session,
/// when its socket has taken everything. What a session that does not read is
/// queued meanwhile counts together, from the first of it on.
///
/// The kernel puts no time on an event: how long it was queued before the loop
/// looked is not in it.
struct Lag {
  /// Upper bounds of the buckets; one more holds the rest.
  static let boundsMicroseconds: [UInt64] = [
    50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000, 250_000, 1_000_000,
  ]

  /// Batches in each bucket, not cumulative.
  private(set) var counts = [UInt64](repeating: 0, count: boundsMicroseconds.count + 1)
  private(set) var sum: UInt64 = 0

  mutating func add(_ microseconds: UInt64) {
    counts[Self.boundsMicroseconds.firstIndex { microseconds <= $0 } ?? counts.count - 1] += 1
    sum &+= microseconds
  }

  mutating func add(_ other: Lag) {
    for index in counts.indices { counts[index] += other.counts[index] }
    sum &+= other.sum
  }
}
