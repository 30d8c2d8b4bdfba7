import CReplay
import Glibc
import HostWatch

/// The replayer process, seen from the server. One thread uses it.
struct Replayer: ~Copyable {
  /// The hidden argument with which the server's program becomes the replayer.
  static let argument = "--replayer"

  let pid: pid_t
  private let socket: Int32

  /// Starts /proc/self/exe anew.
  init(mount: Int32, as argument: String = Replayer.argument) throws(SystemError) {
    var socket: Int32 = -1
    let pid = unsafe replay_start("/proc/self/exe", argument, mount, &socket)
    guard pid > 0 else { throw SystemError("replay_start", -pid) }
    self.pid = pid
    self.socket = socket
  }

  /// From here on `call` waits no longer than this for an answer: `.ended` then.
  func limitWait(milliseconds: Int) {
    var limit = timeval(
      tv_sec: milliseconds / 1000, tv_usec: numericCast(milliseconds % 1000 * 1000))
    _ = unsafe setsockopt(
      socket, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
  }

  /// Ends the process, if it has not ended by itself, and waits for that.
  deinit {
    _ = close(socket)
    _ = kill(pid, SIGKILL)
    while waitpid(pid, nil, 0) < 0 && errno == EINTR {}
  }

  enum Answer {
    case done
    case failed(Int32)
    /// A directory cannot be opened by handle: its path is needed.
    case pathNeeded
    case objectNotHeld
    /// The process has gone.
    case ended
  }

  func call(
    _ request: replay_request, _ name: [UInt8] = [], _ newName: [UInt8] = [],
    path: [UInt8] = [], newPath: [UInt8] = []
  ) -> Answer {
    var request = request
    request.name_size = UInt32(name.count)
    request.new_name_size = UInt32(newName.count)
    request.dir.path_size = UInt32(path.count)
    request.new_dir.path_size = UInt32(newPath.count)
    var answer = replay_answer()
    guard unsafe replay_call(socket, &request, name, newName, path, newPath, &answer) == 0 else {
      return .ended
    }
    if answer.error == 0 { return .done }
    if answer.error == ESTALE {
      switch Int(answer.step) {
      case Int(REPLAY_STEP_DIR.rawValue), Int(REPLAY_STEP_NEW_DIR.rawValue): return .pathNeeded
      case Int(REPLAY_STEP_OBJECT.rawValue): return .objectNotHeld
      default: break
      }
    }
    return .failed(answer.error)
  }
}

/// The replayer's program: what the server's executable does when it was started
/// with `--replayer`. Call it first thing; it does not return then.
package func becomeReplayerIfAsked() {
  guard CommandLine.arguments.count == 2 else { return }
  switch CommandLine.arguments[1] {
  case Replayer.argument: exit(unsafe replay_main("replayer"))
  case LinkWitness.argument: exit(unsafe replay_main("witness"))
  default: break
  }
}

extension replay_place {
  init(_ node: NodeID) {
    self.init(
      nodeid: node.nodeid, generation: UInt32(truncatingIfNeeded: node.generation), path_size: 0)
  }
}
