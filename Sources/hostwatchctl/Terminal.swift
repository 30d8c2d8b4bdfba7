import CFanotify
import Glibc

/// The terminal while `top` has it: keys come one by one and unseen, the picture is on
/// the second screen. `restore` gives it back as it was.
struct Terminal: ~Copyable {
  enum Input: Equatable {
    case key(Character)
    case resized
    /// A signal that ends the program.
    case ended(Int32)
    case nothing
  }

  private let before: termios
  private let signals: Int32
  private static let ending = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]

  /// Whether both sides are a terminal that understands more than lines.
  static var isThere: Bool {
    let name = unsafe getenv("TERM").map { unsafe String(cString: $0) } ?? "dumb"
    return isatty(STDIN_FILENO) == 1 && isatty(STDOUT_FILENO) == 1 && name != "dumb"
      && !name.isEmpty
  }

  /// Nil where the terminal does not let itself be set. Signals are blocked from here
  /// on and come as input, so none ends the program with the terminal as it is now.
  init?() {
    var attributes = termios()
    var set = sigset_t()
    _ = unsafe sigemptyset(&set)
    for signal in Self.ending + [SIGWINCH, SIGTSTP] { _ = unsafe sigaddset(&set, signal) }
    guard unsafe tcgetattr(STDIN_FILENO, &attributes) == 0 else { return nil }
    let descriptor = unsafe signalfd(-1, &set, Int32(O_CLOEXEC | O_NONBLOCK))
    guard descriptor >= 0 else { return nil }
    _ = unsafe sigprocmask(SIG_BLOCK, &set, nil)
    before = attributes
    signals = descriptor
    take()
  }

  private func take() {
    var raw = before
    raw.c_lflag &= ~tcflag_t(ICANON | ECHO)
    _ = unsafe tcsetattr(STDIN_FILENO, TCSANOW, &raw)
    Output.write(Array("\u{1b}[?1049h\u{1b}[?25l".utf8), to: STDOUT_FILENO)
  }

  private func restore() {
    var attributes = before
    _ = unsafe tcsetattr(STDIN_FILENO, TCSANOW, &attributes)
    Output.write(Array("\u{1b}[?25h\u{1b}[?1049l".utf8), to: STDOUT_FILENO)
  }

  deinit {
    restore()
    close(signals)
  }

  /// Columns and rows; 80 by 24 where the terminal does not know.
  var size: (width: Int, height: Int) {
    var size = winsize()
    let known = unsafe ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0
    guard known, size.ws_col > 0, size.ws_row > 0 else { return (80, 24) }
    return (Int(size.ws_col), Int(size.ws_row))
  }

  /// Shows the lines in place of what is there, each cut already.
  func show(_ lines: [String]) {
    let body = lines.map { $0 + "\u{1b}[K" }.joined(separator: "\n")
    Output.write(Array("\u{1b}[H\(body)\u{1b}[J".utf8), to: STDOUT_FILENO)
  }

  /// Waits for a key or a signal, at most so long.
  func wait(milliseconds: Int32) -> Input {
    var files = [
      pollfd(fd: signals, events: Int16(POLLIN), revents: 0),
      pollfd(fd: STDIN_FILENO, events: Int16(POLLIN), revents: 0),
    ]
    guard unsafe poll(&files, 2, milliseconds) > 0 else { return .nothing }
    if files[0].revents != 0 { return signal() }
    var byte: UInt8 = 0
    // A terminal that has gone away reads as its end.
    guard unsafe read(STDIN_FILENO, &byte, 1) == 1 else { return .ended(SIGHUP) }
    return .key(Character(Unicode.Scalar(byte)))
  }

  private func signal() -> Input {
    var info = signalfd_siginfo()
    let size = MemoryLayout<signalfd_siginfo>.size
    guard unsafe read(signals, &info, size) == size else { return .nothing }
    switch Int32(info.ssi_signo) {
    case SIGWINCH: return .resized
    case SIGTSTP:
      restore()
      _ = kill(getpid(), SIGSTOP)
      take()
      return .resized
    case let number: return .ended(number)
    }
  }
}
