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
  /// as the client lives. It waits for the daemon's answer without a time limit.
  ///
  /// - Throws: ``Failure``. `.system`: ENOENT or ECONNREFUSED no daemon listens,
  ///   EACCES the socket may not be written to, ENAMETOOLONG a `socketPath` that is
  ///   empty or has more than 107 bytes, EINVAL a share's name that is empty, longer
  ///   than 4,096 bytes or has a NUL, EBADF the root's descriptor is not open, EMFILE or ENFILE
  ///   no descriptor is free, EAGAIN no thread is to be had. `.refused`: the daemon's
  ///   reason, EPERM, EACCES, ENOENT, EUSERS and others of INIT's table in
  ///   docs/protocol.md. `.disconnected`: it hung up. `.malformed`: what
  ///   answered breaks the protocol.
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
  ///
  /// - Throws: what `connecting` throws, and what the other initializer does
  ///   but for the errors of connecting.
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
  /// With a `Reconnection` it is for trying again after the client has given up.
  ///
  /// - Returns: what the daemon granted.
  /// - Throws: `.system`, with EISCONN while the client is connected or connects
  ///   and EBADF after `close`; else what the initializer throws. With a
  ///   `Reconnection` also `.disconnected` when its `register` threw.
  @discardableResult
  public func reconnect() async throws(Failure) -> Session {
    let session = try await core.connect()
    if core.reconnection != nil { try await core.join() }
    return session
  }

  /// Ends the session. What is buffered can still be taken out of `events`.
  public func close() { core.close() }

  /// Registers objects, any number of them, 250 a message; each message is
  /// answered before the next is sent.
  ///
  /// A directory's registration must be answered before the server answers
  /// the lookup that led to it.
  ///
  /// When it throws, the results of the messages before are lost with it: their
  /// objects are registered as far as the daemon took them, of those of the message
  /// itself nothing is known, and those behind are not registered. To register all
  /// of them once more in the same session does no harm, and gives their results;
  /// `forget` takes them back. Who wants to know more exactly passes at most
  /// ``Request/maxRegistrations`` at a time.
  ///
  /// - Returns: per object nil, or why it was not registered: EXDEV not on the
  ///   root's filesystem, EACCES the descriptor proves no read access, ENOSPC
  ///   the session's nodes are used up, EEXIST the identity names another
  ///   object or the object is the root, EINVAL the nodeid is 0 or 1 or `since` has
  ///   a second's worth of nanoseconds or more, EOPNOTSUPP no file handle; others of
  ///   fstat(2) and name_to_handle_at(2), as EIO and ESTALE.
  /// - Throws: ``Failure``. `.refused`: EINVAL the session is TREE, EMFILE the
  ///   daemon has no free descriptor (it may be tried again); the session goes on
  ///   then, as it does after `.system`: EBADF one of the descriptors is not open,
  ///   ETOOMANYREFS this user has more descriptors on their way in sockets than
  ///   RLIMIT_NOFILE allows, ENOMEM or ENOBUFS of sendmsg(2). The connection
  ///   is lost with `.disconnected` (also where there is none), `.malformed`,
  ///   `.refused` with EPROTO, and `.system` with ENOBUFS of the event buffer.
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
  /// in force for every record after the reply to the next request. The daemon
  /// does not answer; where it is behind with reading this waits for room.
  ///
  /// - Throws: ``Failure``. `.disconnected`, with no session and so no registration
  ///   left; `.system`: ENOMEM or ENOBUFS of sendmsg(2), and then those of the
  ///   messages before, 2,048 nodes each, are forgotten.
  public func forget(_ nodes: [NodeID]) throws(Failure) {
    for start in stride(from: 0, to: nodes.count, by: Request.maxForgotten) {
      let end = min(start + Request.maxForgotten, nodes.count)
      try core.post(.forget(Array(nodes[start..<end])))
    }
  }

  /// Sets what is reported about nodes: what the server's clients watch there.
  ///
  /// Any number of them, 1,024 a message; each message is answered before the next
  /// is sent. When it throws, the masks of the messages before are set. It may be
  /// repeated.
  ///
  /// - Returns: per node nil, or why not: ENOENT it is not registered.
  /// - Throws: ``Failure``. `.refused`: EINVAL the session is TREE. `.system`: ENOMEM or
  ///   ENOBUFS of sendmsg(2). Or that the connection is lost, as ``register(_:)`` does.
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
  /// stands in `events`' buffer, or has been taken out of it. While the daemon
  /// resyncs after a loss it waits for the end of that.
  ///
  /// - Throws: ``Failure``: that the connection is lost, as ``register(_:)`` does, or
  ///   `.system` with ENOMEM or ENOBUFS of sendmsg(2).
  public func sync() async throws(Failure) {
    guard case .synced = try await core.perform(.sync) else { throw .unexpectedReply }
  }

  /// The daemon's figures: a JSON object, as STATUS in docs/protocol.md has it.
  ///
  /// - Throws: what ``sync()`` throws.
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
