import CFuzzClient
import CHostWatch
import Glibc

@testable import HostWatch

/// What either library hands out of a packet.
struct Told: Equatable {
  var kind: UInt32
  var sequence: UInt64 = 0
  var numbers: [UInt64] = []
  var names: [[UInt8]] = []

  static func all(_ packet: HostWatchClient.Packet) -> [Told] {
    switch packet {
    case .events(let batch): batch.map(Told.init)
    case .lost(let reason, let sequence):
      [Told(kind: HOSTWATCH_LOST.rawValue, sequence: sequence, numbers: [UInt64(reason.rawValue)])]
    case .resynced(let resync):
      [
        Told(
          kind: HOSTWATCH_RESYNCED.rawValue, sequence: resync.sequence,
          numbers: [resync.nodesChecked, resync.nodesReported])
      ]
    case .detached(let reason):
      [Told(kind: HOSTWATCH_DETACHED.rawValue, numbers: [UInt64(reason.rawValue)])]
    case .reply: []
    }
  }

  init(kind: UInt32, sequence: UInt64 = 0, numbers: [UInt64] = [], names: [[UInt8]] = []) {
    (self.kind, self.sequence, self.numbers, self.names) = (kind, sequence, numbers, names)
  }

  init(_ record: HostWatchClient.Record) {
    kind = HOSTWATCH_EVENT.rawValue
    sequence = record.sequence
    numbers = [record.mask.rawValue, UInt64(record.flags.rawValue), record.origin]
    numbers.append(UInt64(UInt32(bitPattern: record.pid)))
    for node in [record.directory, record.node, record.newDirectory] {
      numbers += [node.nodeid, node.generation]
    }
    names = [record.name, record.newName, record.path, record.newPath].map(\.bytes)
  }

  /// Valid while the event is.
  private init(_ event: hostwatch_event) {
    kind = event.kind
    sequence = event.sequence
    switch event.kind {
    case HOSTWATCH_EVENT.rawValue:
      numbers = [event.mask, UInt64(event.flags), event.origin]
      numbers.append(UInt64(UInt32(bitPattern: event.pid)))
      for node in [event.dir, event.node, event.new_dir] {
        numbers += [node.nodeid, node.generation]
      }
      names = [
        Self.bytes(event.name, event.name_size), Self.bytes(event.new_name, event.new_name_size),
        Self.bytes(event.path, event.path_size), Self.bytes(event.new_path, event.new_path_size),
      ]
    case HOSTWATCH_RESYNCED.rawValue: numbers = [event.nodes_checked, event.nodes_reported]
    default: numbers = [UInt64(event.reason)]
    }
  }

  private static func bytes(_ start: UnsafePointer<CChar>, _ count: UInt32) -> [UInt8] {
    Array(UnsafeRawBufferPointer(start: start, count: Int(count)))
  }

  /// Sends the packets to a client of the C library, which has to tell just this, and
  /// then that the connection is over.
  static func check(_ packets: [[UInt8]], _ told: [Told]) {
    var daemon: Int32 = -1
    guard let client = fuzz_connect(&daemon) else { preconditionFailure("no client") }
    var isWhole = true
    for packet in packets where isWhole {
      isWhole = fuzz_send(daemon, packet, packet.count)
    }
    close(daemon)
    var event = hostwatch_event()
    var found: [Told] = []
    while true {
      precondition(hostwatch_next(client, &event, -1) == 1, "no event and no end")
      if event.kind == HOSTWATCH_DISCONNECTED.rawValue { break }
      found.append(Told(event))
    }
    // More than the socket takes was not sent.
    precondition(isWhole ? found == told : told.starts(with: found), "the libraries differ")
    precondition(event.text.map { strlen($0) > 0 } ?? false, "no word about the end")
    precondition(hostwatch_next(client, &event, 0) == -ENOTCONN, "something after the end")
    hostwatch_close(client)
  }
}
