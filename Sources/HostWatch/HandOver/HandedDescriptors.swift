import CFanotify
import Glibc

/// Where descriptors outlive the process: systemd's descriptor store, seen by
/// the library.
public protocol DescriptorStore: AnyObject {
  /// Keeps a second descriptor of the same open file under `name`; false when
  /// it could not be asked to or has no room.
  func add(_ descriptor: Int32, name: String) -> Bool
  /// Lets go of what is kept under `name`.
  func remove(_ name: String)
  /// What an earlier process had stored under `name`; each is given away once.
  func take(_ name: String) -> OwnedDescriptor?
}

/// What a process hands over: bytes, and the descriptors they speak of. These
/// are the hub's still.
public struct HandOver {
  /// The sessions, filesystems and shares, in the format of `HandOverState`.
  public let state: [UInt8]
  /// What the state's numbers stand for: connections, roots, pidfds.
  public let descriptors: [Int32]
}

/// Descriptors that came with a state. Those nobody takes are for `Hub.giveUp`; at the end
/// what is left is closed.
public final class HandedDescriptors {
  private var numbers: [Int32?]

  /// Takes `numbers` over.
  public init(_ numbers: [Int32]) { self.numbers = numbers }

  deinit { for case let number? in numbers { _ = close(number) } }

  /// How many came.
  public var count: Int { numbers.count }

  /// The descriptor at an index; nil for none, or for one that was taken before.
  func take(_ index: Int32) -> OwnedDescriptor? {
    guard index >= 0, Int(index) < numbers.count, let number = numbers[Int(index)] else {
      return nil
    }
    numbers[Int(index)] = nil
    return OwnedDescriptor(number)
  }

  /// Those that nobody has taken: the caller's from now on.
  func takeAll() -> [Int32] {
    defer { numbers = [] }
    return numbers.compactMap { $0 }
  }
}
