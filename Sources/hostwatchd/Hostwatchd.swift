import ArgumentParser
import CFanotify
import HostWatch
import Logging

/// The command line.
@main
struct Hostwatchd: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hostwatchd",
    abstract: "Tells FUSE servers what changed on the host behind their back.",
    discussion: """
      Without --config, \(Configuration.defaultFile) is read if it is there. Without a \
      socket from the service manager, hostwatchd binds its own. SIGHUP reloads the \
      configuration, SIGTERM and SIGINT end the daemon in order.

      Exit codes: 0 ended in order, 64 usage, 69 unavailable, 70 a bug, 71 a system call \
      failed, 77 no permission, 78 configuration.
      """,
    version: "hostwatchd \(daemonVersion)")

  @Option(help: ArgumentHelp("Read the configuration from FILE.", valueName: "FILE"))
  var config: String?

  @Option(help: ArgumentHelp("Listen on PATH; overrides the file.", valueName: "PATH"))
  var socket: SocketPathArgument?

  @Option(
    help: ArgumentHelp(
      "Serve the directory PATH as the share NAME, to uid 0 and to the daemon's own. May be given more than once.",
      valueName: "NAME=PATH"))
  var share: [ShareArgument] = []

  @Option(
    help: ArgumentHelp(
      "Log from LEVEL on: \(logLevelNames.joined(separator: ", ")); overrides the file.",
      valueName: "LEVEL"))
  var logLevel: LogLevelArgument?

  @Option(help: ArgumentHelp("Log to auto, journal or stderr.", valueName: "TARGET"))
  var logTarget = LogTarget.auto

  @Flag(help: "Read the configuration, say what is wrong with it, and exit.")
  var checkConfig = false

  func validate() throws {
    var names: Set<String> = []
    for name in share.map(\.name) where !names.insert(name).inserted {
      throw ValidationError("--share \(name) is given twice; give each share its own name.")
    }
  }

  func run() throws {
    let source = ConfigurationSource(
      file: config, socketPath: socket?.path, logLevel: logLevel, shares: share)
    if checkConfig {
      throw ExitCode(Hostwatchd.check(source))
    }
    ProcessSetup.prepare()
    var logger = Logger(label: "hostwatchd") { _ in logTarget.handler() }
    logger.logLevel = logLevel?.level ?? .info
    throw ExitCode(Hostwatchd.serve(source, logger: logger))
  }

  /// `--check-config`: needs no privilege and touches nothing.
  private static func check(_ source: ConfigurationSource) -> Int32 {
    do {
      let configuration = try source.load()
      print("\(source.path): right, \(configuration.shareCount)")
      print("queue-events: \(configuration.queueEvents)")
      return 0
    } catch {
      for issue in error.issues { StderrLog.write(issue.text(file: error.file)) }
      return StartFailure.Code(error).rawValue
    }
  }

  /// Runs the daemon; returns the exit code.
  private static func serve(_ source: ConfigurationSource, logger: Logger) -> Int32 {
    do {
      let configuration = try source.load()
      return try Daemon.run(source: source, configuration: configuration, logger: logger)
    } catch let refused as ConfigurationRefused {
      refused.log(to: logger, as: .configurationRefused)
      ServiceManager.failed(refused.issues.first?.text(file: refused.file) ?? "")
      return StartFailure.Code(refused).rawValue
    } catch let failure as StartFailure {
      logger.critical("\(failure.message)", metadata: .of(failure.messageID))
      ServiceManager.failed(failure.message)
      return failure.code.rawValue
    } catch let error as SystemError {
      let failure = StartFailure(
        .systemCall, "\(error): hostwatchd cannot go on without it; clients connect anew")
      logger.critical("\(failure.message)", metadata: .of(.startFailed))
      ServiceManager.failed(failure.message)
      return failure.code.rawValue
    } catch {
      logger.critical(
        "\(error); this is a bug of hostwatchd, please report it",
        metadata: .of(.startFailed))
      return StartFailure.Code.bug.rawValue
    }
  }
}
