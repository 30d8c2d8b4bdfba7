import HostWatch

/// A name in a directory, in the nodeids that the mount's kernel was given.
package struct Place: Hashable, Sendable {
  package var directory: NodeID
  package var name: [UInt8]

  package init(_ directory: NodeID, _ name: [UInt8]) {
    self.directory = directory
    self.name = name
  }
}

/// What the host has of an object at this moment.
package struct ObjectStatus: Sendable {
  /// st_mode, with the type.
  package var mode: UInt32
  package var links: UInt32
  package var deviceMajor: UInt32
  package var deviceMinor: UInt32
  package var accessed: Time
  package var modified: Time

  package struct Time: Sendable {
    package var seconds: Int64
    package var nanoseconds: Int64

    package init(seconds: Int64, nanoseconds: Int64) {
      self.seconds = seconds
      self.nanoseconds = nanoseconds
    }
  }

  package init(
    mode: UInt32, links: UInt32, deviceMajor: UInt32 = 0, deviceMinor: UInt32 = 0,
    accessed: Time, modified: Time
  ) {
    self.mode = mode
    self.links = links
    self.deviceMajor = deviceMajor
    self.deviceMinor = deviceMinor
    self.accessed = accessed
    self.modified = modified
  }
}

/// What the engine needs of the server whose mount it replays on.
///
/// The *view* is what the kernel was told: which node a name leads to. It holds
/// what was answered last, whether or not the kernel still has it cached. The
/// server keeps it for all requests, the engine reads and changes it between
/// them. No function but the notifications may wait for a request of the mount, and
/// none is called with a lock of the engine's held.
///
/// What looks at the host throws if that fails (no descriptor is free, the disk
/// fails): then nothing is known, least of all that something is gone.
package protocol ReplayMount: AnyObject, Sendable {
  /// Whether the kernel has this node: the root, or one with lookups.
  func isKnown(_ node: NodeID) -> Bool
  /// The view.
  func entry(_ place: Place) -> NodeID?
  func places(of node: NodeID) -> [Place]
  func entries(in directory: NodeID) -> [(name: [UInt8], node: NodeID)]
  func setEntry(_ place: Place, to node: NodeID)
  func removeEntry(_ place: Place)

  /// S_IFMT of the node, nil if there is no such node.
  func kind(of node: NodeID) -> UInt32?
  /// What the host has; nil if it has it no more. With no name left but still
  /// open somewhere, links is 0.
  func status(of node: NodeID) throws(SystemError) -> ObjectStatus?
  /// Whether the host has this very object under this name now.
  func isOnHost(_ node: NodeID, _ place: Place) throws(SystemError) -> Bool
  /// The highest link count that the kernel may have of it.
  func toldLinks(of node: NodeID) -> UInt64
  /// Looks the name up on the host, makes and registers a node if the object
  /// has none, and keeps it until `release`. Nil if there is nothing.
  func find(_ place: Place) throws(SystemError) -> NodeID?
  /// A node that stands for what is gone: not on the host, and never cached.
  func makePhantom(kind: UInt32) -> NodeID
  /// Keeps a node that is there; false if there is none.
  func retain(_ node: NodeID) -> Bool
  func release(_ node: NodeID)
  /// Closes what the server itself holds open of the object for its caches.
  func closeCached(_ node: NodeID)

  /// fuse_lowlevel_notify_inval_entry and _inval_inode. Not from a handler.
  func invalidateEntry(_ place: Place)
  /// Attributes, and with `contents` pages; a directory's pages are its listing.
  func invalidateNode(_ node: NodeID, contents: Bool)
  /// The kernel asks again for this entry before it uses it.
  func expireEntry(_ place: Place)

  /// What was not replayed, for the log: once for each reason, with counts.
  func replayFailed(_ what: String, _ place: Place?, errno: Int32)
}
