import CHostWatch

/// A set of events, in fsnotify's values (`hostwatch_protocol.h`).
public struct EventMask: OptionSet, Sendable, Hashable, BitwiseCopyable {
  public let rawValue: UInt64
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// Read.
  public static let access = EventMask(rawValue: 0x1)
  /// Written to, truncated.
  public static let modify = EventMask(rawValue: 0x2)
  /// Mode, owner, times, extended attributes or the link count changed.
  public static let attrib = EventMask(rawValue: 0x4)
  /// Closed, having been open for writing.
  public static let closeWrite = EventMask(rawValue: 0x8)
  /// Closed, having been open for reading alone.
  public static let closeNoWrite = EventMask(rawValue: 0x10)
  /// Opened.
  public static let open = EventMask(rawValue: 0x20)
  /// A name was made in a directory.
  public static let create = EventMask(rawValue: 0x100)
  /// A name was removed from a directory.
  public static let delete = EventMask(rawValue: 0x200)
  /// The object is gone: its last name, and its last open descriptor.
  public static let deleteSelf = EventMask(rawValue: 0x400)
  /// Opened to be executed.
  public static let openExec = EventMask(rawValue: 0x1000)
  /// FAN_Q_OVERFLOW: only the kernel sends it.
  static let queueOverflow = EventMask(rawValue: 0x4000)
  /// A name was moved; one event with both sides.
  public static let rename = EventMask(rawValue: 0x1000_0000)
  /// The object is a directory. Asks for nothing.
  public static let isDirectory = EventMask(rawValue: 0x4000_0000)

  /// All that a session may ask for.
  public static let allEvents = EventMask(rawValue: UInt64(HW_EVENTS_ALL))
  /// What a server needs to keep its view true.
  public static let defaultEvents = EventMask(rawValue: UInt64(HW_EVENTS_DEFAULT))
  /// What changes which name holds which object.
  static let namespace: EventMask = [.create, .delete, .rename]
  /// What the reconciler needs of the kernel to tell which records are
  /// ambiguous: the namespace, and the evidence of links and deaths.
  static let reconciled: EventMask = [.create, .delete, .rename, .attrib, .deleteSelf]

  /// The names used in configuration files and on command lines.
  public static let names: [(name: String, mask: EventMask)] = [
    ("access", .access), ("modify", .modify), ("attrib", .attrib),
    ("close-write", .closeWrite), ("close-nowrite", .closeNoWrite), ("open", .open),
    ("create", .create), ("delete", .delete), ("delete-self", .deleteSelf),
    ("open-exec", .openExec), ("rename", .rename), ("isdir", .isDirectory),
  ]

  /// The event called `name`, or nil.
  public init?(name: String) {
    guard let found = EventMask.names.first(where: { $0.name == name }) else { return nil }
    self = found.mask
  }

  /// The names of the events in this set, in the order of their bits.
  public var eventNames: [String] {
    EventMask.names.filter { contains($0.mask) }.map(\.name)
  }
}
