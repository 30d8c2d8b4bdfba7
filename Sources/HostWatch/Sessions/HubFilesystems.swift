import CFanotify
import CHostWatch
import Glibc

extension Hub {
  // MARK: Filesystems

  /// The filesystem that a descriptor's object is on, watched from now on.
  func filesystem(for descriptor: Int32) throws(Refusal) -> WatchedFilesystem {
    if let status = try? Syscall.status(of: descriptor),
      let known = filesystems.values.first(where: { $0.knows(device: status.device) })
    {
      return known
    }
    do {
      let made = try WatchedFilesystem(directory: descriptor, report: report)
      if let known = filesystems[made.device] { return known }
      try made.start(in: loop)
      made.failed = { [unowned self] in filesystemFailed($0, $1) }
      filesystems[made.device] = made
      report(
        Diagnostic(
          .filesystemAttached, .info,
          "Watching \(made.name) \(MountTable.text(made.device))."))
      return made
    } catch let error as WatchError {
      throw Refusal(error.cause.code, error.description)
    } catch let error as SystemError {
      throw Refusal(error.code, "\(error).")
    } catch {
      throw Refusal(EIO, "\(error)")
    }
  }

  func releaseIfUnused(_ filesystem: WatchedFilesystem) {
    guard filesystem.isUnused, filesystems[filesystem.device] === filesystem else { return }
    forget(filesystem)
  }

  func forget(_ filesystem: WatchedFilesystem) {
    filesystem.stop()
    filesystems[filesystem.device] = nil
    pastEvents += filesystem.recordsRead
    pastDelivered += filesystem.router.delivered
    pastCorrected += filesystem.reconciler.counters.corrected
  }

  func filesystemFailed(_ filesystem: WatchedFilesystem, _ reason: String) {
    report(
      Diagnostic(
        .filesystemFailed, .error,
        "\(filesystem.name) \(MountTable.text(filesystem.device)) cannot be watched any more: \(reason)"
      ))
    detach(filesystem)
    retryShares()
  }

  /// Ends all that depends on a filesystem that has gone.
  func detach(_ filesystem: WatchedFilesystem) {
    guard filesystems[filesystem.device] === filesystem else { return }
    filesystem.drain()
    for share in shares where share.filesystem === filesystem { share.lose("unmounted") }
    for session in Array(filesystem.sessions.values) {
      session.detach(UInt32(HW_DETACHED_UNMOUNTED))
    }
    forget(filesystem)
    report(
      Diagnostic(
        .filesystemDetached, .notice,
        "\(filesystem.name) \(MountTable.text(filesystem.device)) was unmounted."))
  }

  // MARK: Mount table

  func watchMountTable() throws(SystemError) {
    let fd = unsafe MountTable.path.withCString { unsafe hw_openat(AT_FDCWD, $0, O_RDONLY, 0) }
    let table = OwnedDescriptor(try checked(fd, "open(\(MountTable.path))"))
    let source = try loop.watch(table.rawValue, for: .exceptional, priority: .housekeeping) {
      [unowned self] _ in mountTableChanged()
    }
    mountTable = (table.take(), source)
  }

  func mountTableChanged() {
    do throws(SystemError) {
      let mounted = try MountTable.devices()
      for filesystem in Array(filesystems.values)
      where filesystem.isInMountTable && !mounted.contains(filesystem.device) {
        detach(filesystem)
      }
    } catch {
      report(
        Diagnostic(.other, .error, "The mount table cannot be read: \(error).", errno: error.code))
    }
    checkShares()
  }
}
