import CFanotify

/// How a filesystem's handles carry the inode number and its generation.
///
/// Handle types are used by several filesystems with several meanings, so a
/// layout goes by the filesystem, the type and the length together. What does
/// not fit is refused: nil, never a guess.
enum InodeLayout: Equatable {
  /// ext4: ino32, generation32.
  case ext4
  /// tmpfs: generation32, ino low32, ino high32.
  case tmpfs
  /// xfs: ino64, generation32.
  case xfs
  /// btrfs: objectid64, root64, generation32.
  case btrfs
  /// overlay: wraps a handle of the layer that holds the object.
  case overlay

  /// The layout of the filesystem with this f_type; nil where none is known,
  /// which rules TREE mode out there.
  init?(magic: UInt32) {
    switch Int(magic) {
    case Int(hw_magic_ext4): self = .ext4
    case Int(hw_magic_tmpfs): self = .tmpfs
    case Int(hw_magic_xfs): self = .xfs
    case Int(hw_magic_btrfs): self = .btrfs
    case Int(hw_magic_overlay): self = .overlay
    default: return nil
    }
  }

  /// The inode number and generation in `handle`, or nil when its type or
  /// length is not this filesystem's.
  func identity(in handle: HandleView) -> NodeID? {
    switch (self, handle.type, handle.count) {
    case (.ext4, 0x01, 8), (.ext4, 0x02, 16):
      return node(UInt64(handle.load(0, as: UInt32.self)), handle.load(4, as: UInt32.self))
    case (.tmpfs, 0x01, 12):
      let low = UInt64(handle.load(4, as: UInt32.self))
      let high = UInt64(handle.load(8, as: UInt32.self))
      return node(high << 32 | low, handle.load(0, as: UInt32.self))
    case (.xfs, 0x81, 12), (.xfs, 0x82, 24):
      return node(handle.load(0, as: UInt64.self), handle.load(8, as: UInt32.self))
    case (.btrfs, 0x4d, 20), (.btrfs, 0x4e, 32), (.btrfs, 0x4f, 40):
      return node(handle.load(0, as: UInt64.self), handle.load(16, as: UInt32.self))
    case (.overlay, 0xf8, 20...):
      return wrapped(handle)
    default:
      return nil
    }
  }

  /// nil for inode number 0, which would be nobody.
  private func node(_ inode: UInt64, _ generation: UInt32) -> NodeID? {
    inode == 0 ? nil : NodeID(nodeid: inode, generation: UInt64(generation))
  }

  /// What is inside an overlay handle: `struct ovl_fb` behind three bytes of
  /// padding: version, magic, len, flags, type, uuid[16], then the handle of
  /// the layer, which is decoded by its type and length.
  private func wrapped(_ handle: HandleView) -> NodeID? {
    let header = 3 + 5 + 16
    guard handle.count > header, handle.load(4, as: UInt8.self) == 0xfb else { return nil }
    let type = handle.load(7, as: UInt8.self)
    switch (type, Int(handle.load(5, as: UInt8.self)) - (header - 3)) {
    case (0x01, 8) where handle.count >= header + 8:
      return node(
        UInt64(handle.load(header, as: UInt32.self)), handle.load(header + 4, as: UInt32.self))
    case (0x01, 12) where handle.count >= header + 12:
      let low = UInt64(handle.load(header + 4, as: UInt32.self))
      let high = UInt64(handle.load(header + 8, as: UInt32.self))
      return node(high << 32 | low, handle.load(header, as: UInt32.self))
    case (0x81, 12) where handle.count >= header + 12:
      return node(handle.load(header, as: UInt64.self), handle.load(header + 8, as: UInt32.self))
    case (0x4d, 20) where handle.count >= header + 20:
      return node(handle.load(header, as: UInt64.self), handle.load(header + 16, as: UInt32.self))
    default:
      return nil
    }
  }
}
