import CFuse
import CHostWatchFS
import Glibc
import HostWatch

/// A directory that a client has open. Its position is the host's, so requests
/// take turns.
@safe final class DirectoryStream: Sendable {
  // closedir in deinit; used with the lock held.
  private nonisolated(unsafe) let stream: OpaquePointer
  private let position = Locked<off_t>(0)
  let descriptor: Descriptor

  /// Takes over `file`, open for reading.
  init(_ file: Descriptor) throws(Failure) {
    let copy = try check(file.use { fd in hwfs_dup(fd) })
    guard let stream = unsafe fdopendir(copy) else {
      let code = errno
      close(copy)
      throw Failure(code)
    }
    unsafe self.stream = stream
    descriptor = file
  }

  deinit { _ = unsafe closedir(stream) }

  /// Reads entries from `offset` on until `body` says that it has enough; that
  /// entry is read again the next time.
  func read(from offset: off_t, _ body: (hwfs_entry) -> Bool) throws(Failure) {
    try position.withLock { position throws(Failure) in
      if offset == 0 {
        // As it is now, not as it was when it was opened.
        unsafe rewinddir(stream)
      } else if offset != position {
        unsafe seekdir(stream, offset)
      }
      position = offset
      var entry = unsafe hwfs_entry()
      while try check(unsafe hwfs_readdir(stream, &entry)) == 1 {
        guard unsafe body(entry) else {
          unsafe seekdir(stream, position)
          return
        }
        position = unsafe entry.next
      }
    }
  }
}

extension Server {
  func openDirectory(_ request: Request, _ id: UInt64, _ info: fuse_file_info) {
    var reply = OpenReply(info)
    request.answer { () throws(Failure) in
      let descriptor = try open(id)
      let file = try Descriptor(
        checking: descriptor.use { fd in hwfs_reopen(fd, O_RDONLY | O_DIRECTORY) })
      let stream = try DirectoryStream(file)
      // The listing is kept while every change of it is told.
      let keeps = view.timeouts(parent: id, node: nil).entry > 0
      reply.info.cache_readdir = keeps ? 1 : 0
      reply.info.keep_cache = keeps ? 1 : 0
      reply.handle = files.add(stream)
      if !request.reply(reply) { files.remove(reply.handle) }
    }
  }

  func readDirectory(
    _ request: Request, _ id: UInt64, _ handle: UInt64, size: Int, offset: off_t, plus: Bool
  ) {
    request.answer { () throws(Failure) in
      guard let stream = files.directory(handle) else { throw Failure(EBADF) }
      var page = try collect(request, stream, id, size: size, offset: offset, plus: plus)
      if plus { fillIn(request, &page, id) }
      if !request.reply(page.buffer[..<page.count]) {
        for item in page.items { withdraw(item.found.node.id) }
      }
    }
  }

  /// What is read at once, to be registered at once.
  private struct Page {
    struct Item {
      let found: Found
      /// Where its entry begins in the buffer.
      let start: Int
      let name: Name
      let next: off_t
    }
    var buffer: [CChar]
    var count = 0
    var items: [Item] = []
  }

  /// Reads until the page is full. With `plus`, objects are entered in the view,
  /// and their entries are written without timeouts.
  private func collect(
    _ request: Request, _ stream: DirectoryStream, _ id: UInt64, size: Int, offset: off_t,
    plus: Bool
  ) throws(Failure) -> Page {
    var page = Page(buffer: [CChar](repeating: 0, count: min(size, 1 << 20)))
    do throws(Failure) {
      unsafe try stream.read(from: offset) { entry in
        unsafe add(entry, request, stream, id, plus: plus, to: &page)
      }
    } catch {
      // What was read already is answered; the error comes again.
      guard page.count > 0 else { throw error }
    }
    return page
  }

  private func add(
    _ entry: hwfs_entry, _ request: Request, _ stream: DirectoryStream, _ id: UInt64, plus: Bool,
    to page: inout Page
  ) -> Bool {
    // A name of the stream, valid until the next is read.
    let name = unsafe Name(cString: entry.name)
    var parameters = fuse_entry_param()
    parameters.attr.st_ino = unsafe ino_t(entry.inode)
    parameters.attr.st_mode = unsafe mode_t(entry.type) << 12
    let next = unsafe entry.next
    let room = page.buffer.count - page.count
    let needed = unsafe request.add(
      entry.name, parameters, next: next, plus: plus, to: &page.buffer, at: page.count)
    guard needed <= room else { return false }
    if plus, name != .dot, name != .dotDot,
      let found = try? find(
        View.Entry(parent: id, name: name), in: stream.descriptor,
        told: View.Entry(parent: id, name: name))
    {
      page.items.append(.init(found: found, start: page.count, name: name, next: next))
    }
    page.count += needed
    return true
  }

  /// Registers a page's objects and writes what may be told of them. A name
  /// without an object (it is gone by now) stays with nodeid 0, which tells
  /// nothing.
  private func fillIn(_ request: Request, _ page: inout Page, _ id: UInt64) {
    register(page.items.map(\.found))
    for item in page.items {
      let parameters = parameters(item.found, parent: id)
      // The same size as before, so it fits.
      _ = unsafe item.name.withCString {
        unsafe request.add(
          $0, parameters, next: item.next, plus: true, to: &page.buffer, at: item.start)
      }
    }
  }
}

extension Server {
  func synchronizeDirectory(_ request: Request, _ handle: UInt64, dataOnly: Bool) {
    request.answer { () throws(Failure) in
      guard let stream = files.directory(handle) else { throw Failure(EBADF) }
      try check(stream.descriptor.use { fd in hwfs_fsync(fd, dataOnly) })
      request.done()
    }
  }
}
