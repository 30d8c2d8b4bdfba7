import CFanotify
import CHostWatch
import Glibc
import Synchronization

extension HostWatchClient {
  /// A call to the daemon that failed.
  public enum Failure: Error, Sendable, Equatable, CustomStringConvertible {
    /// A system call of this process failed.
    case system(SystemError)
    /// The daemon said no, and why.
    case refused(Refusal)
    /// What the daemon sent is not the protocol; the connection is of no use.
    case malformed(PacketError)
    /// The daemon hung up before it answered.
    case disconnected

    public var description: String {
      switch self {
      case .system(let error): error.description
      case .refused(let refusal): refusal.description
      case .malformed(let error): "the daemon sent what is not the protocol: \(error)"
      case .disconnected: "the daemon hung up"
      }
    }
  }

  /// A connection to the daemon without a thread or a buffer of its own: it
  /// sends one request, it receives one packet.
  ///
  /// One thread at a time may receive; sending and `shutDown` go with it.
  public final class Connection: Sendable {
    /// Where the daemon listens unless it is told otherwise.
    public static let defaultSocketPath = HW_SOCKET_PATH

    // Closed in deinit, and by nobody before.
    private let socket: Int32
    private let incoming = Locked(Incoming())
    private let lastUnique = Atomic<UInt64>(0)

    private struct Incoming {
      var reader = PacketReader()
      // No packet of the daemon's is larger.
      var buffer = [UInt8](repeating: 0, count: Int(HW_PACKET_MAX))
      var descriptors = [Int32](repeating: -1, count: Int(hw_descriptors_max))
    }

    /// Connects to the daemon's socket.
    ///
    /// - Throws: `.system`: of connect(2) ENOENT and ECONNREFUSED, which mean that no
    ///   daemon is there, EACCES and others; ENAMETOOLONG a path that is empty or
    ///   has more than 107 bytes; EMFILE or ENFILE no descriptor is free.
    public convenience init(path: String = Connection.defaultSocketPath) throws(Failure) {
      let number = hw_socket(false)
      guard number >= 0 else { throw .system(SystemError("socket", -number)) }
      let socket = OwnedDescriptor(number)
      let result = unsafe path.withCString { unsafe hw_connect_path(number, $0) }
      guard result >= 0 else { throw .system(SystemError("connect(\(path))", -result)) }
      self.init(socket: socket)
    }

    /// Takes over a connected SOCK_SEQPACKET socket.
    public init(socket: consuming OwnedDescriptor) { self.socket = socket.take() }

    deinit { _ = Glibc.close(socket) }

    /// Ends the connection for both sides; a `receive` that waits returns.
    public func shutDown() { _ = shutdown(socket, Int32(SHUT_RDWR)) }

    /// A number for the next request, never 0.
    public func nextUnique() -> UInt64 { lastUnique.add(1, ordering: .relaxed).newValue }

    /// Sends a request. It waits where the daemon is behind with reading.
    ///
    /// - Throws: `.disconnected`: the daemon hung up. `.system`, and nothing is sent:
    ///   EINVAL no entry or more than one message holds, or a share's name that is
    ///   empty, longer than 4,096 bytes or has a NUL; of sendmsg(2) EBADF a descriptor
    ///   is not open, ETOOMANYREFS too many descriptors are on their way in sockets,
    ///   ENOMEM and ENOBUFS.
    public func send(_ request: Request, unique: UInt64) throws(Failure) {
      if let fault = request.fault { throw .system(fault) }
      let packet = request.packet(unique: unique)
      let descriptors = request.descriptors
      let result = unsafe packet.withUnsafeBytes { bytes in
        unsafe descriptors.withUnsafeBufferPointer {
          // Both sizes are those of the arrays.
          unsafe hw_send_with_descriptors(
            socket, bytes.baseAddress, bytes.count, $0.baseAddress, UInt32($0.count), 0)
        }
      }
      if result == -EPIPE || result == -ECONNRESET { throw .disconnected }
      guard result >= 0 else { throw .system(SystemError("sendmsg", -result)) }
    }

    /// Sends a request without descriptors if the socket takes it at once.
    func trySend(_ request: Request, unique: UInt64) -> Bool {
      let packet = request.packet(unique: unique)
      return unsafe packet.withUnsafeBytes {
        unsafe hw_send_with_descriptors(
          socket, $0.baseAddress, $0.count, nil, 0, Int32(MSG_DONTWAIT))
      } >= 0
    }

    /// Receives the next packet; nil means that the daemon hung up.
    ///
    /// - Parameter timeoutMilliseconds: how long to wait, -1 for ever.
    /// - Throws: `.system` with ETIMEDOUT when that is over, or another error of poll(2)
    ///   and recvmsg(2). `.malformed`: what came is not the protocol, and the
    ///   connection is of no use.
    public func receive(timeoutMilliseconds: Int32 = -1) throws(Failure) -> Packet? {
      while true {
        var ready = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
        let count = unsafe poll(&ready, 1, timeoutMilliseconds)
        if count < 0 && errno == EINTR { continue }
        guard count >= 0 else { throw .system(SystemError("poll", errno)) }
        guard count > 0 else { throw .system(SystemError("poll", ETIMEDOUT)) }
        switch incoming.withLock({ take(&$0) }) {
        case .success(.some(let packet)): return packet
        case .success(.none): continue
        case .failure(.disconnected): return nil
        case .failure(let failure): throw failure
        }
      }
    }

    /// What lies in the socket: nil where nothing does.
    private func take(_ incoming: inout Incoming) -> Result<Packet?, Failure> {
      let got = unsafe incoming.buffer.withUnsafeMutableBytes { buffer in
        unsafe incoming.descriptors.withUnsafeMutableBufferPointer {
          // Room for hw_descriptors_max, which is what hw_receive needs.
          unsafe hw_receive(socket, buffer.baseAddress, buffer.count, $0.baseAddress)
        }
      }
      if got.size == -Int(EAGAIN) { return .success(nil) }
      if got.size == 0 || got.size == -Int(ECONNRESET) { return .failure(.disconnected) }
      guard got.size > 0 else {
        return .failure(.system(SystemError("recvmsg", Int32(-got.size))))
      }
      for index in 0..<Int(got.descriptor_count) { _ = Glibc.close(incoming.descriptors[index]) }
      guard got.descriptor_count == 0, !got.descriptors_lost else {
        return .failure(.malformed(PacketError(problem: .unexpectedDescriptors, offset: 0)))
      }
      guard !got.truncated, got.size <= incoming.buffer.count else {
        return .failure(
          .malformed(PacketError(problem: .surplus, offset: incoming.buffer.count)))
      }
      let packet = Array(incoming.buffer[0..<got.size])
      do throws(PacketError) {
        return .success(try incoming.reader.read(packet))
      } catch {
        return .failure(.malformed(error))
      }
    }
  }
}

extension HostWatchClient.Connection {
  /// Sends a request and waits for its reply. What the daemon sends in
  /// between goes to `notification`.
  ///
  /// - Parameters:
  ///   - request: what has a reply: not FORGET.
  ///   - timeoutMilliseconds: the longest silence, -1 for ever.
  ///   - notification: called for each message that is not the reply.
  /// - Throws: `.refused`: the daemon's error and its sentence. Else what `send` and
  ///   `receive` throw; after `.system` with ETIMEDOUT the reply may still come, and
  ///   another call would take it for a breach of the protocol. `.disconnected`: the
  ///   daemon hung up.
  public func call(
    _ request: HostWatchClient.Request, timeoutMilliseconds: Int32 = -1,
    notification: (HostWatchClient.Packet) -> Void = { _ in }
  ) throws(HostWatchClient.Failure) -> HostWatchClient.Reply {
    let unique = nextUnique()
    try send(request, unique: unique)
    while let packet = try receive(timeoutMilliseconds: timeoutMilliseconds) {
      guard case .reply(let answered, let type, let reply) = packet else {
        notification(packet)
        continue
      }
      if case .refused(let refusal) = reply { throw .refused(refusal) }
      guard answered == unique, type == request.type else { throw .unexpectedReply }
      return reply
    }
    throw .disconnected
  }

  /// INIT: the session that the daemon grants.
  ///
  /// - Throws: as `call`; `.refused` with one of INIT's table in docs/protocol.md.
  public func attach(
    _ attachment: HostWatchClient.Attachment, timeoutMilliseconds: Int32 = -1
  ) throws(HostWatchClient.Failure) -> HostWatchClient.Session {
    guard
      case .session(let session) = try call(
        .attach(attachment), timeoutMilliseconds: timeoutMilliseconds)
    else { throw .unexpectedReply }
    return session
  }

  /// STATUS: a JSON object.
  ///
  /// - Throws: as `call`.
  public func status(timeoutMilliseconds: Int32 = -1) throws(HostWatchClient.Failure) -> String {
    guard case .status(let text) = try call(.status, timeoutMilliseconds: timeoutMilliseconds)
    else { throw .unexpectedReply }
    return text
  }
}

extension HostWatchClient.Failure {
  static let unexpectedReply = Self.malformed(
    HostWatchClient.PacketError(problem: .unexpectedReply, offset: 8))
}
