/// A name where it lies in memory: no NUL, not necessarily UTF-8. Valid as
/// long as that memory.
@safe struct NameView {
  private let base: UnsafeRawPointer?
  let count: Int

  @unsafe init(_ base: UnsafeRawPointer?, count: Int) {
    unsafe self.base = base
    self.count = count
  }

  /// Calls `body` with a view of `bytes`, valid during the call alone.
  static func with<Result>(_ bytes: [UInt8], _ body: (NameView) -> Result) -> Result {
    unsafe bytes.withUnsafeBytes { body(unsafe NameView($0.baseAddress, count: $0.count)) }
  }

  static var none: NameView { unsafe NameView(nil, count: 0) }

  var buffer: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: base, count: count) }
  var bytes: [UInt8] { unsafe [UInt8](buffer) }

  /// The name of an event on a directory itself.
  var isDot: Bool { unsafe count == 1 && buffer[0] == 0x2e }

  func hash(seed: UInt64) -> UInt64 {
    guard let base = unsafe base else { return fold(seed) }
    return unsafe hashBytes(base, count, seed: seed)
  }

  static func == (a: NameView, b: NameView) -> Bool {
    unsafe a.buffer.elementsEqual(b.buffer)
  }

  /// The inode number in the name of an O_TMPFILE object ("#123"), or nil.
  var temporaryInode: UInt64? {
    let bytes = unsafe buffer
    guard count >= 2, count <= 21, unsafe bytes[0] == 0x23 else { return nil }
    var number: UInt64 = 0
    for index in 1..<count {
      let byte = unsafe bytes[index]
      guard byte >= 0x30, byte <= 0x39 else { return nil }
      let (product, overflow) = number.multipliedReportingOverflow(by: 10)
      let (sum, carry) = product.addingReportingOverflow(UInt64(byte - 0x30))
      if overflow || carry { return nil }
      number = sum
    }
    return number
  }
}

/// One change, in the terms of the host: what the reconciler makes of kernel
/// records and the router turns into each session's terms.
///
/// CREATE, DELETE and RENAME stand alone (with ISDIR); the others may be
/// OR-ed. A RENAME has both directories and both names. The views are valid
/// while the event is being routed.
struct RemoteEvent {
  var mask: EventMask
  /// `HW_RECHECK`, `HW_CORRECTED`, `HW_REPLACED`; the router adds the rest.
  var flags: UInt32 = 0
  /// 0 where nobody is known to have done it.
  var pid: Int32 = 0
  var object: HandleView?
  var directory: HandleView?
  var name = NameView.none
  var newDirectory: HandleView?
  var newName = NameView.none
  /// With `HW_REPLACED`: what had the new name.
  var replaced: HandleView?
  /// It happened to an object without a name (O_TMPFILE): only the directory
  /// in which it was made is known.
  var isUnnamed = false

  var isDirectory: Bool { mask.contains(.isDirectory) }
}
