/// An object in a session's own terms.
///
/// A nodeid alone names nothing: servers use nodeids again, and filesystems
/// inode numbers. Only together with its generation is it an identity.
public struct NodeID: Hashable, Sendable {
  /// FUSE's nodeid; in TREE mode the inode number.
  public var nodeid: UInt64
  /// Tells apart what had the same nodeid at different times.
  public var generation: UInt64

  /// Both together name an object.
  public init(nodeid: UInt64, generation: UInt64) {
    self.nodeid = nodeid
    self.generation = generation
  }

  /// The root of a share, in every mode.
  public static let root = NodeID(nodeid: 1, generation: 0)
  /// Nobody this session knows.
  public static let none = NodeID(nodeid: 0, generation: 0)
}
