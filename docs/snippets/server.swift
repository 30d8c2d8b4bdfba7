import HostWatch

/// What a FUSE server has already: its inodes, and a way to notify its kernel.
/// `.none` and an empty name stand for what the session does not know; there
/// is nothing to forget then.
protocol FuseServer: AnyObject, Sendable {
  /// Forgets attributes and pages; for a directory its listing too.
  func invalidate(_ node: NodeID)
  /// Forgets what a name leads to.
  func invalidateEntry(_ name: [UInt8], in directory: NodeID)
  /// Forgets what each name leads to that it has told of a directory.
  func invalidateEntries(in directory: NodeID)
  /// Every inode with an open descriptor; what cannot be opened any more is
  /// forgotten. `since` is for each.
  func registrations(since: HostWatchClient.Moment) -> [HostWatchClient.Registration]
  /// Whether answers may be cached for long.
  func mayCache(_ allowed: Bool)
}

/// Keeps a server's caches true, also over restarts of the daemon.
func follow(share: String, for server: any FuseServer) async throws {
  let client = try await HostWatchClient(
    .init(.share(share), options: .suppressEcho),
    reconnection: .init { client, since in
      _ = try await client.register(server.registrations(since: since))
    })
  for await event in client.events {
    switch event {
    case .record(let record):
      server.invalidate(record.node)
      server.invalidateEntry(record.name.bytes, in: record.directory)
      server.invalidateEntry(record.newName.bytes, in: record.newDirectory)
      // After a gap nobody says which names have changed.
      if record.flags.contains(.recheck), record.mask.contains(.isDirectory) {
        server.invalidateEntries(in: record.node)
      }
    case .outOfStep: server.mayCache(false)
    case .inStep: server.mayCache(true)  // What had changed came as records.
    case .lost, .resynced, .detached, .disconnected, .connected: break
    }
  }
}
