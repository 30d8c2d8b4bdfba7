import FuzzSupport

@testable import HostWatch

/// A mount namespace that an input has made, each mount on top of where its path leads.
struct Mounts {
  /// A mount as the input chooses it.
  struct Made {
    let at: [[UInt8]]
    let root: [UInt8]
    let source: [UInt8]
    let type: [UInt8]
    let device: UInt8

    init(_ input: inout FuzzInput) {
      at = (0..<input.below(4)).map { _ in Mounts.name(&input) }
      root = Mounts.path((0..<input.below(3)).map { _ in Mounts.name(&input) })
      source = input.block(64).filter { $0 != 0 }
      type = Mounts.types[input.below(Mounts.types.count)]
      device = input.byte()
    }
  }

  private static let types = ["ext4", "fuse.a", "fuse", "tmpfs"].map { Array($0.utf8) }
  private var mounts: [(entry: MountTable.Entry, at: [[UInt8]], source: [UInt8])] = []

  /// - Parameter first: the id of the first mount; the others' come behind it.
  init(first: UInt8) {
    let entry = MountTable.Entry(
      id: UInt64(first), parent: 0x1_0000, device: 0x801, root: [0x2f], mountPoint: [0x2f],
      type: Self.types[0])
    mounts = [(entry, [], [])]
  }

  var entries: [MountTable.Entry] { mounts.map(\.entry) }

  mutating func add(_ made: Made) {
    let parent = mounts[walk(made.at)].entry.id
    let entry = MountTable.Entry(
      id: mounts[0].entry.id + UInt64(mounts.count), parent: parent, device: UInt64(made.device),
      root: made.root, mountPoint: Self.path(made.at), type: made.type)
    mounts.append((entry, made.at, made.source))
  }

  /// Where a path leads: the superblock, and the directory within it.
  func place(of path: String) -> String {
    let parts = path.utf8.split(separator: 0x2f).map(Array.init)
    let mount = mounts[walk(parts)]
    let root = mount.entry.root.split(separator: 0x2f).map(Array.init)
    return "\(mount.entry.device) \(root + parts.dropFirst(mount.at.count))"
  }

  /// As the kernel walks: name by name, and at each up through what is mounted there.
  private func walk(_ parts: [[UInt8]]) -> Int {
    var current = 0
    for count in 0...parts.count {
      let here = Array(parts[..<count])
      while let next = mounts.indices.first(where: {
        mounts[$0].entry.parent == mounts[current].entry.id && mounts[$0].at == here
      }) {
        current = next
      }
    }
    return current
  }

  /// As show_mountinfo() of the kernel's fs/proc_namespace.c writes it.
  var text: [UInt8] {
    var text: [UInt8] = []
    for (entry, _, source) in mounts {
      let numbers = "\(entry.id) \(entry.parent) \(MountTable.text(entry.device)) "
      text += Array(numbers.utf8)
      text += Self.escape(entry.root, " \t\n\\") + [0x20]
      text += Self.escape(entry.mountPoint, " \t\n\\") + Array(" rw,relatime".utf8)
      text += Array((entry.id % 2 == 0 ? " shared:1 - " : " - ").utf8)
      text += entry.type + [0x20] + Self.escape(source, " \t\n\\#") + Array(" rw\n".utf8)
    }
    return text
  }

  private static func escape(_ bytes: [UInt8], _ characters: String) -> [UInt8] {
    bytes.flatMap { byte -> [UInt8] in
      guard characters.utf8.contains(byte) else { return [byte] }
      let digits = String(byte, radix: 8)
      return Array("\\".utf8) + Array(String(repeating: "0", count: 3 - digits.count).utf8)
        + Array(digits.utf8)
    }
  }

  /// One of a few names or any, so that mounts meet.
  private static func name(_ input: inout FuzzInput) -> [UInt8] {
    let which = input.byte()
    if which < 128 { return Array(["a", "b", "a b", "\\040"][Int(which) % 4].utf8) }
    let name = input.block(32).filter { $0 != 0 && $0 != 0x2f }
    return name.isEmpty || name == [0x2e] || name == [0x2e, 0x2e] ? [0x63] : name
  }

  private static func path(_ parts: [[UInt8]]) -> [UInt8] {
    parts.isEmpty ? [0x2f] : parts.flatMap { [0x2f] + $0 }
  }
}
