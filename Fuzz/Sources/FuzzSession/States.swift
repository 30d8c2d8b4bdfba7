import Glibc

@testable import HostWatch

/// What daemons hand over is kept as seeds of FuzzHandOver, if HOSTWATCH_FUZZ_STATES names a
/// folder to put it into.
enum States {
  private static let folder = getenv("HOSTWATCH_FUZZ_STATES").map { String(cString: $0) }
  nonisolated(unsafe) private static var count = 0
  /// Seeds are small.
  private static let largest = 8192

  static func keep(_ left: HandOver) {
    guard let folder, left.state.count <= largest else { return }
    count += 1
    guard let file = fopen("\(folder)/state-\(count)", "w") else { fatalError("fopen: \(errno)") }
    let seed = [UInt8(left.descriptors.count)] + left.state[HandOverEncoder.headerSize...]
    fwrite(seed, 1, seed.count, file)
    fclose(file)
  }
}
