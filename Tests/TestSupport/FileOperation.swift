/// What a process does to a filesystem, as the simulator and a real one
/// perform it.
package enum FileOperation: Sendable, CustomStringConvertible {
  package typealias Entry = KernelSimulator.Entry

  /// mknod(2), mkdir(2): nothing is opened.
  case create(Entry, isDirectory: Bool)
  /// Opened for writing, written to, closed.
  case write(Entry)
  case changeMode(Entry)
  case link(Entry, Entry)
  case remove(Entry)
  case rename(Entry, Entry)
  case exchange(Entry, Entry)
  /// Opened for reading, and kept so until `releaseAll`.
  case hold(Entry)
  case releaseAll

  /// One that has a fair chance to succeed.
  package static func random(
    in simulator: KernelSimulator, names: [String], using generator: inout SeededGenerator
  ) -> FileOperation {
    let a = entry(simulator, names, &generator)
    let b = entry(simulator, names, &generator)
    switch Int.random(in: 0..<20, using: &generator) {
    case 0..<4: return .create(a, isDirectory: false)
    case 4: return .create(a, isDirectory: true)
    case 5: return .write(a)
    case 6: return .changeMode(a)
    case 7..<9: return .link(a, b)
    case 9..<12: return .remove(a)
    case 12..<17: return .rename(a, b)
    case 17: return .exchange(a, b)
    case 18: return .hold(a)
    default: return Int.random(in: 0..<4, using: &generator) == 0 ? .releaseAll : .hold(a)
    }
  }

  private static func entry(
    _ simulator: KernelSimulator, _ names: [String], _ generator: inout SeededGenerator
  ) -> Entry {
    let directories = simulator.inodes.values.filter { $0.isDirectory && $0.links > 0 }
      .map(\.number).sorted()
    let directory = directories.prefix(4).randomElement(using: &generator) ?? 1
    return Entry(directory: directory, name: names.randomElement(using: &generator) ?? "a")
  }

  package var description: String {
    func text(_ entry: Entry) -> String { "\(entry.directory)/\(entry.name)" }
    return switch self {
    case .create(let entry, let isDirectory):
      "\(isDirectory ? "mkdir" : "create") \(text(entry))"
    case .write(let entry): "write \(text(entry))"
    case .changeMode(let entry): "chmod \(text(entry))"
    case .link(let from, let to): "link \(text(from)) \(text(to))"
    case .remove(let entry): "remove \(text(entry))"
    case .rename(let from, let to): "rename \(text(from)) \(text(to))"
    case .exchange(let a, let b): "exchange \(text(a)) \(text(b))"
    case .hold(let entry): "hold \(text(entry))"
    case .releaseAll: "release"
    }
  }
}

extension KernelSimulator {
  package func perform(_ operation: FileOperation, pid: Int32) {
    switch operation {
    case .create(let entry, let isDirectory): create(entry, isDirectory: isDirectory, pid: pid)
    case .write(let entry): write(entry, pid: pid)
    case .changeMode(let entry): changeMode(entry, pid: pid)
    case .link(let from, let to): link(from, to, pid: pid)
    case .remove(let entry): remove(entry, pid: pid)
    case .rename(let from, let to): rename(from, to, pid: pid)
    case .exchange(let a, let b): exchange(a, b, pid: pid)
    case .hold(let entry): hold(entry)
    case .releaseAll: releaseAll(pid: pid)
    }
  }
}
