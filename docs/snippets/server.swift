import HostWatch

/// What a FUSE server has already: its inodes, and a way to notify its kernel.
/// `.none` and an empty name stand for what the session does not know; there
/// is nothing to forget then.
protocol FuseServer: AnyObject, Sendable {
  /// Forgets attributes and pages; for a directory its listing too.
  func invalidate(_ node: NodeID)
  /// Forgets what a name leads to.
  func invalidateEntry(_ name: [UInt8], in directory: NodeID)
  /// Every inode with an open descriptor and the last ctime that was seen.
  func registrations() -> [HostWatchClient.Registration]
}

/// Keeps a server's caches true for as long as the daemon lives.
func follow(share: String, for server: any FuseServer) async throws {
  let client = try await HostWatchClient(.init(.share(share), options: .suppressEcho))
  _ = try await client.register(server.registrations())
  for await event in client.events {
    switch event {
    case .record(let record):
      server.invalidate(record.node)
      server.invalidateEntry(record.name.bytes, in: record.directory)
      server.invalidateEntry(record.newName.bytes, in: record.newDirectory)
    case .disconnected:
      try await client.reconnect()
    case .connected:
      // Whatever changed meanwhile comes back as a RECHECK.
      _ = try await client.register(server.registrations())
    case .lost, .resynced, .detached:
      break  // The daemon checks what is registered, and tells it in records.
    }
  }
}
