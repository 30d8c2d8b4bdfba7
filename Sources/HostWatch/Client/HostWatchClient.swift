/// A FUSE server's side of a session with hostwatchd.
///
///     let client = try await HostWatchClient(.init(.share("src")))
///     for await event in client.events { … }
///
/// **Threads.** Everything may be called from everywhere. One thread of the
/// client's own reads the socket.
///
/// **Back-pressure.** Events wait in a buffer of `bufferLimitBytes`. While it
/// is full the client stops reading: the daemon queues in its stead, and sends
/// `.lost` when its queue overflows too. A request may be made while events
/// are handled all the same: as long as a reply is awaited, the client reads
/// on. That ends at `bufferLimitBytes` and four times the daemon's queue
/// limit: then the client disconnects with ENOBUFS rather than grow.
///
/// **Reconnecting.** With a `Reconnection` the client does it by itself and says
/// when it is in step and when it is not. Without one it is the caller's, for
/// what is registered is lost with the connection: on `.disconnected`, call
/// `reconnect` and register everything anew, with `since` the last moment before
/// the disconnection at which it knew everything.
public final class HostWatchClient: Sendable {
  /// What waits for the consumer of `events` before the client stops reading,
  /// in bytes.
  public static let defaultBufferLimitBytes = 1 << 20

  private let core: ClientCore

  /// Connects and starts a session: every matching change made after this
  /// returned is reported.
  ///
  /// A directory descriptor is duplicated, for `reconnect`, and kept as long
  /// as the client lives.
  public init(
    _ attachment: Attachment, socketPath: String = Connection.defaultSocketPath,
    bufferLimitBytes: Int = defaultBufferLimitBytes, reconnection: Reconnection? = nil
  ) async throws(Failure) {
    core = try ClientCore(attachment, bufferLimitBytes, reconnection) { () throws(Failure) in
      try Connection(path: socketPath)
    }
    _ = try await start()
  }

  /// As above, with connections that the caller makes: once here, and once
  /// for every `reconnect`.
  public init(
    _ attachment: Attachment, bufferLimitBytes: Int = defaultBufferLimitBytes,
    reconnection: Reconnection? = nil,
    connecting: @escaping @Sendable () throws(Failure) -> Connection
  ) async throws(Failure) {
    core = try ClientCore(attachment, bufferLimitBytes, reconnection, connecting)
    _ = try await start()
  }

  private func start() async throws(Failure) {
    core.state.withLock { $0.step.client = self }
    _ = try await core.connect()
  }

  deinit { core.close() }

  /// What the daemon granted, the last time it did.
  public var session: Session? { core.session }

  /// The events of the session, in order. They are given once: whoever
  /// iterates takes them out of the buffer, and leaving a loop loses none.
  public var events: Events { Events(client: self) }

  /// What ``HostWatchClient/events`` is.
  public struct Events: AsyncSequence, Sendable {
    let client: HostWatchClient

    public func makeAsyncIterator() -> Iterator { Iterator(client: client) }

    /// Takes the events out, for one consumer at a time.
    public struct Iterator: AsyncIteratorProtocol, Sendable {
      let client: HostWatchClient

      /// The next event; nil after `.disconnected` (with a `Reconnection`: when
      /// the client has given up), after `close` and when the task is cancelled.
      public func next() async -> Event? { await client.core.next() }
    }
  }

  /// Starts another session after `.disconnected`, on a new connection; the
  /// events go on with `.connected`. It may be tried again when it fails.
  /// Throws EISCONN while the client is connected. With a `Reconnection` it is
  /// for trying again after the client has given up.
  @discardableResult
  public func reconnect() async throws(Failure) -> Session {
    let session = try await core.connect()
    if core.reconnection != nil { try await core.join() }
    return session
  }

  /// Ends the session. What is buffered can still be taken out of `events`.
  public func close() { core.close() }

  /// Registers objects, any number of them, 250 a message.
  ///
  /// A directory's registration must be answered before the server answers
  /// the lookup that led to it.
  ///
  /// - Returns: per object nil, or why it was not registered: EXDEV not on the
  ///   root's filesystem, EACCES the descriptor proves no read access, ENOSPC
  ///   the session's nodes are used up, EEXIST the identity names another
  ///   object, EOPNOTSUPP no file handle.
  public func register(_ registrations: [Registration]) async throws(Failure) -> [SystemError?] {
    var results: [SystemError?] = []
    for start in stride(from: 0, to: registrations.count, by: Request.maxRegistrations) {
      let end = min(start + Request.maxRegistrations, registrations.count)
      let reply = try await core.perform(.register(Array(registrations[start..<end])))
      results += try statuses(reply, end - start, "register")
    }
    return results
  }

  /// Ends the registration of nodes. What is not registered is ignored. It is
  /// in force for every record after the reply to the next request.
  public func forget(_ nodes: [NodeID]) throws(Failure) {
    for start in stride(from: 0, to: nodes.count, by: Request.maxForgotten) {
      let end = min(start + Request.maxForgotten, nodes.count)
      try core.post(.forget(Array(nodes[start..<end])))
    }
  }

  /// Sets what is reported about nodes: what the server's clients watch there.
  ///
  /// - Returns: per node nil, or why not: ENOENT it is not registered.
  public func setInterest(_ interests: [(node: NodeID, mask: EventMask)])
    async throws(Failure) -> [SystemError?]
  {
    var results: [SystemError?] = []
    for start in stride(from: 0, to: interests.count, by: Request.maxInterests) {
      let end = min(start + Request.maxInterests, interests.count)
      let reply = try await core.perform(.interest(Array(interests[start..<end])))
      results += try statuses(reply, end - start, "interest")
    }
    return results
  }

  /// Returns when every event of every change that was complete at the call
  /// stands in `events`' buffer, or has been taken out of it.
  public func sync() async throws(Failure) {
    guard case .synced = try await core.perform(.sync) else { throw .unexpectedReply }
  }

  /// The daemon's figures: a JSON object.
  public func status() async throws(Failure) -> String {
    guard case .status(let text) = try await core.perform(.status) else { throw .unexpectedReply }
    return text
  }

  private func statuses(_ reply: Reply, _ count: Int, _ call: String)
    throws(Failure) -> [SystemError?]
  {
    guard case .statuses(let codes) = reply, codes.count == count else { throw .unexpectedReply }
    return codes.map { $0 == 0 ? nil : SystemError(call, -$0) }
  }
}
