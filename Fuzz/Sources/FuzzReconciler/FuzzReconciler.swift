import FuzzSupport

@testable import HostWatch

/// From the kernel's records to the sessions' packets: records that the parser takes, however
/// odd they are and whatever the filesystem answers, go through the reconciler and the router.
/// Nothing traps, every event passed on is one, none is lost or passed on twice, and
/// DELETE_SELF is an object's last.
///
/// Each read of an input is a byte that says how it ends (`Reads.end`), the records' length in
/// two bytes, and the records.
@_cdecl("LLVMFuzzerTestOneInput")
public func fuzzReconciler(_ data: UnsafePointer<UInt8>, _ size: Int) -> CInt {
  var input = FuzzInput(data, size)
  let reads = Reads()
  for _ in 0..<64 where !input.isAtEnd {
    let how = input.byte()
    reads.read(input.block(16384), how)
  }
  reads.finish()
  return 0
}
