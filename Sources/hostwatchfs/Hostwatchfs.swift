import ArgumentParser
import CHostWatch
import CHostWatchFS
import Glibc
import HostWatch
import HostWatchReplay

@main
enum Program {
  static func main() {
    becomeReplayerIfAsked()
    Hostwatchfs.main()
  }
}

struct Hostwatchfs: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hostwatchfs",
    abstract: "Mount a directory of the host so that its changes are seen at once.",
    discussion: """
      Serves SOURCE at MOUNTPOINT with caches that never expire: hostwatchd tells what changes \
      on the host, and hostwatchfs lets the kernel know.

      OPTIONS OF -o
        events=replay|invalidate|none   what is done with the host's changes (replay)
        access                          reading on the host is told, too
        timeout=SECONDS                 how long the kernel may cache (for ever; 1 with events=none)
        max_threads=N                   threads that serve requests (16)
        socket=PATH                     where hostwatchd listens
        ro, direct_io, allow_other, allow_root, fsname=NAME, nosuid, nodev, noexec, noatime …

      EXIT STATUS
        0   unmounted
        64  the command line is wrong
        69  hostwatchd does not answer, or cannot watch SOURCE
        70  a bug of hostwatchfs
        71  the mount failed, nothing was left to work with, or no background to go to
        77  permission denied
      """,
    version: Hub.version)

  @Option(name: .customLong("socket"), help: "Where hostwatchd listens.")
  var socket: String?

  @Option(name: .short, help: ArgumentHelp("Mount options, see below.", valueName: "options"))
  var o: [String] = []

  @Flag(name: .shortAndLong, help: "Stay in the foreground.")
  var foreground = false

  @Flag(name: .shortAndLong, help: "Say more.")
  var verbose = false

  @Argument(help: "The directory that is mounted.") var source: String
  @Argument(help: "Where it is mounted.") var mountpoint: String

  func run() throws {
    let options: MountOptions
    do {
      options = try MountOptions(o)
    } catch {
      throw failure(64, "-o \(error.text)")
    }
    guard let mountPath = Self.absolute(mountpoint) else {
      throw failure(71, "\(mountpoint): \(Self.text(errno))")
    }
    guard let sourcePath = Self.absolute(source) else {
      throw failure(69, "\(source): \(Self.text(errno))")
    }
    let socketPath = (socket ?? options.socket).map { path in
      // In the background the working directory is another.
      path.hasPrefix("/") ? path : Self.absolute(".").map { "\($0)/\(path)" } ?? path
    }
    if !foreground {
      let result = hwfs_daemonize()
      guard result == 0 else {
        throw failure(71, "cannot go to the background: \(Self.text(-result))")
      }
    }
    let log = Log(target: foreground ? .standardError : .syslog, isVerbose: verbose)
    let serving = Serving(
      source: sourcePath, mountPath: mountPath, socket: socketPath,
      options: options, log: log)
    do {
      try serving.run { hwfs_started(0) }
    } catch {
      Log.print(error.text)
      hwfs_started(error.status)
      throw ExitCode(error.status)
    }
  }

  private func failure(_ status: Int32, _ text: String) -> any Error {
    Log.print(text)
    return ExitCode(status)
  }

  static func text(_ code: Int32) -> String { unsafe String(cString: strerror(code)) }

  private static func absolute(_ path: String) -> String? {
    guard let found = unsafe realpath(path, nil) else { return nil }
    defer { unsafe free(found) }
    return unsafe String(cString: found)
  }
}
