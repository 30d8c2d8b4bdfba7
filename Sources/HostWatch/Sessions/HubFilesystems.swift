import CFanotify
import CHostWatch
import Glibc

extension Hub {
  // MARK: Filesystems

  /// The filesystem that a descriptor's object is on, watched from now on.
  func filesystem(for descriptor: Int32) throws(Refusal) -> WatchedFilesystem {
    let status: Syscall.Status
    do throws(SystemError) {
      status = try Syscall.status(of: descriptor)
    } catch {
      throw Refusal(error.code, "The directory cannot be looked at: \(error).")
    }
    if let known = filesystems.values.first(where: { $0.knows(device: status.device) }) {
      return known
    }
    try refuseRemote(descriptor, status)
    do {
      let made = try WatchedFilesystem(directory: descriptor, report: report)
      if let known = filesystems[made.device] { return known }
      do {
        try made.start(in: loop)
      } catch {
        made.stop()
        throw error
      }
      made.failed = { [unowned self] in filesystemFailed($0, $1) }
      filesystems[made.device] = made
      keep(made)
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

  /// A server behind FUSE or a network may never answer, and the calls that would
  /// find out whether the filesystem can be watched wait for it.
  private func refuseRemote(_ descriptor: Int32, _ status: Syscall.Status) throws(Refusal) {
    let table: [MountTable.Entry]
    do throws(SystemError) {
      table = try MountTable.entries()
    } catch {
      throw Refusal(error.code, "The mount table cannot be read: \(error).")
    }
    let entry =
      table.first { $0.id == status.mountID } ?? table.first { $0.device == status.device }
    guard let type = entry.map({ String(decoding: $0.type, as: UTF8.self) }) else {
      return try refuseUnknown(descriptor, status)
    }
    guard MountTable.isRemote(type) else { return }
    throw Refusal(
      ENODEV,
      "\(type): the filesystem is behind another server; share the filesystem that is behind it, on its own host."
    )
  }

  /// Of a mount in another namespace, or in none, nothing tells the filesystem's type
  /// without asking the filesystem, but for the form of its handles, which the kernel
  /// makes without asking a server. What is on a block device is local.
  private func refuseUnknown(_ descriptor: Int32, _ status: Syscall.Status) throws(Refusal) {
    guard gnu_dev_major(dev_t(status.device)) == 0 else { return }
    do throws(SystemError) {
      guard try !Syscall.handle(of: descriptor).isOfLocalFilesystem else { return }
    } catch {
      throw Refusal(error.code, "The root has no file handle: \(error).")
    }
    throw Refusal(
      ENODEV,
      """
      The directory's filesystem is not mounted where the daemon runs, and its handles are not those \
      of a local one: it may be behind another server.
      """)
  }

  func releaseIfUnused(_ filesystem: WatchedFilesystem) {
    guard filesystem.isUnused, filesystems[filesystem.device] === filesystem else { return }
    forget(filesystem)
  }

  /// - Parameter isUnmounted: what is kept open here may be all that keeps it in use.
  func forget(_ filesystem: WatchedFilesystem, isUnmounted: Bool = false) {
    guard filesystems[filesystem.device] === filesystem else { return }
    if !isShuttingDown && (isUnmounted || !filesystem.isInMountTable) {
      closer.closeLater(filesystem.mountCopies())
    }
    filesystem.stop()
    filesystems[filesystem.device] = nil
    if filesystem.isStored { store?.remove(WatchedFilesystem.storeName(filesystem.device)) }
    pastEvents += filesystem.recordsRead
    pastDelivered += filesystem.router.delivered
    pastCorrected += filesystem.reconciler.counters.corrected
    pastLag.add(filesystem.lag)
  }

  func filesystemFailed(_ filesystem: WatchedFilesystem, _ reason: String) {
    report(
      Diagnostic(
        .filesystemFailed, .error,
        "\(filesystem.name) \(MountTable.text(filesystem.device)) cannot be watched any more: \(reason); its sessions end, and their clients connect anew."
      ))
    guard filesystems[filesystem.device] === filesystem else { return }
    for share in shares where share.filesystem === filesystem {
      share.lose("its filesystem could not be watched any more")
      filesystem.shareCount -= 1
    }
    // Without DETACHED, which would say that there is nothing to come back to.
    for session in Array(filesystem.sessions.values) {
      session.end("its filesystem cannot be watched any more")
    }
    forget(filesystem)
    retryShares()
  }

  /// Ends all that depends on a filesystem that has gone.
  func detach(_ filesystem: WatchedFilesystem) {
    guard filesystems[filesystem.device] === filesystem else { return }
    filesystem.finish()
    for share in shares where share.filesystem === filesystem { lose(share, "unmounted") }
    for session in Array(filesystem.sessions.values) {
      session.detach(UInt32(HW_DETACHED_UNMOUNTED))
    }
    forget(filesystem, isUnmounted: true)
    report(
      Diagnostic(
        .filesystemDetached, .notice,
        "\(filesystem.name) \(MountTable.text(filesystem.device)) was unmounted."))
  }

  // MARK: Mount table

  func watchMountTable() throws(SystemError) {
    let fd = unsafe MountTable.path.withCString { unsafe hw_openat(AT_FDCWD, $0, O_RDONLY, 0) }
    let table = OwnedDescriptor(try checked(fd, "open(\(MountTable.path))"))
    let source = try loop.watch(table.rawValue, for: .exceptional, priority: .normal) {
      [unowned self] _ in mountTableChanged()
    }
    mountTable = (table.take(), source)
  }

  func mountTableChanged() {
    isMountTableUnknown = false
    do throws(SystemError) {
      let mounted = try MountTable.devices()
      for filesystem in Array(filesystems.values)
      where filesystem.isInMountTable && !mounted.contains(filesystem.device) {
        detach(filesystem)
      }
    } catch {
      report(
        Diagnostic(
          .other, .error, "The mount table cannot be read: \(error); it is tried again.",
          errno: error.code))
      lookAtMountsAgain()
    }
    checkShares()
  }

  /// What was not seen to be unmounted would be silence to its sessions.
  func lookAtMountsAgain() {
    isMountTableUnknown = true
    armHousekeeping()
  }
}
