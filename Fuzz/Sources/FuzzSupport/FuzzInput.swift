/// An input, read from its start. At its end everything is zero.
public struct FuzzInput {
  private let bytes: UnsafeBufferPointer<UInt8>
  private var at = 0

  public init(_ data: UnsafePointer<UInt8>, _ size: Int) {
    bytes = UnsafeBufferPointer(start: data, count: size)
  }

  public var isAtEnd: Bool { at >= bytes.count }

  public mutating func byte() -> UInt8 {
    guard at < bytes.count else { return 0 }
    defer { at += 1 }
    return bytes[at]
  }

  /// 0..<bound
  public mutating func below(_ bound: Int) -> Int { Int(byte()) % bound }

  /// Up to `limit` bytes; the length comes first, in two bytes.
  public mutating func block(_ limit: Int) -> [UInt8] {
    let wanted = min(Int(byte()) | Int(byte()) << 8, limit, bytes.count - at)
    defer { at += wanted }
    return Array(bytes[at..<at + wanted])
  }
}
