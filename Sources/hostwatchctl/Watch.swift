import ArgumentParser
import CFanotify
import HostWatch

struct Watch: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Print what changes below a share or a directory.",
    discussion: """
      One line per change: the time, the event, the path below the root (a directory's with a \
      "/" behind it) and, for root, the process. A rename is one line with both paths; "(outside)" \
      stands for what is not below the root. Lines that begin with "!" tell of gaps and of the \
      end: LOST (changes are missing; look again), RESYNCED (the gap is closed), DETACHED. \
      RECHECK says that nothing was seen to happen but that the object may have changed. A \
      command "?" is a process that is gone.

      In names, spaces, backslashes, control characters and bytes that are not UTF-8 are escaped \
      as by "ls -b".

      A directory needs root; a share needs root or that its configuration allows this user. \
      An interrupt ends the command with status 0.

      With --json each line is an object. "type" is attached, record, lost, resynced or \
      detached; "time" is RFC 3339 in UTC. A record has "sequence", "events", "is_directory", \
      "flags", "node", "directory" and "new_directory" (each {"nodeid","generation"}, or null \
      where the session knows none), "path", "new_path", "origin" (a session's id or 0), "pid" \
      and "command" (null where unknown); lost has "sequence" and "reason" (kernel-queue, \
      session-queue, restart), detached "reason" (unmounted, share-removed, shutdown). What is not UTF-8 has U+FFFD in "path", "new_path" \
      and "command", and its bytes in hexadecimal in "path_hex", "new_path_hex" and \
      "command_hex".
      """)

  @OptionGroup var daemon: DaemonOptions
  @OptionGroup var root: RootArgument

  @Flag(help: "Print one JSON object per line.")
  var json = false

  @Option(
    help: ArgumentHelp(
      "Events to be shown, with commas between them: "
        + EventList.choices.joined(separator: ", ") + ", or all.",
      valueName: "list"))
  var events = EventList(mask: .defaultEvents)

  @Option(
    help: ArgumentHelp(
      "Colour the lines: auto (on a terminal, unless NO_COLOR is set), always or never; "
        + "JSON never is.",
      valueName: "when"))
  var color = ColorChoice.auto

  @Option(help: ArgumentHelp("End after so many changes.", valueName: "n"))
  var count: Int?

  func validate() throws {
    guard count.map({ $0 > 0 }) ?? true else { throw ValidationError("--count must be above 0.") }
  }

  func run() throws {
    do {
      try root.withRoot(openFlags: O_PATH) { root in try watch(root) }
    } catch let failure as HostWatchClient.Failure {
      throw Exit.because(failure, socketPath: daemon.socketPath)
    }
  }

  private func watch(_ root: HostWatchClient.Attachment.Root) throws {
    var options: HostWatchClient.Options = .wantPath
    if getuid() == 0 { options.insert(.wantPID) }
    let connection = try daemon.connect()
    let session = try connection.attach(
      .init(root, mode: .tree, options: options, events: events.mask))
    Interrupt.shutsDown(connection)
    let names = session.events.eventNames
    if json {
      Output.line(RecordFormat.attached(session.id, names).encoded)
    } else {
      Exit.say("watching for \(names.joined(separator: ", ")); interrupt to end")
    }
    try print(connection)
  }

  /// Prints until the connection ends.
  private func print(_ connection: HostWatchClient.Connection) throws {
    let paint = color.paint
    var output = Output()
    var left = count ?? Int.max
    while let packet = try connection.receive() {
      let now = Clock.now()
      if case .events(let batch) = packet {
        for record in batch where left > 0 {
          let format = RecordFormat(record, now)
          output.line(json ? format.json.encoded : format.line(paint))
          left -= 1
        }
      } else if let line = RecordFormat.notice(packet, now, json: json) {
        output.line(json ? line : paint(.yellow, line))
      }
      output.flush()
      if left == 0 { return }
    }
    if Interrupt.happened { return }
    throw HostWatchClient.Failure.disconnected
  }
}

/// `--events create,delete`.
struct EventList: ExpressibleByArgument {
  var mask: EventMask

  static var choices: [String] { EventMask.allEvents.eventNames }

  init(mask: EventMask) { self.mask = mask }

  init?(argument: String) {
    mask = []
    for name in argument.split(separator: ",", omittingEmptySubsequences: false) {
      if name == "all" {
        mask.formUnion(.allEvents)
      } else if let event = EventMask(name: String(name)), EventMask.allEvents.contains(event) {
        mask.formUnion(event)
      } else {
        return nil
      }
    }
  }

  var defaultValueDescription: String { mask.eventNames.joined(separator: ",") }
}
