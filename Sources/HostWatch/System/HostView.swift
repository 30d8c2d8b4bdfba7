import CFanotify
import Glibc

/// Whether a path means the same in this mount namespace and in the host's.
///
/// A service manager's sandbox may put something else where the host has a
/// share. Both mount tables are walked as the kernel walks a path, so nothing of
/// the host's namespace has to be opened.
public enum HostView {
  /// How a path is hidden.
  public struct Hidden: Equatable, Sendable {
    /// Where the foreign mount is.
    public let mountPoint: String
    /// The directory of its filesystem that it shows.
    public let root: String
    /// The foreign mount's filesystem type, as mountinfo has it.
    public let type: String
  }

  /// - Parameters:
  ///   - path: absolute, without symbolic links.
  ///   - own: mountinfo of this namespace.
  ///   - host: mountinfo of the host's.
  /// - Returns: nil when both lead to the same directory of the same superblock.
  public static func hidden(_ path: String, own: [UInt8], host: [UInt8]) -> Hidden? {
    let parts = components(Array(path.utf8))
    guard let here = place(parts, MountTable.parse(own)),
      let there = place(parts, MountTable.parse(host))
    else { return nil }
    if here.mount.device == there.mount.device && here.directory == there.directory { return nil }
    return Hidden(
      mountPoint: String(decoding: here.mount.mountPoint, as: UTF8.self),
      root: String(decoding: here.mount.root, as: UTF8.self),
      type: String(decoding: here.mount.type, as: UTF8.self))
  }

  /// Where a path leads: the mount, and the directory within its filesystem.
  private static func place(_ parts: [[UInt8]], _ table: [MountTable.Entry])
    -> (mount: MountTable.Entry, directory: [[UInt8]])?
  {
    let ids = Set(table.map(\.id))
    guard var current = table.last(where: { !ids.contains($0.parent) || $0.parent == $0.id }) else {
      return nil
    }
    // A table that was read while mounts were moved may have two on each other: no way leads
    // over more mounts than there are.
    for _ in table {
      // The next mount on the way is the one that is met first.
      let next = table.filter {
        $0.parent == current.id && $0.id != current.id
          && parts.starts(with: components($0.mountPoint))
      }.min { components($0.mountPoint).count < components($1.mountPoint).count }
      guard let next else { break }
      current = next
    }
    let rest = parts.dropFirst(components(current.mountPoint).count)
    return (current, components(current.root) + rest)
  }

  private static func components(_ path: [UInt8]) -> [[UInt8]] {
    path.split(separator: UInt8(ascii: "/")).map(Array.init)
  }
}
