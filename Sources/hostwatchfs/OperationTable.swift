import CFuse
import CHostWatchFS
import Glibc

/// libfuse's table of operations: each finds the server and hands it what C
/// passed, as Swift has it.
enum OperationTable {
  private static func server(_ request: OpaquePointer?) -> (Server, Request) {
    // libfuse passes a request, and as its user data what `Mount` gave it: the
    // server, which outlives the session.
    let raw = unsafe request!
    let server = unsafe Unmanaged<Server>.fromOpaque(fuse_req_userdata(raw)).takeUnretainedValue()
    return unsafe (server, Request(raw))
  }

  private static func entry(_ parent: UInt64, _ name: UnsafePointer<CChar>?) -> View.Entry {
    // libfuse passes a name wherever there is one to pass.
    unsafe View.Entry(parent: parent, name: Name(cString: name!))
  }

  /// What libfuse passes where a file is open.
  private static func info(_ pointer: UnsafeMutablePointer<fuse_file_info>?) -> fuse_file_info {
    unsafe pointer!.pointee
  }

  static func make() -> fuse_lowlevel_ops {
    var table = fuse_lowlevel_ops()
    addNodes(&table)
    addNames(&table)
    addFiles(&table)
    addDirectories(&table)
    unsafe table.`init` = { _, connection in unsafe OperationTable.configure(&connection!.pointee) }
    return table
  }

  private static func configure(_ connection: inout fuse_conn_info) {
    let wanted =
      FUSE_CAP_DONT_MASK | FUSE_CAP_POSIX_ACL | FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS
      | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO | FUSE_CAP_PARALLEL_DIROPS
      | FUSE_CAP_CACHE_SYMLINKS | FUSE_CAP_EXPIRE_ONLY | FUSE_CAP_AUTO_INVAL_DATA
      | FUSE_CAP_ASYNC_DIO
    connection.want |= UInt32(wanted) & connection.capable
    // - HANDLE_KILLPRIV: a server that is root writes without losing set-id
    //   bits, so the kernel takes them away itself.
    // - ATOMIC_O_TRUNC: the kernel truncates by SETATTR, which does that too.
    // - EXPORT_SUPPORT: reconnecting a handle would read directories of the
    //   mount, and be seen there as OPEN and ACCESS.
    // - WRITEBACK_CACHE: pages not yet written would win over the host's change.
    let unwanted =
      FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_EXPORT_SUPPORT
      | FUSE_CAP_WRITEBACK_CACHE
    connection.want &= ~UInt32(unwanted)
    connection.max_background = 64
    connection.congestion_threshold = 48
  }

  private static func addNodes(_ table: inout fuse_lowlevel_ops) {
    unsafe table.lookup = { request, parent, name in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.lookup(request, OperationTable.entry(parent, name))
    }
    unsafe table.forget = { request, node, lookups in
      let (server, request) = unsafe OperationTable.server(request)
      server.forget(node, lookups: lookups)
      request.none()
    }
    unsafe table.forget_multi = { request, count, nodes in
      let (server, request) = unsafe OperationTable.server(request)
      // `count` elements.
      let forgotten = unsafe UnsafeBufferPointer(start: nodes, count: count)
      for index in forgotten.indices {
        unsafe server.forget(forgotten[index].ino, lookups: forgotten[index].nlookup)
      }
      request.none()
    }
    unsafe table.getattr = { request, node, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.attributes(request, of: node, file?.pointee.fh)
    }
    unsafe table.setattr = { request, node, attributes, which, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.setAttributes(
        request, of: node, attributes!.pointee, which, file?.pointee.fh)
    }
    unsafe table.readlink = { request, node in
      let (server, request) = unsafe OperationTable.server(request)
      server.readLink(request, node)
    }
    unsafe table.statfs = { request, node in
      let (server, request) = unsafe OperationTable.server(request)
      server.statistics(request, node)
    }
    unsafe table.getxattr = { request, node, name, size in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.getAttribute(request, node, Name(cString: name!), size: size)
    }
    unsafe table.listxattr = { request, node, size in
      let (server, request) = unsafe OperationTable.server(request)
      server.listAttributes(request, node, size: size)
    }
    unsafe table.setxattr = { request, node, name, value, size, flags in
      let (server, request) = unsafe OperationTable.server(request)
      // `size` bytes.
      let bytes = unsafe Array(UnsafeRawBufferPointer(start: value, count: size))
      unsafe server.setAttribute(request, node, Name(cString: name!), bytes, flags)
    }
    unsafe table.removexattr = { request, node, name in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.removeAttribute(request, node, Name(cString: name!))
    }
  }

  private static func addNames(_ table: inout fuse_lowlevel_ops) {
    unsafe table.mknod = { request, parent, name, mode, device in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.create(request, OperationTable.entry(parent, name), .node(mode, device))
    }
    unsafe table.mkdir = { request, parent, name, mode in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.create(request, OperationTable.entry(parent, name), .directory(mode))
    }
    unsafe table.symlink = { request, target, parent, name in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.create(
        request, OperationTable.entry(parent, name), .symbolicLink(Name(cString: target!)))
    }
    unsafe table.link = { request, node, parent, name in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.link(request, node, OperationTable.entry(parent, name))
    }
    unsafe table.unlink = { request, parent, name in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.remove(request, OperationTable.entry(parent, name), isDirectory: false)
    }
    unsafe table.rmdir = { request, parent, name in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.remove(request, OperationTable.entry(parent, name), isDirectory: true)
    }
    unsafe table.rename = { request, parent, name, newParent, newName, flags in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.rename(
        request, OperationTable.entry(parent, name),
        to: OperationTable.entry(newParent, newName), flags: flags)
    }
  }

  private static func addFiles(_ table: inout fuse_lowlevel_ops) {
    unsafe table.open = { request, node, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.openFile(request, node, OperationTable.info(file))
    }
    unsafe table.create = { request, parent, name, mode, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.createFile(
        request, OperationTable.entry(parent, name), mode, OperationTable.info(file))
    }
    unsafe table.read = { request, _, size, offset, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.read(request, OperationTable.info(file).fh, size: size, offset: offset)
    }
    unsafe table.write = { request, node, data, size, offset, file in
      let (server, request) = unsafe OperationTable.server(request)
      // `size` bytes.
      let bytes = unsafe UnsafeRawBufferPointer(start: data, count: size)
      unsafe server.write(request, node, OperationTable.info(file), bytes, offset: offset)
    }
    unsafe table.flush = { request, node, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.flush(request, node, OperationTable.info(file))
    }
    unsafe table.release = { request, node, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.release(request, node, OperationTable.info(file))
    }
    unsafe table.fsync = { request, _, dataOnly, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.synchronize(
        request, OperationTable.info(file).fh, dataOnly: dataOnly != 0)
    }
    unsafe table.fallocate = { request, _, mode, offset, length, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.allocate(request, OperationTable.info(file).fh, mode, offset, length)
    }
    unsafe table.lseek = { request, _, offset, whence, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.seek(request, OperationTable.info(file).fh, offset, whence)
    }
    unsafe table.copy_file_range = {
      request, _, offset, input, _, newOffset, output, size, flags in
      let (server, request) = unsafe OperationTable.server(request)
      let (from, to) = unsafe (OperationTable.info(input).fh, OperationTable.info(output).fh)
      server.copyRange(
        request, from: (from, offset), to: (to, newOffset), size: size, flags: UInt32(flags))
    }
    unsafe table.getlk = { request, node, file, lock in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.getLock(request, node, OperationTable.info(file), lock!.pointee)
    }
    unsafe table.setlk = { request, node, file, lock, sleep in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.setLock(
        request, node, OperationTable.info(file), lock!.pointee, waits: sleep != 0)
    }
    unsafe table.flock = { request, _, file, operation in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.lockFile(request, OperationTable.info(file).fh, operation)
    }
  }

  private static func addDirectories(_ table: inout fuse_lowlevel_ops) {
    unsafe table.opendir = { request, node, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.openDirectory(request, node, OperationTable.info(file))
    }
    unsafe table.readdir = { request, node, size, offset, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.readDirectory(
        request, node, OperationTable.info(file).fh, size: size, offset: offset, plus: false)
    }
    unsafe table.readdirplus = { request, node, size, offset, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.readDirectory(
        request, node, OperationTable.info(file).fh, size: size, offset: offset, plus: true)
    }
    unsafe table.releasedir = { request, _, file in
      let (server, request) = unsafe OperationTable.server(request)
      unsafe server.files.remove(OperationTable.info(file).fh)
      request.done()
    }
    unsafe table.fsyncdir = { request, node, dataOnly, file in
      let (server, request) = unsafe OperationTable.server(request)
      let handle = unsafe OperationTable.info(file).fh
      server.synchronizeDirectory(request, handle, dataOnly: dataOnly != 0)
    }
  }
}
