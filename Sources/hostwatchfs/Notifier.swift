import CFuse
import CHostWatchFS
import Glibc

/// Notifications to the kernel. Each waits for locks of the kernel that a
/// request may hold meanwhile, so none is sent from a handler or with a lock
/// held.
///
/// ENOENT is no failure: the kernel does not have what was to be invalidated.
@safe final class Notifier: @unchecked Sendable {
  // libfuse's session, which outlives this; libfuse allows calls of any thread.
  private let session: OpaquePointer
  /// FUSE_NOTIFY_INC_EPOCH is there (Linux 6.16); set by `probe`.
  private(set) var hasEpoch = false

  @unsafe init(_ session: OpaquePointer) { unsafe self.session = session }

  /// Finds out by trying what the kernel can do; before any client's request.
  func probe() { hasEpoch = incrementEpoch() == 0 }

  /// 0 or a negative errno, here and below.
  func incrementEpoch() -> Int32 { unsafe hwfs_notify_epoch(fuse_session_fd(session)) }

  /// Drops a node's attributes, and its pages unless `attributesOnly`; of a
  /// directory these are its cached listing.
  func invalidate(_ node: UInt64, attributesOnly: Bool) -> Int32 {
    unsafe fuse_lowlevel_notify_inval_inode(session, node, attributesOnly ? -1 : 0, 0)
  }

  /// Drops what a name leads to, or that it is absent.
  func invalidate(_ entry: View.Entry) -> Int32 {
    unsafe entry.name.withCString {
      unsafe fuse_lowlevel_notify_inval_entry(session, entry.parent, $0, entry.name.count)
    }
  }

  /// Lets the kernel ask again before it uses a name.
  func expire(_ entry: View.Entry) -> Int32 {
    unsafe entry.name.withCString {
      unsafe fuse_lowlevel_notify_expire_entry(
        session, entry.parent, $0, entry.name.count, FUSE_LL_EXPIRE_ONLY)
    }
  }

  /// Drops a name and says that its object is gone.
  func delete(_ entry: View.Entry, _ node: UInt64) -> Int32 {
    unsafe entry.name.withCString {
      unsafe fuse_lowlevel_notify_delete(session, entry.parent, node, $0, entry.name.count)
    }
  }
}
