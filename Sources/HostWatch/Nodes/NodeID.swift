/// An object in a session's own terms.
///
/// A nodeid alone names nothing: servers use nodeids again, and filesystems
/// inode numbers. Only together with its generation is it an identity.
public struct NodeID: Hashable, Sendable {
  public var nodeid: UInt64
  public var generation: UInt64

  public init(nodeid: UInt64, generation: UInt64) {
    self.nodeid = nodeid
    self.generation = generation
  }

  /// The root of a share, in every mode.
  public static let root = NodeID(nodeid: 1, generation: 0)
  /// Nobody this session knows.
  public static let none = NodeID(nodeid: 0, generation: 0)
}
