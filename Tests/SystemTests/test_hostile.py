# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm beside one that does not: it misses nothing, and the
daemon is afterwards what it was before."""

import contextlib
import ctypes
import errno
import mmap
import os
import pathlib
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import fusefs
import inject
import runner
import scratch
from daemon import Daemon, DaemonTest, table, touch
from histories import Watch, Writer, stop
from hostwatch import (ATTRIB, INIT, INTEREST, MODIFY, NODES, REGISTER, ROOT, SYNC, TREE, Refused,
                       batch, init_body, message, register_entry)
from mounts import Mounted
from test_convergence import number

SECONDS = 8.0
SOAK_SECONDS = 60.0
GROWTH_KIB = 8192


def helpers(daemon):
    """The processes that close for a daemon."""
    with open(f"/proc/{daemon.pid}/task/{daemon.pid}/children", encoding="ascii") as file:
        return file.read().split()


class Hostile(DaemonTest):
    config = table(daemon={"socket_mode": "0666"})
    limit = 300

    def resident(self):
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])

    def settled(self, client):
        """(descriptors, KiB) once the daemon has noticed every hang-up, and has no helper,
        which costs it a pipe and a pidfd."""
        before = None
        for _ in range(200):
            status = client.status()
            found = self.daemon.descriptors()
            if len(status["sessions"]) == 2 and len(status["filesystems"]) == 1:
                connected = sum("socket:" in one for one in found.values())
                if connected <= self.connected and found == before and not helpers(self.daemon):
                    break
            before = found
            time.sleep(0.05)
        return sorted(re.sub(r"\d+", "", one) for one in found.values()), self.resident()

    def attack(self, watch, writer, seconds, seed):
        """Runs hostile clients, one of them without privilege, and checks all the while
        what the well-behaved sessions are told."""
        here = os.path.dirname(os.path.abspath(__file__))
        attackers = [subprocess.Popen(
            [sys.executable, os.path.join(here, "hostile.py"), self.daemon.socket, self.share,
             str(seed + at), str(seconds), str(uid)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for at, uid in enumerate((0, 65534))]
        checks, longest = 0, 0.0
        while any(one.poll() is None for one in attackers):
            writer.begin("run", "200")
            watch.read([writer], True)
            began = time.monotonic()
            wrong = watch.check()
            longest = max(longest, time.monotonic() - began)
            if wrong:
                watch.dump("/var/tmp/hostwatch-hostile")
                self.fail(f"seed {seed}, all of it in /var/tmp/hostwatch-hostile.*:\n{wrong}")
            self.assertIsNone(self.daemon.process.poll(), self.daemon.log()[-4000:])
            self.daemon.drain_notifications()
            checks += 1
        for one in attackers:
            output = one.stdout.read().decode()
            one.stdout.close()
            self.assertEqual(one.wait(), 0, output)
            print(f"hostile: {output.strip()}", flush=True)
        return checks, longest

    def test_beside_hostile_clients(self):
        seed = number("HOSTWATCH_SEED") or random.randrange(1 << 32)
        seconds = SOAK_SECONDS if number("HOSTWATCH_SOAK_MINUTES") else SECONDS
        os.chmod(self.base, 0o755)
        watch = Watch(self.daemon, self.base)
        self.addCleanup(watch.close)
        writer = Writer(self.base, seed, "abc/pq")
        self.addCleanup(writer.close)
        client = watch.clients[1]
        self.connected = sum("socket:" in one for one in self.daemon.descriptors().values())
        # What is kept for the next clients is there after the first.
        self.attack(watch, writer, seconds / 4, seed + 10)
        descriptors, resident = self.settled(client)
        checks, longest = self.attack(watch, writer, seconds * 3 / 4, seed)
        after, kib = self.settled(client)
        print(f"hostile: {checks} checks, the longest {longest:.2f} s; {len(descriptors)} "
              f"descriptors, then {len(after)}; {resident} KiB, then {kib}", flush=True)
        self.assertEqual(after, descriptors)
        self.assertLess(kib, resident + GROWTH_KIB, f"seed {seed}")
        self.assertEqual(watch.losses, 0)
        self.assertEqual(watch.check(), "")


class SlowToClose(DaemonTest):
    """close() of a FUSE descriptor waits for the server to flush; a server that waits for
    the daemon, or never answers, must not hold it up."""

    def helpers(self):
        return helpers(self.daemon)

    def connection(self):
        client = self.daemon.connect()
        self.addCleanup(client.close)
        return client

    def test_a_server_that_does_not_answer(self):
        touch(self.path("f"))
        mount = Mounted(self.share, self.daemon.socket)
        self.addCleanup(mount.stop)
        fd = os.open(os.path.join(mount.path, "f"), os.O_RDWR)
        good = os.open(self.path("f"), os.O_PATH)
        root = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, root)
        client = self.session()
        other = self.session()
        client.sync()
        before = len(self.daemon.descriptors())
        mount.process.send_signal(signal.SIGSTOP)
        try:
            self.assertEqual(client.register([register_entry(10), register_entry(11)], [fd, good]),
                             [-errno.EXDEV, 0])
            for one in (client, other):  # it goes on
                one.sync()
            fusefs.wait_until(lambda: len(self.helpers()) == 1, "a helper closes it")
            other.sync()
            surplus = self.session()
            surplus.send_raw(message(SYNC, unique=9), [fd])
            surplus.wait_hang_up()
            refused = self.daemon.connect()
            with self.assertRaises(Refused):
                refused.init(fd=fd)
            refused.close()
            # A session's are bounded: then its next ones wait, and are not received in the end.
            entries = [register_entry(100 + number) for number in range(250)]
            for _ in range(2):  # 256, and the rest of the packet that reaches them
                self.assertEqual(set(client.register(entries, [fd] * 250)), {-errno.EXDEV})
            client.send_raw(message(REGISTER, batch(entries), 9), [fd] * 250)
            self.assertEqual(other.register([register_entry(13)], [good]), [0])
            self.assertIn("too many", client.wait_reply(9, timeout=10).text)
            client.wait_hang_up()
            # So are a user's. Who has none there goes on, unless it came later.
            early = self.session()
            crowd = [self.session() for _ in range(7)]
            for one in crowd:
                self.assertEqual(set(one.register(entries, [fd] * 250)), {-errno.EXDEV})
            self.assertEqual(early.register([register_entry(14)], [good]), [0])
            crowd[0].send_raw(message(REGISTER, batch([register_entry(15)]), 8), [good])
            late = self.connection()
            late.status()
            late.send_raw(message(INIT, init_body(NODES), 8), [root])
            for one in (late, crowd[0]):
                self.assertIn("too many", one.wait_reply(8, timeout=10).text)
                one.wait_hang_up()
            waiting = self.connection()
            waiting.send_raw(message(INIT, init_body(NODES), 8), [root])
            early.sync()
            other.sync()
            touch(self.path("g"))
            other.sync()
            self.assertLessEqual(len(self.helpers()), 8 + 2)  # and those of ended connections
        finally:
            mount.process.send_signal(signal.SIGCONT)
        # What waited is answered as soon as there is room.
        self.assertEqual(waiting.wait_reply(8).error, 0)
        for one in (early, waiting, *crowd[1:]):
            one.close()
        fusefs.wait_until(lambda: not self.helpers(), "the helpers have ended")
        fusefs.wait_until(lambda: len(self.daemon.descriptors()) <= before,
                          "the descriptors are closed")
        self.assertEqual(other.register([register_entry(12)], [good]), [0])
        os.close(good)
        os.close(fd)

    def test_a_root_whose_server_does_not_answer(self):
        mount = Mounted(self.share, self.daemon.socket)
        self.addCleanup(mount.stop)
        os.mkdir(self.path("d"))
        roots = [os.open(os.path.join(mount.path, name), os.O_PATH) for name in ("", "d")]
        mount.process.send_signal(signal.SIGSTOP)
        try:
            for root in roots:
                self.addCleanup(os.close, root)
                with self.assertRaises(Refused) as refused:
                    self.connection().init(fd=root)
                self.assertEqual(refused.exception.errno, errno.ENODEV)
            self.session().sync()
        finally:
            mount.process.send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def asleep(self):
        """A daemon whose helper sleeps meanwhile."""
        touch(self.path("f"))
        mount = Mounted(self.share, self.daemon.socket)
        self.addCleanup(mount.stop)
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            # A file of a server that is stopped would keep each child of ours from its exec.
            try:
                ours.close()
                client = daemon.session(self.share)
                fd = os.open(os.path.join(mount.path, "f"), os.O_RDWR)
                theirs.send(b"x")
                theirs.recv(1)
                client.register([register_entry(10)], [fd])
            finally:
                os._exit(0)
        theirs.close()
        with ours:
            ours.recv(1)
            mount.process.send_signal(signal.SIGSTOP)
        try:
            children = pathlib.Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
            fusefs.wait_until(children.read_text, "a helper")
            yield daemon
        finally:
            mount.process.send_signal(signal.SIGCONT)
            os.waitpid(child, 0)

    def test_the_daemon_is_killed_meanwhile(self):
        """The helper has its socket and lock still: the next one says so, and starts later."""
        with self.asleep() as daemon:
            killed = daemon.pid
            os.kill(killed, signal.SIGKILL)
            daemon.wait()
            daemon.spawn()
            self.assertEqual(daemon.wait(), 69)
            self.assertIn(f"hostwatchd (pid {killed}) is gone, but", daemon.log())

        def starts():
            daemon.spawn()
            with contextlib.suppress(AssertionError):
                daemon.wait_notified("READY=1")
                return True
            return False

        fusefs.wait_until(starts, "it starts")

    def test_the_daemon_cannot_go_on_meanwhile(self):
        """It ends of itself then, and its clients see that, though they stay open in the helper."""
        with self.asleep() as daemon, daemon.session(self.share) as client:
            with inject.failing(daemon.pid, "epoll_wait", "error=EBADF"):
                self.assertEqual(daemon.wait(), 71)
            client.wait_hang_up()

    def test_the_daemon_is_told_to_end_twice_meanwhile(self):
        """Who has not read is not waited for, and sees the end."""
        with self.asleep() as daemon, daemon.session(self.share, TREE) as client:
            for number in range(3000):
                touch(self.path(f"{number}{'x' * 200}"))
            with daemon.session(self.share) as other:
                other.sync()
            daemon.signal(signal.SIGTERM)
            daemon.wait_notified("STOPPING=1")
            daemon.signal(signal.SIGTERM)
            self.assertEqual(daemon.wait(), 0)
            client.wait_hang_up()


class HeldDirectory(DaemonTest):
    """A process keeps a directory's lock: it has a listing written to memory behind FUSE, whose
    server does not answer. Whoever looks a name up there that the kernel does not have in
    memory waits for it, and no signal ends that."""

    def test_a_file_without_a_name(self):
        os.mkdir(self.path("d"))
        touch(self.path("d", "genuine"))
        inode = os.stat(self.path("d", "genuine")).st_ino
        os.rename(self.path("d", "genuine"), self.path("d", f"#{inode}"))
        with open(os.path.join(self.outside, "page"), "wb") as file:
            file.write(bytes(4096))
        mount = Mounted(self.outside, self.daemon.socket)
        self.addCleanup(mount.stop)
        client = self.session(TREE)
        other = self.session()
        directory = os.open(self.path("d"), os.O_RDONLY)
        unnamed = os.open(self.path("d"), os.O_TMPFILE | os.O_RDWR)
        client.sync()
        children = []
        ready, told = os.pipe()
        with open(os.path.join(mount.path, "page"), "r+b") as file:
            page = mmap.mmap(file.fileno(), 4096)
        mount.process.send_signal(signal.SIGSTOP)

        def child(body):
            pid = os.fork()
            if pid == 0:
                try:
                    os.write(told, b"x")
                    body()
                finally:
                    os._exit(0)
            children.append(pid)
            os.read(ready, 1)
            fusefs.wait_until(lambda: self.state(pid) == "D", "it waits")

        try:
            libc = ctypes.CDLL(None)
            where = ctypes.addressof(ctypes.c_char.from_buffer(page))
            child(lambda: libc.getdents64(directory, ctypes.c_void_p(where), 4096))
            child(lambda: os.mkdir(self.path("d", "new")))  # behind it those wait who read as well
            os.write(unnamed, b"x")
            with open(self.path("d", f"#{inode}"), "ab") as file:
                file.write(b"x")
            other.sync()
            names = [record.name for record in client.records() if record.mask & MODIFY]
            self.assertEqual(names, [b"", f"#{inode}".encode()])
        finally:
            mount.process.send_signal(signal.SIGCONT)
            for pid in children:
                os.waitpid(pid, 0)
            for fd in (directory, unnamed, ready, told):
                os.close(fd)

    @staticmethod
    def state(pid):
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]


class SlowToRelease(DaemonTest):
    """The last close of a file on FUSE writes back what the kernel has cached of it: also of
    one that was sent and never received."""

    SOURCE = "/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c"

    def cached(self):
        """libfuse's example server with a cache of writes, on the share."""
        if not os.path.exists(self.SOURCE):
            self.skipTest(f"{self.SOURCE} is missing (libfuse3-dev)")
        program = scratch.new_path("passthrough")
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True,
                               stdout=subprocess.PIPE).stdout.decode().split()
        scratch.run("cc", "-o", program, self.SOURCE, *flags)
        where = scratch.new_path("mount")
        os.mkdir(where)
        server = subprocess.Popen([program, "-f", "-o", f"writeback,source={self.share}", where])

        def stop():
            server.send_signal(signal.SIGCONT)
            subprocess.run(["umount", "-l", where], check=False)
            server.kill()
            server.wait()

        self.addCleanup(stop)
        fusefs.wait_until(lambda: os.path.ismount(where), "it is mounted")
        return server, where

    def test_a_packet_that_is_not_received(self):
        server, where = self.cached()
        touch(self.path("f"))
        client = self.session()
        sent = os.open(os.path.join(where, "f"), os.O_RDWR)
        kept = os.open(os.path.join(where, "f"), os.O_RDWR)
        other = self.session()
        other.sync()
        stop(self.daemon)
        client.send_raw(b"nonsense")
        client.send_raw(message(REGISTER, batch([register_entry(10)]), 9), [sent])
        os.close(sent)
        os.write(kept, b"x" * 65536)
        server.send_signal(signal.SIGSTOP)
        self.daemon.signal(signal.SIGCONT)
        try:
            client.wait_hang_up()
            other.sync()
            self.session().sync()
        finally:
            server.send_signal(signal.SIGCONT)
        os.close(kept)

    def test_connections_that_end_meanwhile(self):
        """They have descriptors in their queues, and their user's helpers wait for a server:
        the daemon keeps no number for each."""
        server, where = self.cached()
        null = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, null)
        other = self.session()
        other.sync()
        before = len(self.daemon.descriptors())

        def connect_and_leave(fd):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as end:
                end.connect(self.daemon.socket)
                socket.send_fds(end, [b"x"], [fd])

        def seen():
            """The daemon has accepted all of them."""
            with self.daemon.connect() as client:
                client.status()

        kept = []
        stop(self.daemon)
        try:
            # The two files are far enough from each other for a helper each.
            for name, more in (("a", 1000), ("b", 2000)):
                touch(self.path(name))
                sent, last = (os.open(os.path.join(where, name), os.O_RDWR) for _ in "ab")
                connect_and_leave(sent)
                os.close(sent)
                os.write(last, b"x" * 65536)  # what the last close of `sent` writes back
                kept.append(last)
                for _ in range(more):
                    connect_and_leave(null)
            server.send_signal(signal.SIGSTOP)
        finally:
            self.daemon.signal(signal.SIGCONT)
        try:
            seen()
            self.helpers(2)
            self.assertLess(len(self.daemon.descriptors()), before + 600)
            for _ in range(1000):
                connect_and_leave(null)
            seen()
            self.assertLess(len(self.daemon.descriptors()), before + 600)
            self.helpers(2)
            other.sync()
        finally:
            server.send_signal(signal.SIGCONT)
        for fd in kept:
            os.close(fd)
        self.helpers(0)
        fusefs.wait_until(lambda: len(self.daemon.descriptors()) == before, "all are closed")

    def helpers(self, count):
        """Waits until so many processes close for the daemon."""
        children = pathlib.Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children")
        fusefs.wait_until(lambda: len(children.read_text().split()) == count, f"{count} helpers")


class Unmounted(DaemonTest):
    """Roots on mounts that are in no mount table the daemon sees."""

    def test_behind_a_server_that_does_not_answer(self):
        mount = Mounted(self.share, self.daemon.socket)
        self.addCleanup(mount.stop)
        fd = os.open(mount.path, os.O_PATH)
        self.addCleanup(os.close, fd)
        mount.process.send_signal(signal.SIGSTOP)
        try:
            subprocess.run(["umount", "-l", mount.path], check=True)
            client = self.daemon.connect()
            self.addCleanup(client.close)
            with self.assertRaises(Refused) as refused:
                client.init(fd=fd)
            self.assertEqual(refused.exception.errno, errno.ENODEV)
            self.session().sync()
        finally:
            mount.process.send_signal(signal.SIGCONT)

    def test_on_local_filesystems(self):
        for kind in scratch.KINDS:
            with self.subTest(kind), contextlib.ExitStack() as stack:
                mount = scratch.Mount(kind)
                stack.callback(mount.remove)
                root = os.open(mount.path, os.O_PATH)
                stack.callback(os.close, root)
                mount.unmount(lazily=True)
                client = self.daemon.connect()
                stack.callback(client.close)
                client.init(fd=root)
                touch(f"/proc/self/fd/{root}/f")
                self.assertIn(b"f", [event.name for event in client.sync()])


class FilesystemsOfAUser(DaemonTest):
    """The kernel's groups are few; whoever may make a user namespace can mount as many
    filesystems as he likes."""

    config = table(daemon={"socket_mode": "0666"}, limits={"filesystems_per_user": 2})

    def test_limit(self):
        roots = []
        for _ in range(3):
            mount = scratch.Mount("tmpfs")
            self.addCleanup(mount.remove)
            roots.append(os.open(mount.path, os.O_RDONLY))
            self.addCleanup(os.close, roots[-1])

        def begin(root):
            client = self.daemon.unprivileged()
            self.addCleanup(client.close)
            client.init(fd=root)
            return client

        clients = [begin(root) for root in roots[:2]]
        begin(roots[0]).close()
        with self.assertRaises(Refused) as refused:
            begin(roots[2])
        self.assertEqual(refused.exception.errno, errno.EUSERS)
        self.assertIn("filesystems-per-user", str(refused.exception))
        self.session(root=mount.path).sync()  # root's do not count
        clients.pop().close()
        deadline = time.monotonic() + 5
        while True:
            try:
                begin(roots[2]).sync()
                break
            except Refused:
                self.assertLess(time.monotonic(), deadline, "one that has ended counts still")


class ShortOfDescriptors(DaemonTest):
    """The daemon's own limit is no client's fault."""

    def test_requests_are_refused_and_may_be_repeated(self):
        client, watch = self.session(), Watch(self.daemon, self.base)
        self.addCleanup(watch.close)
        paths = [self.path(f"f{number}") for number in range(3)]
        for path in paths:
            touch(path)
        fds = [os.open(path, os.O_PATH) for path in paths]
        for fd in fds:
            self.addCleanup(os.close, fd)
        entries = [register_entry(10 + number, 3) for number in range(3)]
        self.assertEqual(watch.check(), "")
        newcomer = self.daemon.connect()
        self.addCleanup(newcomer.close)
        newcomer.status()  # so that it has been accepted
        client.sync()
        before = self.daemon.descriptors()
        used = {int(number) for number in before}
        free = [number for number in range(len(used) + 3) if number not in used]
        _, hard = limits = resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (free[1], hard))
        try:  # there is room for one of the three
            for _ in range(3):
                with self.assertRaises(Refused) as caught:
                    client.register(entries, fds)
                self.assertEqual(caught.exception.errno, errno.EMFILE)
            resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, (free[0], hard))
            with self.assertRaises(Refused) as caught:
                newcomer.init(NODES, fd=fds[0])
            self.assertEqual(caught.exception.errno, errno.EMFILE)
            client.sync()
        finally:
            resource.prlimit(self.daemon.pid, resource.RLIMIT_NOFILE, limits)
        self.assertEqual(self.daemon.descriptors(), before)
        self.assertEqual(self.daemon.log().count("no free descriptors"), 2, "once a session")
        self.assertNotIn("broke the protocol", self.daemon.log())
        self.assertEqual(client.register(entries, fds), [0, 0, 0])
        root = os.open(self.share, os.O_PATH)
        newcomer.init(NODES, fd=root)
        os.close(root)
        os.chmod(paths[0], 0o600)
        self.assertIn((ATTRIB, (10, 3)), [(one.mask, one.node) for one in client.sync()])
        self.assertEqual(watch.check(), "")


class ManyConnections(DaemonTest):
    """What one user asks by many connections does not keep another waiting for all of it."""

    config = table(daemon={"socket_mode": "0666"}, limits={"sessions_per_user": 64})
    CONNECTIONS = 50
    REQUESTS = 400

    @runner.attempts(3)  # it looks at the clients somewhat later than at the daemon
    def test_turns(self):
        os.chmod(self.share, 0o755)
        root = os.open(self.share, os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, root)
        many = []
        for _ in range(self.CONNECTIONS):
            many.append(self.daemon.unprivileged())
            self.addCleanup(many[-1].close)
            many[-1].init(fd=root)
        other = self.session()
        stop(self.daemon)
        sent = 0
        try:
            body = batch([struct.pack("<QQQ", *ROOT, 0)])
            for client in many:
                client.sock.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    for _ in range(self.REQUESTS):
                        client.send(INTEREST, body)
                        sent += 1
        finally:
            self.daemon.signal(signal.SIGCONT)
        for _ in range(5):
            other.status()
        answered = sum(self.waiting(client) for client in many)
        # In each round trip a turn or two, of 32 requests at the most; not one for each of them.
        self.assertLess(answered, sent / 2)
        while answered < sent:
            answered += sum(self.waiting(client) for client in many)

    @staticmethod
    def waiting(client):
        """How many replies have come."""
        count = 0
        while select.select([client], [], [], 0)[0]:
            client.receive()
            count += 1
        client.replies.clear()
        return count


class StalledServiceManager(DaemonTest):
    """What the service manager does not read must not keep the daemon from reading."""

    def test_not_read(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        client = daemon.session(self.share)
        self.addCleanup(client.close)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
            full.setblocking(False)
            full.connect(os.path.join(daemon.directory, "notify"))
            try:
                while True:
                    full.send(b"X=1")
            except BlockingIOError:
                pass
        end = time.monotonic() + 2.5  # a STATUS= comes at most once a second
        while time.monotonic() < end:
            touch(os.path.join(self.share, "f"))
            client.wait_reply(client.send(SYNC), timeout=5)
            time.sleep(0.1)
        daemon.stop()
