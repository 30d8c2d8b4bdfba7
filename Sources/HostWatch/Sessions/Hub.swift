/// The heart of the daemon: filesystems, shares and sessions on one loop.
public final class Hub {
  /// - Parameters:
  ///   - queueEvents: the fanotify queue wanted per filesystem, in events.
  ///   - report: called for what an operator may want to know.
  public init(
    loop: any EventLoop, limits: Limits, queueEvents: Int,
    report: @escaping (Diagnostic) -> Void
  ) throws(SystemError) {
    self.limits = limits
  }

  /// May be changed at any time; sessions that exist keep what they have.
  public var limits: Limits

  /// Replaces the configured shares: new ones are attached, those that are
  /// gone detached (DETACHED reason 2). What cannot be attached is reported
  /// and tried again when the mount table changes.
  public func setShares(_ shares: [ShareConfiguration]) {}

  /// Accepts connections from a listening SOCK_SEQPACKET socket.
  public func serve(_ listener: consuming OwnedDescriptor) throws(SystemError) { _ = listener.take() }

  /// Sends all that happened before this call, then DETACHED (reason 3), and
  /// calls `completion` when the packets have gone or after five seconds.
  public func shutDown(completion: @escaping () -> Void) { completion() }

  public var figures: Figures { Figures() }
}
