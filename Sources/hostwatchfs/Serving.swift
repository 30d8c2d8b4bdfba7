import CFanotify
import CHostWatch
import CHostWatchFS
import Glibc
import HostWatch

/// One mount from start to end.
struct Serving {
  let source: String
  let mountPath: String
  let socket: String?
  let options: MountOptions
  let log: Log

  struct Fault: Error {
    let status: Int32
    let text: String
  }

  /// `started` is called once the mount is there.
  func run(_ started: () -> Void) throws(Fault) {
    umask(0)
    let backing = try openSource()
    let daemon = try connect(backing)
    let statistics = Statistics()
    let view = View(root: backing.root, timeout: timeout, hasDaemon: daemon != nil)
    let misplaced = Misplaced()
    let replay = daemon.flatMap { daemon in
      options.events == .replay
        ? Replay(
          view, backing, daemon, misplaced, statistics, log, mountPoint: mountPath,
          isReadOnly: options.isReadOnly) : nil
    }
    let settings = Server.Settings(
      isReadOnly: options.isReadOnly, isDirectIO: options.isDirectIO,
      becomesCaller: geteuid() == 0, keepsPages: timeout > 0)
    let server: Server
    do throws(Failure) {
      server = try Server(
        view: view, backing: backing, daemon: daemon, settings: settings, statistics: statistics,
        interceptor: replay, misplaced: misplaced, log: log)
    } catch {
      throw Self.shortage(error)
    }
    let mount: Mount
    do throws(Mount.Fault) {
      mount = try Mount(server: server, options: fuseOptions)
      try mount.mount(at: mountPath)
    } catch {
      throw Fault(status: 71, text: error.text)
    }
    mount.notifier.probe()
    let invalidator = Invalidator(view, backing, mount.notifier, statistics, misplaced)
    replay?.connect(mount.notifier, invalidator)
    var follower: Follower?
    do throws(Failure) {
      if let daemon {
        let new = try Follower(
          daemon, view, backing, replay ?? invalidator, invalidator, misplaced, statistics, log)
        misplaced.setWake { [unowned new] in new.wakeUp() }
        try new.start()
        follower = new
      } else {
        view.isInStep = true
      }
    } catch {
      mount.unmount()
      throw Self.shortage(error)
    }
    let control = startControl(view, statistics, follower, replay)
    let ending = Ending { [follower] in
      control?.stop()
      follower?.stop()
    }
    do throws(Failure) {
      // A client's request holds locks of the kernel that the follower and the replayer wait
      // for: it has to be answered until they have stopped.
      try mount.endOnSignal(ending)
    } catch {
      mount.abort(at: mountPath)
      ending.run()
      mount.unmount()
      throw Self.shortage(error)
    }
    started()
    notifyManager()
    let result = mount.loop(maxThreads: options.maxThreads)
    if result < 0 { mount.abort(at: mountPath) }
    ending.run()
    server.locks.stop()
    mount.unmount()
    // libfuse has no errno for a thread that it could not have.
    guard result != -1 else { throw Self.shortage(Failure(EAGAIN)) }
    guard result >= 0 else {
      throw Fault(status: 70, text: "the session ended: \(Hostwatchfs.text(-result))")
    }
  }

  /// Tells a service manager, if one started this, that the mount is there.
  private func notifyManager() {
    guard let path = unsafe getenv("NOTIFY_SOCKET") else { return }
    let state = "READY=1"
    let result = unsafe state.withCString { unsafe hw_notify(path, $0, state.utf8.count) }
    if result < 0 {
      log.warning("the service manager cannot be told: \(Hostwatchfs.text(-result))")
    }
  }

  private func startControl(
    _ view: View, _ statistics: Statistics, _ follower: Follower?, _ replay: Replay?
  ) -> Control? {
    let (source, mountPath, events) = (source, mountPath, options.events.rawValue)
    do throws(Failure) {
      let control = try Control(
        status: {
          MountStatus(
            source: source, mountpoint: mountPath, events: events, isFollowing: follower != nil,
            isInStep: view.isInStep, nodes: view.nodeCount,
            lagMicroseconds: max(follower?.lagMicroseconds ?? 0, replay?.lagMicroseconds ?? 0),
            counters: replay?.adding(to: statistics.value) ?? statistics.value
          ).json
        },
        sync: { follower?.sync() ?? true })
      do throws(Failure) {
        try control.start()
      } catch {
        control.stop()
        throw error
      }
      return control
    } catch {
      log.notice("hostwatchctl cannot see this mount: \(Control.directory): \(Self.text(error))")
      return nil
    }
  }

  /// No eventfd or no thread is to be had.
  private static func shortage(_ failure: Failure) -> Fault {
    Fault(
      status: 71,
      text: "no descriptor or no thread is free (\(text(failure))): see ulimit -n, ulimit -u and "
        + "the unit's TasksMax=")
  }

  private static func text(_ failure: Failure) -> String { Hostwatchfs.text(failure.code) }

  /// Seconds.
  private var timeout: Double { options.timeout ?? (options.events == .none ? 1 : 1e9) }

  private func openSource() throws(Fault) -> Backing {
    let limit = hwfs_raise_descriptor_limit(1 << 20)
    let backing: Backing
    do throws(Failure) {
      backing = try Backing(path: source)
    } catch {
      throw Fault(status: 69, text: "\(source): \(Hostwatchfs.text(error.code))")
    }
    if let fault = backing.handleFault {
      let why =
        fault.code == EPERM
        ? "without CAP_DAC_READ_SEARCH file handles cannot be opened"
        : "the filesystem's file handles cannot be opened (\(Hostwatchfs.text(fault.code)))"
      log.warning(
        "\(why): every object that the kernel knows keeps a descriptor open, of at most \(limit)")
    }
    return backing
  }

  private func connect(_ backing: Backing) throws(Fault) -> Daemon? {
    guard options.events != .none else { return nil }
    let path = socket ?? HW_SOCKET_PATH
    do throws(Daemon.Refusal) {
      return try Daemon(
        socket: path, root: backing.rootDescriptor, access: options.tellsAccess)
    } catch {
      switch error.code {
      case ENOENT, ECONNREFUSED:
        throw Fault(
          status: 69,
          text: "no hostwatchd listens at \(path): start it (systemctl start hostwatchd), name "
            + "its socket (--socket), or mount with -o events=none, where caches expire by time")
      case EACCES where unsafe access(path, W_OK) != 0:
        throw Fault(
          status: 77, text: "\(path): permission denied; be root or in the group hostwatch")
      default:
        throw Fault(status: 69, text: "hostwatchd cannot watch \(source): \(error.text)")
      }
    }
  }

  private var fuseOptions: [String] {
    // Replay makes the mount read-only, not its filesystem; the server refuses.
    var words = options.passed.filter { $0 != "ro" || options.events != .replay }
    // The kernel checks permissions, by what the host's files say.
    if !words.contains("default_permissions") { words.append("default_permissions") }
    if !words.contains(where: { $0.hasPrefix("fsname=") }) {
      // A comma or a backslash ends a word of libfuse's unless it is escaped.
      let name = source.replacing("\\", with: "\\\\").replacing(",", with: "\\,")
      words.append("fsname=\(name)")
    }
    if !words.contains(where: { $0.hasPrefix("subtype=") }) { words.append("subtype=hostwatchfs") }
    return words
  }
}
