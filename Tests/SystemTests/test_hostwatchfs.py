# SPDX-License-Identifier: Apache-2.0
"""hostwatchfs as a filesystem: each operation does what it does on SOURCE itself."""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import threading
import time

import fusefs
import inject
from daemon import DaemonTest

libc = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
AT_FDCWD = -100


def rename2(old, new, flags):
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) < 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def fallocate(fd, mode, offset, length):
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, mode, offset, length) < 0:
        raise OSError(ctypes.get_errno(), "fallocate")


def outcome(operation, *arguments, **keywords):
    """What an operation returned, or its errno by name."""
    try:
        return operation(*arguments, **keywords)
    except OSError as error:
        return errno.errorcode[error.errno]


def attributes(path):
    st = os.lstat(path)
    return (st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_rdev,
            0 if stat.S_ISDIR(st.st_mode) else st.st_size)


def tree(top):
    """Everything below `top`: names, attributes, contents, extended attributes."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            what = [attributes(path), sorted(os.listxattr(path, follow_symlinks=False))]
            if os.path.islink(path):
                what.append(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    what.append(file.read())
            found[os.path.relpath(path, top)] = what
    return found


def as_user(uid, gid, groups, body):
    """What `body` returns in a process of another user, by repr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writing, repr(body()).encode())
        except BaseException as error:  # the parent shows it
            os.write(writing, f"raised {error!r}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        result = file.read().decode()
    os.waitpid(child, 0)
    return result


class MountTest(DaemonTest):
    """A mount of `share`, and `native`, a directory beside it on the same filesystem."""

    options = "allow_other,events=invalidate"
    prefix = ()

    def setUp(self):
        super().setUp()
        self.native = os.path.join(self.base, "native")
        os.mkdir(self.native)
        # Nobody reads these meanwhile, and a daemon that stores a descriptor waits.
        self.daemon.drain_notifications()
        self.fs = fusefs.HostwatchFS(self.share, self.daemon.socket, self.options,
                                     prefix=self.prefix)
        self.addCleanup(self.fs.kill)
        self.mnt = self.fs.path


class OperationsTest(MountTest):
    """The same operations on the mount and natively: same results, same tree."""

    def both(self, body):
        """`body(directory)` in both places gives the same, and leaves the same."""
        there, here = body(self.native), body(self.mnt)
        self.assertEqual(here, there)
        self.assertEqual(tree(self.mnt), tree(self.native))
        self.assertEqual(tree(self.share), tree(self.native))

    def test_names(self):
        def body(top):
            def at(*names):
                return os.path.join(top, *names)
            done = []
            def do(operation, *arguments, **keywords):
                done.append(outcome(operation, *arguments, **keywords))
            do(os.mkdir, at("d"), 0o751)
            do(os.mkdir, at("d"))
            do(os.mkdir, at("none", "d"))
            do(os.mknod, at("fifo"), stat.S_IFIFO | 0o640)
            do(os.mknod, at("node"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
            do(os.mknod, at("file"), stat.S_IFREG | 0o4755)
            do(os.mknod, at("file"), stat.S_IFREG)
            do(os.symlink, "target of it", at("symlink"))
            do(os.symlink, "x" * 4000, at("long"))
            do(os.symlink, "x", at("symlink"))
            do(os.readlink, at("symlink"))
            do(os.readlink, at("file"))
            do(os.link, at("file"), at("d", "file2"))
            do(os.link, at("file"), at("d", "file2"))
            do(os.link, at("d"), at("d2"))
            do(os.link, at("symlink"), at("symlink2"), follow_symlinks=False)
            do(os.mkdir, at("n" * 255))
            do(os.mkdir, at("n" * 256))
            do(os.mkdir, os.fsencode(top) + b"/\xff\xfe\n")
            do(os.stat, at("nothing"))
            do(os.stat, at("file", "x"))
            do(os.rmdir, at("d"))
            do(os.unlink, at("d"))
            do(os.rmdir, at("file"))
            do(os.unlink, at("nothing"))
            do(os.rename, at("file"), at("file3"))
            do(os.rename, at("nothing"), at("x"))
            do(os.rename, at("file3"), at("d"))
            do(os.rename, at("d"), at("file3"))
            do(os.rename, at("d"), at("d", "e"))
            do(os.rename, at("d", "file2"), at("file3"))  # two names of one inode: nothing
            do(os.mkdir, at("e"))
            do(os.rename, at("e"), at("d"))
            do(os.rename, at("d"), at("e"))
            do(rename2, at("e"), at("file3"), RENAME_EXCHANGE)
            do(rename2, at("fifo"), at("e"), RENAME_NOREPLACE)
            do(rename2, at("fifo"), at("fifo2"), RENAME_NOREPLACE)
            do(rename2, at("fifo2"), at("nothing"), RENAME_EXCHANGE)
            do(os.unlink, at("symlink2"))
            do(sorted, os.listdir(top))
            return done
        self.both(body)

    def test_sockets_and_fifos(self):
        def body(top):
            with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as peer:
                with_cwd = os.getcwd()
                os.chdir(top)
                try:
                    listener.bind("socket")
                    listener.listen()
                    peer.connect("socket")
                finally:
                    os.chdir(with_cwd)
            fifo = os.path.join(top, "fifo")
            os.mkfifo(fifo)
            reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
            with open(fifo, "wb", buffering=0) as writer:
                writer.write(b"through")
                result = os.read(reader, 100)
            os.close(reader)
            return result
        self.both(body)

    def test_attributes(self):
        def body(top):
            path = os.path.join(top, "file")
            done = []
            with open(path, "wb") as file:
                file.write(b"0123456789")
            for mode in (0o600, 0o4755, 0o2755, 0o1777, 0o7777, 0):
                done.append(outcome(os.chmod, path, mode))
                done.append(attributes(path))
            done.append(outcome(os.chmod, path, 0o6755))
            done.append(outcome(os.chown, path, 1234, -1))
            done.append(attributes(path))
            done.append(outcome(os.chown, path, -1, 4321))
            done.append(outcome(os.utime, path, ns=(1_000_000_001, 2_000_000_002)))
            st = os.stat(path)
            done.append((st.st_atime_ns, st.st_mtime_ns))
            before = time.time() - 10
            os.utime(path)
            done.append(os.stat(path).st_mtime > before)
            done.append(outcome(os.truncate, path, 4))
            done.append(outcome(os.truncate, path, 100))
            done.append(outcome(os.truncate, path, -1))
            done.append(outcome(os.truncate, top, 0))
            os.symlink("file", os.path.join(top, "symlink"))
            done.append(outcome(os.utime, os.path.join(top, "symlink"), ns=(5, 6),
                                follow_symlinks=False))
            done.append(outcome(os.lchown, os.path.join(top, "symlink"), 7, 8))
            done.append(os.lstat(os.path.join(top, "symlink")).st_mtime_ns)
            vfs = os.statvfs(path)
            return done + [vfs.f_bsize, vfs.f_blocks, vfs.f_files, vfs.f_namemax]
        self.both(body)

    def test_set_id_bits_go_as_they_go_on_the_host(self):
        def body(top):
            path = os.path.join(top, "file")
            os.chmod(top, 0o777)
            with open(path, "wb") as file:
                file.write(b"x" * 10)
            done = []
            def again():
                os.chown(path, 1000, 1000)
                os.chmod(path, 0o6777)
            def write():
                with open(path, "r+b") as file:
                    file.write(b"y")
            def rewrite():
                with open(path, "wb") as file:
                    file.write(b"y")
            for change in (write, rewrite, lambda: os.truncate(path, 3),
                           lambda: os.chmod(path, 0o6755)):
                again()
                done.append(as_user(1000, 1000, [], lambda c=change: outcome(c)))
                done.append(attributes(path))
                again()
                done.append(as_user(1001, 1001, [], lambda c=change: outcome(c)))
                done.append(attributes(path))
            again()
            os.chown(path, 5, 5)
            done.append(attributes(path))
            return done
        self.both(body)

    def test_extended_attributes(self):
        def body(top):
            path = os.path.join(top, "file")
            open(path, "wb").close()
            done = []
            def do(operation, *arguments, **keywords):
                done.append(outcome(operation, *arguments, **keywords))
            do(os.setxattr, path, "user.a", b"1")
            do(os.setxattr, path, "user.empty", b"")
            do(os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
            do(os.setxattr, path, "user.b", b"2", os.XATTR_REPLACE)
            do(os.setxattr, path, "user.big", b"x" * 3000)
            do(os.setxattr, path, "user.toobig", b"x" * 65537)
            do(os.setxattr, path, "trusted.t", b"t")
            do(os.setxattr, path, "nonsense", b"t")
            do(os.getxattr, path, "user.a")
            do(os.getxattr, path, "user.empty")
            do(os.getxattr, path, "user.big")
            do(os.getxattr, path, "user.none")
            do(lambda: sorted(os.listxattr(path)))
            do(os.removexattr, path, "user.a")
            do(os.removexattr, path, "user.a")
            do(os.setxattr, top, "user.d", b"d")
            do(os.getxattr, top, "user.d")
            os.symlink("x", os.path.join(top, "symlink"))
            do(os.setxattr, os.path.join(top, "symlink"), "user.a", b"", follow_symlinks=False)
            do(os.setxattr, os.path.join(top, "symlink"), "trusted.a", b"s",
               follow_symlinks=False)
            do(os.getxattr, os.path.join(top, "symlink"), "trusted.a", follow_symlinks=False)
            os.removexattr(top, "user.d")
            return done
        self.both(body)

    def test_files(self):
        def body(top):
            path = os.path.join(top, "file")
            done = []
            done.append(outcome(os.open, path, os.O_RDONLY))
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
            done.append(outcome(os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL))
            done.append(outcome(os.open, top, os.O_RDWR))
            done.append(outcome(os.open, path, os.O_RDONLY | os.O_DIRECTORY))
            done.append(os.pwrite(fd, b"hello", 3))
            done.append(os.pread(fd, 100, 0))
            done.append(os.pwrite(fd, b"far", 1 << 20))
            done.append(os.lseek(fd, 0, os.SEEK_HOLE))
            done.append(os.lseek(fd, 65536, os.SEEK_DATA))
            done.append(outcome(os.lseek, fd, 2 << 20, os.SEEK_DATA))
            done.append(outcome(fallocate, fd, 0, 0, 4096))
            done.append(outcome(fallocate, fd, 1, 2 << 20, 4096))  # KEEP_SIZE
            done.append(outcome(fallocate, fd, 3, 0, 4096))  # PUNCH_HOLE | KEEP_SIZE
            done.append(outcome(fallocate, fd, 0, 0, -1))
            done.append(os.fstat(fd).st_size)
            done.append(outcome(os.ftruncate, fd, 10))
            done.append(outcome(os.fsync, fd))
            done.append(outcome(os.fdatasync, fd))
            other = os.open(os.path.join(top, "other"), os.O_RDWR | os.O_CREAT)
            os.write(other, b"abcdefghij" * 1000)
            done.append(os.copy_file_range(other, fd, 5000, 100, 20))
            os.close(other)
            with open(path, "ab", buffering=0) as file:
                done.append(file.write(b"appended"))
                done.append(file.tell())
            read_only = os.open(path, os.O_RDONLY)
            done.append(outcome(os.write, read_only, b"x"))
            os.close(read_only)
            os.unlink(path)
            done.append(os.fstat(fd).st_nlink)
            done.append(os.pwrite(fd, b"after", 0))
            done.append(os.pread(fd, 5, 0))
            done.append(outcome(os.fchmod, fd, 0o604))
            done.append(os.fstat(fd).st_mode)
            os.close(fd)
            direct = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
            os.close(direct)
            with open(path, "wb") as file:
                file.write(os.urandom(0) + bytes(range(256)) * 4096)
            with open(path, "rb") as file:
                done.append(file.read() == bytes(range(256)) * 4096)
            return done
        self.both(body)

    def test_directory_in_use_can_be_removed(self):
        def body(top):
            path = os.path.join(top, "d")
            os.mkdir(path)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            os.rmdir(path)
            done = [os.fstat(fd).st_nlink, outcome(os.listdir, fd),
                    outcome(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)]
            os.close(fd)
            return done
        self.both(body)

    def test_listing_is_complete(self):
        def body(top):
            for number in range(3000):
                os.close(os.open(os.path.join(top, f"file{number}"), os.O_CREAT | os.O_WRONLY))
            first = sorted(os.listdir(top))
            entries = {entry.name: (entry.is_file(), entry.stat().st_size)
                       for entry in os.scandir(top)}
            for number in range(0, 3000, 2):
                os.unlink(os.path.join(top, f"file{number}"))
            second = sorted(os.listdir(top))
            shutil.rmtree(os.path.join(top), ignore_errors=False, onerror=lambda *_: None)
            os.makedirs(top, exist_ok=True)
            return first, entries, second
        # rmtree of a mount point leaves the mount point.
        native, body_native = self.native, body
        there = body_native(native)
        self.assertEqual(body(self.mnt), there)
        self.assertEqual(os.listdir(self.share), [])

    def test_creations_are_the_callers(self):
        for top in (self.native, self.mnt):
            os.chown(top, 0, 777)
            os.chmod(top, 0o775)
        os.chown(self.share, 0, 777)
        def body(top):
            def inside():
                os.umask(0o027)
                def at(name):
                    return os.path.join(top, name)
                done = [outcome(os.mkdir, at("d")), outcome(os.mkfifo, at("p"), 0o666),
                        outcome(os.symlink, "x", at("s")),
                        outcome(lambda: os.close(os.open(at("f"), os.O_CREAT | os.O_WRONLY)))]
                return done + [outcome(attributes, at(name)) for name in "dpsf"]
            # The right to write comes from a supplementary group.
            with_group = as_user(1000, 1000, [777], inside)
            for name in os.listdir(top):
                path = os.path.join(top, name)
                os.rmdir(path) if name == "d" else os.unlink(path)
            without = as_user(1000, 1000, [], inside)
            return with_group, without
        self.both(body)

    def test_a_thread_that_cannot_become_root_again_serves_nobody(self):
        os.chmod(self.share, 0o777)
        path = os.path.join(self.mnt, "d")
        # To become the caller fails. Once that can be taken back, and once it cannot.
        for when, wanted in (("error=EPERM:when=1", "'EPERM'"), ("error=EPERM", None)):
            with inject.failing(self.fs.process.pid, "setresuid", when):
                result = as_user(1000, 1000, [], lambda: outcome(os.mkdir, path))
                if wanted:
                    self.assertEqual(result, wanted)
                    self.assertIsNone(self.fs.process.poll())
                else:
                    self.assertEqual(self.fs.process.wait(10), -signal.SIGABRT)
        self.assertIn("ids cannot be restored", self.fs.log())
        self.assertEqual(os.listdir(self.share), [])

    def test_directories_with_set_gid_and_default_acl(self):
        def body(top):
            path = os.path.join(top, "d")
            os.mkdir(path)
            os.chown(path, 0, 999)
            os.chmod(path, 0o2777)
            # u::rwx g::rwx m::rwx o::--- and user 1234 rw-, as the default of what is made
            acl = struct.pack("<I", 2) + b"".join(
                struct.pack("<HHI", tag, permissions, who) for tag, permissions, who in (
                    (1, 7, 0xffffffff), (2, 6, 1234), (4, 7, 0xffffffff),
                    (16, 7, 0xffffffff), (32, 0, 0xffffffff)))
            os.setxattr(path, "system.posix_acl_default", acl)
            def inside():
                os.umask(0o022)
                os.mkdir(os.path.join(path, "e"))
                os.close(os.open(os.path.join(path, "f"), os.O_CREAT | os.O_WRONLY, 0o666))
            done = [as_user(1000, 1000, [], inside)]
            done += [attributes(os.path.join(path, name)) for name in "ef"]
            done.append(os.getxattr(os.path.join(path, "f"), "system.posix_acl_access"))
            def read():
                with open(os.path.join(path, "f"), "rb") as file:
                    return file.read()
            done.append(as_user(1234, 1234, [], lambda: outcome(read)))
            done.append(as_user(1235, 1235, [], lambda: outcome(read)))
            return done
        self.both(body)

    def test_permissions(self):
        def body(top):
            os.mkdir(os.path.join(top, "sticky"))
            os.chmod(os.path.join(top, "sticky"), 0o1777)
            for name, mode in (("secret", 0o600), ("sticky/theirs", 0o666)):
                with open(os.path.join(top, name), "wb") as file:
                    file.write(b"x")
                os.chmod(os.path.join(top, name), mode)
            os.mkdir(os.path.join(top, "closed"), 0o700)
            def inside():
                def at(name):
                    return os.path.join(top, name)
                return [outcome(os.open, at("secret"), os.O_RDONLY),
                        outcome(os.listdir, at("closed")), outcome(os.stat, at("closed/x")),
                        outcome(os.unlink, at("sticky/theirs")),
                        outcome(os.rename, at("sticky/theirs"), at("sticky/mine")),
                        outcome(os.mkdir, at("new")), outcome(os.chmod, at("sticky/theirs"), 0),
                        outcome(os.chown, at("sticky/theirs"), 1000, 1000),
                        outcome(os.utime, at("secret"), (0, 0)), os.access(at("secret"), os.R_OK)]
            return as_user(1000, 1000, [], inside)
        self.both(body)

    def test_locks_meet_those_of_the_host(self):
        here = os.path.join(self.mnt, "file")
        there = self.path("file")
        open(there, "wb").close()
        with open(here, "r+b") as ours, open(there, "r+b") as theirs:
            fcntl.flock(ours, fcntl.LOCK_EX)
            self.assertEqual(outcome(fcntl.flock, theirs, fcntl.LOCK_EX | fcntl.LOCK_NB), "EAGAIN")
            fcntl.flock(ours, fcntl.LOCK_UN)
            fcntl.flock(theirs, fcntl.LOCK_EX)
            self.assertEqual(outcome(fcntl.flock, ours, fcntl.LOCK_EX | fcntl.LOCK_NB), "EAGAIN")
            waiting = threading.Thread(target=fcntl.flock, args=(ours, fcntl.LOCK_EX))
            waiting.start()
            fcntl.flock(theirs, fcntl.LOCK_UN)
            waiting.join(10)
            self.assertFalse(waiting.is_alive())
            fcntl.flock(ours, fcntl.LOCK_UN)
            fcntl.lockf(ours, fcntl.LOCK_EX, 10, 5)
            self.assertEqual(
                outcome(fcntl.lockf, theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 10), "EAGAIN")
            fcntl.lockf(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 15)
            got = fcntl.fcntl(ours, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 15, 1, 0))
            self.assertEqual(struct.unpack("hhqqi4x", got)[:4], (fcntl.F_WRLCK, 0, 15, 5))

    def test_posix_locks_belong_to_processes(self):
        path = os.path.join(self.mnt, "file")
        open(path, "wb").close()
        with open(path, "r+b") as first:
            fcntl.lockf(first, fcntl.LOCK_EX)
            with open(path, "r+b") as second:
                fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB)  # our own
                # Another process, through the same open file.
                self.assertEqual(as_user(0, 0, [], lambda: outcome(
                    fcntl.lockf, first, fcntl.LOCK_EX | fcntl.LOCK_NB)), "'EAGAIN'")
            # The close ended the lock, as POSIX has it.
            self.assertEqual(as_user(0, 0, [], lambda: outcome(
                fcntl.lockf, first, fcntl.LOCK_EX | fcntl.LOCK_NB)), "None")

    def test_a_wait_for_a_lock_is_interrupted(self):
        path = os.path.join(self.mnt, "file")
        open(path, "wb").close()
        with open(self.path("file"), "r+b") as theirs:
            fcntl.flock(theirs, fcntl.LOCK_EX)
            waiter = subprocess.Popen(["flock", path, "true"])
            fusefs.wait_until(lambda: self.fs.thread("locks"), "it waits")
            waiter.terminate()
            self.assertEqual(waiter.wait(10), -15)

    def test_a_wait_for_a_lock_when_the_server_ends(self):
        """Nothing is done with the request once libfuse's session is gone."""
        fs = fusefs.HostwatchFS(self.share, self.daemon.socket, self.options,
                                prefix=["env", "MALLOC_PERTURB_=165"])
        self.addCleanup(fs.kill)
        path = os.path.join(fs.path, "file")
        open(path, "wb").close()
        with open(self.path("file"), "r+b") as theirs:
            fcntl.flock(theirs, fcntl.LOCK_EX)
            waiter = subprocess.Popen(["flock", path, "true"], stderr=subprocess.DEVNULL)
            self.addCleanup(waiter.kill)
            fusefs.wait_until(lambda: fs.thread("locks"), "it waits")
            with inject.failing(fs.process.pid, "exit_group", "delay_enter=1000000"):
                fs.process.terminate()
                fusefs.wait_until(lambda: not fusefs.is_mounted(fs.path), "unmounted")
                fusefs.wait_until(lambda: inject.holds(fs.process.pid), "it is about to end")
                fcntl.flock(theirs, fcntl.LOCK_UN)
                self.assertEqual(fs.process.wait(10), 0)
            self.assertNotEqual(waiter.wait(10), 0)

    def test_a_wait_for_a_lock_without_a_thread_to_try_it(self):
        path = os.path.join(self.mnt, "file")
        open(path, "wb").close()
        with open(path, "rb") as ours, open(self.path("file"), "rb") as theirs:
            fcntl.flock(theirs, fcntl.LOCK_EX)
            with inject.failing(self.fs.process.pid, "clone,clone3", "error=EAGAIN"):
                self.assertEqual(outcome(fcntl.flock, ours, fcntl.LOCK_EX), "ENOLCK")
                with self.assertRaises((ConnectionResetError, BrokenPipeError)):
                    self.fs.ask("status")
            self.assertEqual(self.fs.status()["state"], "in-step")
            waiter = subprocess.Popen(["flock", path, "true"])
            self.addCleanup(waiter.kill)
            fusefs.wait_until(lambda: self.fs.thread("locks"), "it waits")
            fcntl.flock(theirs, fcntl.LOCK_UN)
            self.assertEqual(waiter.wait(10), 0)

    def test_mmap(self):
        path = os.path.join(self.mnt, "file")
        script = ("import mmap,sys; f=open(sys.argv[1],'w+b'); f.truncate(8192); "
                  "m=mmap.mmap(f.fileno(),8192); m[0:5]=b'hello'; m[5000:5003]=b'far'; m.flush()")
        subprocess.run(["python3", "-c", script, path], check=True)
        with open(self.path("file"), "rb") as file:
            data = file.read()
        self.assertEqual((data[:5], data[5000:5003], len(data)), (b"hello", b"far", 8192))


class WithoutGroupsTest(MountTest):
    """uid 0 that may not set groups: what is to be done as a client is refused."""

    prefix = ("setpriv", "--bounding-set", "-setgid", "--inh-caps", "-setgid")

    def test_it_goes_on(self):
        for _ in range(3):
            self.assertEqual(outcome(os.mkdir, os.path.join(self.mnt, "new")), "EPERM")
        os.close(os.open(self.path("file"), os.O_CREAT | os.O_WRONLY))
        with open(os.path.join(self.mnt, "file"), "wb") as file:
            file.write(b"there")
        with open(self.path("file"), "rb") as file:
            self.assertEqual(file.read(), b"there")


class ReadOnlyTest(MountTest):
    options = "ro,events=invalidate"

    def test_nothing_is_written(self):
        with open(self.path("file"), "wb") as file:
            file.write(b"there")
        at = os.path.join
        with open(at(self.mnt, "file"), "rb") as file:
            self.assertEqual(file.read(), b"there")
        for operation, *arguments in (
                (os.mkdir, at(self.mnt, "d")), (os.unlink, at(self.mnt, "file")),
                (os.chmod, at(self.mnt, "file"), 0), (os.truncate, at(self.mnt, "file"), 0),
                (os.rename, at(self.mnt, "file"), at(self.mnt, "f2")),
                (os.open, at(self.mnt, "file"), os.O_WRONLY),
                (os.setxattr, at(self.mnt, "file"), "user.a", b"")):
            self.assertEqual(outcome(operation, *arguments), "EROFS", operation)
        with open(self.path("file"), "wb") as file:
            file.write(b"changed")
        self.fs.sync()
        with open(at(self.mnt, "file"), "rb") as file:
            self.assertEqual(file.read(), b"changed")
