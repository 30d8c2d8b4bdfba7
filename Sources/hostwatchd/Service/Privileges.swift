import CFanotify
import HostWatch

/// What the process may do once it serves: watch filesystems and find objects by
/// handle, and nothing else that root may.
///
/// Both stay for as long as it runs, since shares and sessions come and go: a mark and a
/// detached mount need CAP_SYS_ADMIN, open_by_handle_at(2) and directories that root's
/// uid may not search need CAP_DAC_READ_SEARCH.
enum Privileges {
  static let kept: UInt64 =
    1 << UInt64(hw_capability_sys_admin) | 1 << UInt64(hw_capability_dac_read_search)

  private static let advice =
    "give the unit CapabilityBoundingSet=CAP_SYS_ADMIN CAP_DAC_READ_SEARCH, or allow capset and prctl in SystemCallFilter="

  /// Gives up everything else, for ever and for whatever the process would start. Of
  /// the calling thread: it has to be the only one.
  static func drop() throws(StartFailure) {
    do throws(SystemError) {
      try checked(hw_prctl(Int32(hw_no_new_privileges), 1, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
      // Dropping from the bounding set needs a capability: before the others go.
      try dropBounding()
      // A kernel without ambient capabilities has none to clear.
      let cleared = hw_prctl(Int32(hw_ambient), UInt(hw_ambient_clear), 0)
      if cleared != -EINVAL { try checked(cleared, "prctl(PR_CAP_AMBIENT)") }
      try dropOthers()
    } catch {
      throw StartFailure(
        .noPermission,
        "privileges that are not needed cannot be given up: \(error); \(advice)")
    }
  }

  private static func dropBounding() throws(SystemError) {
    for capability in 0..<UInt(64) where kept & 1 << UInt64(capability) == 0 {
      let state = hw_prctl(Int32(hw_bounding_read), capability, 0)
      // Beyond the last one that the kernel has.
      if state == -EINVAL { return }
      guard try checked(state, "prctl(PR_CAPBSET_READ)") == 1 else { continue }
      let dropped = hw_prctl(Int32(hw_bounding_drop), capability, 0)
      // Without CAP_SETPCAP it stays; no_new_privs keeps it from being of use.
      if dropped != -EPERM { try checked(dropped, "prctl(PR_CAPBSET_DROP)") }
    }
  }

  /// Not asked for where there is nothing to drop: a unit need not allow it then.
  private static func dropOthers() throws(SystemError) {
    var sets = hw_capabilities()
    try checked(unsafe hw_capget(&sets), "capget")
    guard sets.permitted & ~kept != 0 || sets.inheritable != 0 else { return }
    sets.permitted &= kept
    sets.effective = sets.permitted
    sets.inheritable = 0
    try checked(unsafe hw_capset(&sets), "capset")
  }

  @discardableResult
  private static func checked(_ result: Int32, _ call: String) throws(SystemError) -> Int32 {
    guard result >= 0 else { throw SystemError(call, -result) }
    return result
  }
}
