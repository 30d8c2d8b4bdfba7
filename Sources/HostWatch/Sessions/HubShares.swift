import CFanotify
import CHostWatch
import Glibc

extension Hub {
  // MARK: Shares

  /// Replaces the configured shares: new ones are attached, those that are
  /// gone detached (DETACHED reason 2). What cannot be attached is reported
  /// and tried again when the mount table changes.
  public func setShares(_ wanted: [ShareConfiguration]) {
    var kept: [Share] = []
    for share in shares {
      if let same = wanted.first(where: {
        $0.name == share.configuration.name && $0.path == share.configuration.path
      }) {
        share.configuration = same
        revoke(share)
        kept.append(share)
      } else {
        remove(share)
      }
    }
    for configuration in wanted
    where !kept.contains(where: { $0.configuration.name == configuration.name }) {
      kept.append(Share(configuration))
    }
    shares = kept
    retryShares()
  }

  /// Ends the sessions of those whom the share does not allow any more.
  private func revoke(_ share: Share) {
    for session in Array(sessions.values)
    where session.share == share.configuration.name && !session.isAllowed(share.configuration) {
      session.detach(UInt32(HW_DETACHED_REMOVED))
    }
  }

  /// Tells a share's sessions all that happened, then that it is over.
  private func detachSessions(of share: Share, _ reason: UInt32) {
    share.filesystem?.finish()
    for session in Array(sessions.values) where session.share == share.configuration.name {
      session.detach(reason)
    }
  }

  func remove(_ share: Share) {
    detachSessions(of: share, UInt32(HW_DETACHED_REMOVED))
    release(share)
    report(
      Diagnostic(
        .shareRemoved, .notice, "The share left the configuration.",
        share: share.configuration.name))
  }

  func release(_ share: Share) {
    guard let filesystem = share.filesystem else { return }
    share.filesystem = nil
    filesystem.shareCount -= 1
    releaseIfUnused(filesystem)
  }

  func retryShares() {
    for share in shares where share.filesystem == nil { attach(share) }
  }

  func attach(_ share: Share) {
    let name = share.configuration.name
    do throws(Refusal) {
      let target = try resolve(share.configuration)
      share.filesystem = target.filesystem
      share.root = target.handle
      share.error = nil
      target.filesystem.shareCount += 1
      report(
        Diagnostic(
          .shareReady, .info, "The share \(share.configuration.path) is ready.", share: name))
    } catch {
      if share.error != error.text {
        report(
          Diagnostic(
            .shareUnavailable, .error,
            "The share \(share.configuration.path) is not available: \(error.text)", share: name,
            errno: error.code))
      }
      share.error = error.text
    }
  }

  /// Opens a share's path as it is now. The descriptor is closed with the
  /// target, so that it keeps no mount busy.
  func resolve(_ share: ShareConfiguration) throws(Refusal) -> Session.Target {
    let directory: OwnedDescriptor
    do throws(SystemError) {
      directory = try Syscall.openDirectory(share.path)
    } catch {
      throw Refusal(error.code, "\(error).")
    }
    let list = DescriptorList([directory.take()])
    let descriptor = list.numbers[0]
    let filesystem = try filesystem(for: descriptor)
    do throws(SystemError) {
      return Session.Target(
        filesystem: filesystem, handle: try Syscall.handle(of: descriptor), path: share.path,
        share: share, descriptor: descriptor, opened: list)
    } catch {
      releaseIfUnused(filesystem)
      throw Refusal(error.code, "The share's root has no file handle: \(error).")
    }
  }

  func share(named name: String) -> Share? {
    shares.first { $0.configuration.name == name }
  }

  /// A share's root, for a new session.
  func open(_ share: Share) throws(Refusal) -> Session.Target {
    check(share)
    guard share.filesystem != nil else {
      throw Refusal(ENODEV, "The share is not available now: \(share.error ?? "not attached.")")
    }
    return try resolve(share.configuration)
  }

  func checkShares() {
    for share in shares { check(share) }
  }

  /// Compares what a share's path leads to with what is attached: another
  /// filesystem may have been mounted there, or that one may be back.
  func check(_ share: Share) {
    if let filesystem = share.filesystem {
      do throws(Refusal) {
        let target = try resolve(share.configuration)
        if target.filesystem === filesystem, target.handle == share.root { return }
      } catch {
        // Only what says that the directory is not there any more counts.
        let gone = [ENOENT, ENOTDIR, ESTALE, ELOOP, ENODEV, EOPNOTSUPP, EXDEV]
        guard gone.contains(error.code) else {
          lookAtMountsAgain()
          return report(
            Diagnostic(
              .shareUnavailable, .warning,
              "The share \(share.configuration.path) could not be checked, and is tried again: \(error.text)",
              share: share.configuration.name, errno: error.code))
        }
      }
      detachSessions(of: share, UInt32(HW_DETACHED_UNMOUNTED))
      lose(share, "its path leads elsewhere now")
      filesystem.shareCount -= 1
      releaseIfUnused(filesystem)
    }
    attach(share)
  }

  /// A share's filesystem has gone, or is elsewhere.
  func lose(_ share: Share, _ reason: String) {
    share.lose(reason)
    report(
      Diagnostic(
        .shareDetached, .notice,
        "The share's filesystem is gone from \(share.configuration.path); it is watched again when it is back.",
        share: share.configuration.name))
  }

  /// For messages: where a descriptor is.
  func path(of descriptor: Int32) -> String {
    guard let copy = try? OwnedDescriptor(checked(hw_duplicate(descriptor), "dup")),
      let bytes = try? Syscall.path(of: copy)
    else { return "?" }
    return String(decoding: bytes, as: UTF8.self)
  }
}

/// A share of the configuration, and what it is attached to.
final class Share {
  var configuration: ShareConfiguration
  /// nil while it is not available.
  var filesystem: WatchedFilesystem?
  var root: FileHandle?
  /// Why it is not available.
  var error: String?
  /// Of its sessions that have ended.
  var past = Traffic()

  init(_ configuration: ShareConfiguration) { self.configuration = configuration }

  func lose(_ reason: String) {
    filesystem = nil
    root = nil
    error = reason
  }
}
