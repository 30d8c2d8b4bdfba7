# SPDX-License-Identifier: Apache-2.0
"""What hostwatchfs lets the kernel cache is never stale, and is cached for ever."""

import concurrent.futures
import contextlib
import errno
import json
import os
import random
import re
import resource
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
import runner
import scratch
from daemon import Daemon, DaemonTest, descriptors
from hostwatch import INIT, REPLY
from test_hostwatchfs import MountTest, RENAME_EXCHANGE, outcome, rename2, tree


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


class CoherenceTest(MountTest):
    """The mount has cached everything; the host changes something; it is seen."""

    def setUp(self):
        super().setUp()
        for name in ("a", "b", "d/x", "d/e/y"):
            os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
            write(self.path(name), name.encode())
        os.symlink("a", self.path("link"))
        os.link(self.path("a"), self.path("d/hard"))
        self.fs.sync()
        self.warm()

    def warm(self):
        tree(self.mnt)
        for name in ("none", "d/none", "new", "d/new"):
            outcome(os.lstat, os.path.join(self.mnt, name))

    def check(self):
        self.fs.sync()
        self.assertEqual(tree(self.mnt), tree(self.share))
        for name in ("none", "d/none", "new", "d/new", "a", "d/x", "d2/x"):
            here, there = os.path.join(self.mnt, name), self.path(name)
            self.assertEqual(outcome(self.identity, here), outcome(self.identity, there), name)
        self.warm()

    @staticmethod
    def identity(path):
        st = os.lstat(path)
        return (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_nlink, st.st_mode)

    def test_each_change_is_seen(self):
        at = self.path
        changes = (
            lambda: write(at("a"), b"longer than before"),
            lambda: write(at("a"), b"as long as before!"),
            lambda: os.truncate(at("a"), 3),
            lambda: os.chmod(at("a"), 0o600),
            lambda: os.chown(at("d"), 5, 6),
            lambda: os.utime(at("d/x"), (1, 2)),
            lambda: os.setxattr(at("b"), "user.x", b"1"),
            lambda: write(at("none"), b"there now"),
            lambda: os.mkdir(at("d/none")),
            lambda: os.unlink(at("none")),
            lambda: os.rmdir(at("d/none")),
            lambda: os.rename(at("b"), at("new")),
            lambda: os.rename(at("new"), at("d/new")),
            lambda: os.rename(at("d/new"), at("a")),
            lambda: os.rename(at("d"), at("d2")),
            lambda: write(at("d2/x"), b"below what moved"),
            lambda: write(at("d2/e/z"), b"new below what moved"),
            lambda: rename2(at("d2"), at("a"), RENAME_EXCHANGE),
            lambda: os.rename(at("a"), at("d")),
            lambda: (os.unlink(at("link")), os.symlink("d/x", at("link"))),
            lambda: write(at("d/hard"), b"through another name"),
            lambda: os.link(at("d/x"), at("new")),
            lambda: os.unlink(at("d/x")),
            lambda: os.rename(at("d/e"), os.path.join(self.outside, "e")),
            lambda: write(os.path.join(self.outside, "e/y"), b"changed outside"),
            lambda: os.rename(os.path.join(self.outside, "e"), at("e")),
            lambda: shutil.rmtree(at("d")),
        )
        for change in changes:
            change()
            self.check()

    @runner.attempts(3)
    def test_everything_is_cached_while_in_step(self):
        """Answered by the kernel alone: the server is stopped meanwhile."""
        # It has nothing to close on the mount while the server is stopped: that
        # would wait for it.
        script = (
            "import os,sys; os.chdir(sys.argv[1]); fd = os.open('a', os.O_RDONLY)\n"
            "os.read(fd, 100); print('ready', flush=True); sys.stdin.readline()\n"
            "for n in ('a','b','d','d/x','d/e','d/e/y','link'): os.lstat(n)\n"
            "for n in ('none','d/none','new'):\n"
            "    try: os.lstat(n); sys.exit(3)\n"
            "    except FileNotFoundError: pass\n"
            "os.fstat(fd)\n"
            "print(os.readlink('link'), os.pread(fd, 100, 0).decode(), flush=True)\n")
        client = subprocess.Popen(["python3", "-I", "-S", "-c", script, self.mnt],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.assertEqual(client.stdout.readline(), b"ready\n")
        # What was registered within a second of its change is looked at again.
        # Reading leaves the time of access to be asked for.
        self.fs.sync()
        self.warm()
        self.warm()
        for name in ("a", "b", "d", "d/x", "d/e", "d/e/y", "link"):
            os.lstat(os.path.join(self.mnt, name))
        resume = threading.Timer(15, self.fs.process.send_signal, (signal.SIGCONT,))
        resume.start()
        self.fs.process.send_signal(signal.SIGSTOP)
        try:
            client.stdin.write(b"\n")
            client.stdin.flush()
            self.assertEqual(client.stdout.readline(), b"a a\n")
            self.assertTrue(resume.is_alive(), "the server had to answer")
        finally:
            resume.cancel()
            self.fs.process.send_signal(signal.SIGCONT)
            client.communicate(timeout=10)

    def test_an_open_file_reads_what_the_host_wrote(self):
        with open(os.path.join(self.mnt, "a"), "rb", buffering=0) as file:
            self.assertEqual(file.read(), b"a")
            for number in range(50):
                text = f"{number:06}".encode()
                write(self.path("a"), text)
                self.fs.sync()
                self.assertEqual(os.pread(file.fileno(), 100, 0), text)
                self.assertEqual(os.fstat(file.fileno()).st_size, 6)

    def replaced(self, name, data):
        """The host puts another object there; the former lives on."""
        write(os.path.join(self.outside, name), data)
        rename2(os.path.join(self.outside, name), self.path(name), RENAME_EXCHANGE)

    def cache_two(self):
        write(self.path("old"), b"before")
        write(self.path("new"), b"other")
        self.fs.sync()
        for name in ("old", "new"):
            read(os.path.join(self.mnt, name))
        self.fs.sync()

    def check_renamed(self, wanted):
        self.fs.sync()
        for name, data in wanted.items():
            self.assertEqual(read(self.path(name)), data, "the host")
            self.assertEqual(read(os.path.join(self.mnt, name)), data)

    def test_a_client_renames_what_the_host_replaces_meanwhile(self):
        """What is told of it is applied before the kernel has renamed the old object."""
        for exchange in (False, True):
            with self.subTest(exchange=exchange):
                self.cache_two()
                with inject.failing(self.fs.process.pid, "renameat,renameat2",
                                    "delay_enter=500000"):
                    renaming = threading.Thread(target=rename2, args=(
                        os.path.join(self.mnt, "old"), os.path.join(self.mnt, "new"),
                        RENAME_EXCHANGE if exchange else 0))
                    renaming.start()
                    fusefs.wait_until(lambda: inject.holds(self.fs.process.pid), "it is held")
                    self.replaced("old", b"after")
                    if exchange:
                        self.replaced("new", b"other too")
                    renaming.join()
                self.check_renamed({"new": b"after", **({"old": b"other too"} if exchange else {})})

    def test_a_client_renames_what_the_host_has_replaced(self):
        """What is told of it comes when the old object has another name."""
        for exchange in (False, True):
            with self.subTest(exchange=exchange):
                self.cache_two()
                with inject.failing(self.fs.process.pid, "poll", "delay_exit=500000",
                                    self.fs.follower()):
                    self.replaced("old", b"after")
                    if exchange:
                        self.replaced("new", b"other too")
                    rename2(os.path.join(self.mnt, "old"), os.path.join(self.mnt, "new"),
                            RENAME_EXCHANGE if exchange else 0)
                self.check_renamed({"new": b"after", **({"old": b"other too"} if exchange else {})})

    def test_appends_of_both_sides_are_all_there(self):
        here, there = os.path.join(self.mnt, "log"), self.path("log")
        with open(here, "ab", buffering=0) as ours, open(there, "ab", buffering=0) as theirs:
            def append(file, text):
                for number in range(500):
                    file.write(b"%s%05d\n" % (text, number))
            writers = [threading.Thread(target=append, args=(ours, b"m")),
                       threading.Thread(target=append, args=(theirs, b"h"))]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
        self.fs.sync()
        lines = read(there).split()
        self.assertEqual(sorted(lines), sorted(b"%s%05d" % (text, number) for text in (b"m", b"h")
                                               for number in range(500)))
        fusefs.wait_until(lambda: read(here) == read(there), "the mount shows the same")

    def test_a_fresh_lookup_beside_changes_is_not_stale(self):
        """Lookups race with the change of the very name and file."""
        stop = threading.Event()
        names = [f"n{number}" for number in range(8)]

        def look():
            while not stop.is_set():
                for name in names:
                    outcome(os.stat, os.path.join(self.mnt, name))
                    outcome(os.listdir, self.mnt)

        lookers = [threading.Thread(target=look) for _ in range(3)]
        for looker in lookers:
            looker.start()
        try:
            seed = random.Random(1)
            for _ in range(150):
                for _ in range(6):
                    name, other = (self.path(seed.choice(names)) for _ in "ab")
                    outcome(seed.choice((
                        lambda n=name, o=other: write(n, os.urandom(seed.randrange(9))),
                        lambda n=name, o=other: os.unlink(n),
                        lambda n=name, o=other: os.rename(n, o),
                        lambda n=name, o=other: os.link(n, o))))
                self.fs.sync()
                for name in names:
                    self.assertEqual(outcome(self.identity, os.path.join(self.mnt, name)),
                                     outcome(self.identity, self.path(name)))
        finally:
            stop.set()
            for looker in lookers:
                looker.join()


class WithoutHandlesTest(CoherenceTest):
    """Without CAP_DAC_READ_SEARCH: a descriptor for each object instead of a handle."""

    prefix = ("setpriv", "--bounding-set", "-dac_read_search", "--inh-caps", "-dac_read_search")

    def test_it_says_so(self):
        self.assertIn("without CAP_DAC_READ_SEARCH", self.fs.log())
        self.assertIn(self.path("b"), descriptors(self.fs.process.pid).values())


class WithoutMemoryTest(MountTest):
    """The kernel has no memory for an invalidation: it is sent again."""

    def test_nothing_is_stale(self):
        write(self.path("file"), b"before")
        os.mkdir(self.path("d"))
        names = [os.path.join(self.mnt, name) for name in ("d", "new")]
        with open(os.path.join(self.mnt, "file"), "rb", buffering=0) as file:
            self.assertEqual(file.read(), b"before")
            self.assertEqual([os.path.exists(name) for name in names], [True, False])
            self.fs.sync()
            with inject.failing(self.fs.process.pid, "writev", "error=ENOMEM:when=1..9",
                                self.fs.follower()) as failed:
                write(self.path("file"), b"behind")
                os.rmdir(self.path("d"))
                os.mkdir(self.path("new"))
                self.fs.sync()
                self.assertEqual(os.pread(file.fileno(), 10, 0), b"behind")
                self.assertEqual([os.path.exists(name) for name in names], [False, True])
                self.assertGreaterEqual(failed(), 9)


class HandlesTest(MountTest):
    @runner.attempts(3)
    def test_a_node_costs_no_descriptor(self):
        for number in range(1200):
            os.mkdir(self.path(f"d{number}"))
            os.close(os.open(self.path(f"d{number}", "file"), os.O_CREAT | os.O_WRONLY))
        tree(self.mnt)
        self.fs.sync()
        tree(self.mnt)
        self.assertGreater(self.fs.status()["nodes"], 2400)
        self.assertLess(len(os.listdir(f"/proc/{self.fs.process.pid}/fd")), 900)
        # And the nodes go when the kernel forgets them.
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("2")
        fusefs.wait_until(lambda: self.fs.status()["nodes"] < 100, "the nodes are gone")
        self.assertEqual(tree(self.mnt), tree(self.share))

    def test_a_removed_file_ends_as_it_would_without_the_mount(self):
        os.close(os.open(self.path("file"), os.O_CREAT | os.O_WRONLY))
        session = self.session()
        os.stat(os.path.join(self.mnt, "file"))
        self.assertEqual(session.register_path(self.path("file"), 7, 1), 0)
        os.unlink(self.path("file"))
        masks = []

        def has_ended():
            masks.extend(record.mask for record in session.records() if record.node == (7, 1))
            return any(mask & 0x400 for mask in masks)  # DELETE_SELF

        fusefs.wait_until(has_ended, "DELETE_SELF")

    def test_another_filesystem_below_is_served_and_not_cached(self):
        os.mkdir(self.path("sub"))
        scratch.run("mount", "-t", "tmpfs", "scratch", self.path("sub"))
        self.addCleanup(scratch.run, "umount", "-l", self.path("sub"))
        self.addCleanup(self.fs.unmount)  # which holds descriptors there; runs first
        # A mount that was there when the server started is seen by it in any namespace.
        there, here = self.path("sub", "file"), os.path.join(self.mnt, "sub", "file")
        for number in range(10):
            write(there, b"x" * number)
            self.assertEqual(os.stat(here).st_size, number)
            self.assertEqual(read(here), b"x" * number)
            os.unlink(there)
            self.assertEqual(outcome(os.stat, here), "ENOENT")


class Churn:
    """Random operations on a few hundred names below a directory."""

    def __init__(self, top, seed):
        self.top = top
        self.random = random.Random(seed)
        self.stopped = threading.Event()
        self.done = 0
        self.broken = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def name(self):
        depth = self.random.choice((1, 1, 2, 3))
        return os.path.join(self.top, *(
            [f"dir{self.random.randrange(5)}" for _ in range(depth - 1)]
            + [f"name{self.random.randrange(40)}"]))

    def directory(self):
        return os.path.join(self.top, *(
            f"dir{self.random.randrange(5)}" for _ in range(self.random.choice((1, 2)))))

    def step(self):
        pick = self.random.random()
        if pick < 0.25:
            write(self.name(), os.urandom(self.random.randrange(200)))
        elif pick < 0.35:
            with open(self.name(), "ab") as file:
                file.write(b"more")
        elif pick < 0.50:
            os.unlink(self.name())
        elif pick < 0.62:
            os.rename(self.name(), self.name())
        elif pick < 0.68:
            os.link(self.name(), self.name())
        elif pick < 0.72:
            os.symlink(f"to{self.random.randrange(9)}", self.name())
        elif pick < 0.77:
            os.chmod(self.name(), self.random.choice((0o600, 0o644, 0o755)))
        elif pick < 0.87:
            os.mkdir(self.directory())
        elif pick < 0.92:
            os.rename(self.directory(), self.directory())
        elif pick < 0.94:
            shutil.rmtree(self.directory(), ignore_errors=True)
        elif pick < 0.95:
            rename2(self.name(), self.name(), RENAME_EXCHANGE)
        else:
            os.listdir(self.directory())
            os.stat(self.name())

    # What one of two that change the same tree may meet.
    EXPECTED = {errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY,
                errno.EINVAL, errno.ESTALE, errno.EMLINK, errno.ELOOP, errno.EXDEV}

    def run(self):
        try:
            while not self.stopped.is_set():
                try:
                    self.step()
                except OSError as error:
                    if error.errno not in self.EXPECTED:
                        raise
                self.done += 1
        except BaseException as error:
            self.broken = error

    def stop(self):
        self.stopped.set()
        self.thread.join()
        if self.broken:
            raise self.broken


class MixedLoadTest(MountTest):
    limit = 120
    seconds = float(os.environ.get("HOSTWATCHFS_LOAD_SECONDS", "10"))

    def compare(self, fs, seed):
        fs.sync()
        here, there = self.facts(fs.path), self.facts(self.share)
        if here != there:
            differing = sorted(name for name in here.keys() | there.keys()
                               if here.get(name) != there.get(name))
            self.fail(f"seed {seed}: {len(differing)} differ: " + "; ".join(
                f"{name}: mount {here.get(name)}, host {there.get(name)}"
                for name in differing[:5]))
        for number in range(40):  # names that are not there
            name = f"name{number}"
            self.assertEqual(os.path.lexists(os.path.join(fs.path, name)),
                             os.path.lexists(self.path(name)), name)

    @staticmethod
    def facts(top):
        found = {}
        for folder, folders, files in os.walk(top):
            found[os.path.relpath(folder, top)] = sorted(folders + files)
            for name in folders + files:
                path = os.path.join(folder, name)
                st = os.lstat(path)
                what = [st.st_ino, st.st_mode, st.st_nlink, st.st_size, st.st_mtime_ns,
                        st.st_ctime_ns]
                if stat.S_ISREG(st.st_mode):
                    what.append(read(path))
                elif stat.S_ISLNK(st.st_mode):
                    what.append(os.readlink(path))
                found[os.path.relpath(path, top) + " "] = what
        return found

    def load(self, tops, seconds, between=lambda: None):
        end = time.monotonic() + seconds
        seed = int(os.environ.get("HOSTWATCHFS_SEED", time.time_ns() % 1_000_000))
        operations = 0
        while time.monotonic() < end:
            churns = [Churn(top, seed + number) for number, top in enumerate(tops)]
            try:
                time.sleep(0.7)
                between()
            finally:
                for churn in churns:
                    churn.stop()
            operations += sum(churn.done for churn in churns)
            yield seed
            seed += len(tops)
        self.assertGreater(operations, 500)

    def test_host_and_mount(self):
        for seed in self.load([self.share, self.mnt], self.seconds):
            self.compare(self.fs, seed)

    def test_two_mounts_and_the_host(self):
        other = fusefs.HostwatchFS(self.share, self.daemon.socket, self.options)
        self.addCleanup(other.kill)
        for seed in self.load([self.share, self.mnt, other.path], self.seconds):
            self.compare(self.fs, seed)
            self.compare(other, seed)

    def test_while_the_daemon_is_killed(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        fs = fusefs.HostwatchFS(self.share, daemon.socket, self.options)
        self.addCleanup(fs.kill)

        def kill_and_start():
            daemon.kill()
            time.sleep(0.3)
            self.assertIn("state", fs.status())
            daemon.start()

        for seed in self.load([self.share, fs.path], self.seconds, kill_and_start):
            fusefs.wait_until(lambda: fs.status()["state"] == "in-step", "in step again", 20)
            self.compare(fs, seed)
        self.assertGreater(fs.status()["out_of_step"], 0)


class FailureTest(MountTest):
    def test_nothing_is_stale_without_the_daemon(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        write(self.path("a"), b"before")
        fs = fusefs.HostwatchFS(self.share, daemon.socket, self.options)
        self.addCleanup(fs.kill)
        here = os.path.join(fs.path, "a")
        with open(here, "rb", buffering=0) as file:
            self.assertEqual(file.read(), b"before")
            self.assertEqual(outcome(os.stat, os.path.join(fs.path, "new")), "ENOENT")
            os.listdir(fs.path)
            daemon.kill()
            fusefs.wait_until(lambda: fs.status()["state"] == "out-of-step", "out of step")
            for number in range(20):
                write(self.path("a"), b"x" * number)
                self.assertEqual(os.stat(here).st_size, number)
                self.assertEqual(os.fstat(file.fileno()).st_size, number)
                self.assertEqual(os.pread(file.fileno(), 100, 0), b"x" * number)
                write(self.path("new"), b"")
                self.assertEqual(sorted(os.listdir(fs.path)), ["a", "new"])
                os.stat(os.path.join(fs.path, "new"))
                os.unlink(self.path("new"))
                self.assertEqual(outcome(os.stat, os.path.join(fs.path, "new")), "ENOENT")
            daemon.start()
            fusefs.wait_until(lambda: fs.status()["state"] == "in-step", "in step", 20)
            write(self.path("a"), b"after")
            fs.sync()
            self.assertEqual(os.fstat(file.fileno()).st_size, 5)
            self.assertEqual(read(here), b"after")

    def test_looked_up_anew_while_it_is_registered_again(self):
        """The kernel forgets a node that is about to be registered, and looks it up again."""
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        names = [f"d{number}" for number in range(20)]
        for name in names:
            os.mkdir(self.path(name))
            write(self.path("f" + name), b"")  # takes long to open; directories are open still
        fs = fusefs.HostwatchFS(self.share, daemon.socket, self.options)
        self.addCleanup(fs.kill)
        tree(fs.path)
        daemon.kill()
        fusefs.wait_until(lambda: fs.status()["state"] == "out-of-step", "out of step")
        with inject.failing(fs.process.pid, "open_by_handle_at", "delay_exit=100000",
                            fs.follower()) as delayed:
            daemon.start()
            fusefs.wait_until(lambda: delayed() >= 10, "some are open")
            for name in names:
                os.stat(os.path.join(fs.path, name))
            self.assertLess(delayed(), 20)
        fusefs.wait_until(lambda: fs.status()["state"] == "in-step", "in step", 20)
        for name in names:
            self.assertEqual(outcome(os.stat, os.path.join(fs.path, name, "new")), "ENOENT")
            write(self.path(name, "new"), b"")
        fs.sync()
        for name in names:
            os.stat(os.path.join(fs.path, name, "new"))

    def test_a_daemon_that_refuses_it_for_good(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        fs = fusefs.HostwatchFS(self.share, daemon.socket, self.options)
        self.addCleanup(fs.kill)
        names = [f"f{number}" for number in range(400)]
        for name in names:
            write(self.path(name), b"before")
        fs.sync()
        daemon.kill()
        os.unlink(daemon.socket)
        attempts = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(daemon.socket)
            listener.listen()

            def refuse():
                while True:
                    try:
                        peer = listener.accept()[0]
                    except OSError:
                        return
                    with peer:
                        attempts.append(time.monotonic())
                        unique = struct.unpack_from("=Q", peer.recv(4096), 8)[0]
                        text = b"never again"
                        peer.send(struct.pack("=IHHQiI", 24 + len(text), INIT | REPLY, 0, unique,
                                              -errno.EACCES, 0) + text)
                        peer.recv(4096)
            thread = threading.Thread(target=refuse)
            thread.start()
            try:
                fusefs.wait_until(lambda: "is over: not connected: never again" in fs.log(),
                                  "it has been told")
                first = len(attempts)
                # What handlers find does not bring the next attempt forward.
                end = time.monotonic() + 3
                for name in names:
                    self.assertEqual(read(os.path.join(fs.path, name)), b"before")
                    if time.monotonic() > end:
                        break
                self.assertLessEqual(len(attempts), first + 1)
                self.assertEqual(fs.ask("sync"), "failed")
                fusefs.wait_until(lambda: len(attempts) > first, "it tries again", 20)
                self.assertEqual(fs.log().count("is over"), 1)
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()
        os.unlink(daemon.socket)
        daemon.start()
        fusefs.wait_until(lambda: fs.status()["state"] == "in-step", "in step", 20)
        for name in names:
            write(self.path(name), b"after!")
        fs.sync()
        for name in names:
            self.assertEqual(read(os.path.join(fs.path, name)), b"after!")

    def test_a_killed_server_leaves_no_hung_mount(self):
        churn = Churn(self.mnt, 1)
        churn.EXPECTED = Churn.EXPECTED | {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
        fusefs.wait_until(lambda: churn.done > 50, "some load")
        self.fs.process.kill()
        self.fs.process.wait(10)
        fusefs.wait_until(lambda: outcome(os.listdir, self.mnt) == "ENOTCONN", "the mount is dead")
        churn.stop()
        subprocess.run(["umount", self.mnt], check=True)
        again = fusefs.HostwatchFS(self.share, self.daemon.socket, self.options, path=self.mnt)
        self.addCleanup(again.kill)
        os.listdir(self.mnt)
        again.unmount()

    def test_a_killed_server_is_gone_from_the_status(self):
        control = self.fs.control
        self.fs.process.kill()
        self.fs.process.wait(10)
        self.assertTrue(os.path.exists(control))
        with self.assertRaises(ConnectionRefusedError):
            self.fs.ask("status")
        os.unlink(control)

    def test_unmounting_ends_it_in_order(self):
        self.fs.unmount()
        self.assertFalse(os.path.exists(self.fs.control))

    def test_a_signal_unmounts(self):
        self.fs.process.terminate()
        self.assertEqual(self.fs.process.wait(10), 0)
        self.assertFalse(fusefs.is_mounted(self.mnt))

    def test_a_signal_unmounts_while_the_daemon_is_stopped(self):
        """A handler waits for its answer."""
        os.mkdir(self.path("d"))
        self.fs.sync()
        self.daemon.signal(signal.SIGSTOP)
        try:
            client = subprocess.Popen(["ls", os.path.join(self.mnt, "d")],
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self.addCleanup(client.kill)
            fusefs.wait_until(lambda: fusefs.is_asking(client.pid), "it asks")
            self.fs.process.terminate()
            self.assertEqual(self.fs.process.wait(10), 0)
            client.wait(10)
        finally:
            self.daemon.signal(signal.SIGCONT)

    def test_a_signal_that_was_ignored_unmounts_nothing(self):
        fs = fusefs.HostwatchFS(self.share, self.daemon.socket, self.options, prefix=["nohup"])
        self.addCleanup(fs.kill)
        with open(f"/proc/{fs.process.pid}/status", encoding="ascii") as file:
            ignored = int(re.search(r"SigIgn:\s+(\w+)", file.read())[1], 16)
        self.assertTrue(ignored & 1 << signal.SIGHUP - 1)
        fs.process.send_signal(signal.SIGHUP)
        fs.sync()
        self.assertEqual(fs.status()["state"], "in-step")
        fs.process.send_signal(signal.SIGINT)
        self.assertEqual(fs.process.wait(10), 0)


class EndUnderLoadTest(MountTest):
    """A signal comes while requests wait, in directories of which records are applied."""

    options = "allow_other,events=invalidate,max_threads=2"
    directories = 3

    def test_it_ends(self):
        names = [f"d{number}" for number in range(self.directories)]
        for name in names:
            os.mkdir(self.path(name))
        for turn in range(3):
            with self.subTest(turn=turn):
                self.end_once(names)

    def end_once(self, names):
        fs = fusefs.HostwatchFS(self.share, self.daemon.socket, self.options)
        self.addCleanup(fs.kill)
        with fusefs.load(self.share, fs.path, names):
            # Answers take so long that there are always requests that nobody has read yet.
            with inject.failing(fs.process.pid, "writev", "delay_enter=50000") as count:
                fusefs.wait_until(lambda: count() > 20, "answers are delayed")
                fs.process.terminate()
                try:
                    status = fs.process.wait(20)
                except subprocess.TimeoutExpired:
                    fs.kill()
                    raise AssertionError("it does not end") from None
        self.assertEqual(status, 0, fs.log())
        self.assertFalse(fusefs.is_mounted(fs.path))


class ReplayEndUnderLoadTest(EndUnderLoadTest):
    options = "allow_other,max_threads=2"


class ShortageTest(MountTest):
    """The server has no descriptor to spare for a while."""

    identity = staticmethod(CoherenceTest.identity)

    def test_what_cannot_be_registered_again_is_not_stale(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        names = [f"f{number}" for number in range(8)]
        # By its other name, only who has registered a file hears of its changes.
        others = [os.path.join(self.outside, name) for name in names]
        for name, other in zip(names, others):
            write(other, b"before")
            os.link(other, self.path(name))
        fs = fusefs.HostwatchFS(self.share, daemon.socket, self.options)
        self.addCleanup(fs.kill)
        for name in names:
            self.assertEqual(read(os.path.join(fs.path, name)), b"before")
        fs.sync()
        daemon.kill()
        fusefs.wait_until(lambda: "nothing is cached" in fs.log(), "out of step")
        # One for the connection: files have to be opened for their registration.
        fs.leave_descriptors(1)
        daemon.start()
        fusefs.wait_until(lambda: "in step with hostwatchd again" in fs.log(), "in step", 20)
        self.assertEqual(fs.log().count("Too many open files"), 1, fs.log())
        fs.relieve()
        for number in range(20):
            for other in others:
                write(other, b"x" * number)
            fs.sync()
            for name in names:
                here = os.path.join(fs.path, name)
                self.assertEqual(os.stat(here).st_size, number)
                self.assertEqual(read(here), b"x" * number)
        fusefs.wait_until(lambda: "are followed again" in fs.log(), "registered after all", 20)
        for name in names:
            os.unlink(self.path(name))
        fs.sync()
        self.assertEqual(os.listdir(fs.path), [])

    def test_what_was_made_and_could_not_be_answered_is_seen(self):
        write(self.path("file"), b"")
        os.mkdir(self.path("d"))
        here = os.path.join(self.mnt, "d")
        operations = {
            "mkdir": os.mkdir, "mknod": os.mknod, "symlink": lambda path: os.symlink("x", path),
            "link": lambda path: os.link(os.path.join(self.mnt, "file"), path),
            "create": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY))}
        failed = set()
        for name, operation in operations.items():
            for count in range(3):
                path, there = os.path.join(here, f"{name}{count}"), self.path("d", f"{name}{count}")
                for _ in "ab":  # what was registered just now is looked at again
                    os.listdir(here)
                    self.assertEqual(outcome(os.lstat, path), "ENOENT")
                    os.stat(os.path.join(self.mnt, "file"))
                    self.fs.sync()
                self.fs.leave_descriptors(count)
                result = outcome(operation, path)
                self.fs.relieve()
                self.assertIn(result, (None, "EMFILE"))
                if result and os.path.lexists(there):
                    failed.add(name)
                self.fs.sync()
                self.assertEqual(outcome(self.identity, path), outcome(self.identity, there), path)
                for name_ in ("d", "file"):
                    self.assertEqual(self.identity(os.path.join(self.mnt, name_)),
                                     self.identity(self.path(name_)), (path, name_))
                self.assertEqual(sorted(os.listdir(here)), sorted(os.listdir(self.path("d"))))
        # The kernel looks up the others itself just before, which fails.
        self.assertEqual(failed, {"link", "create"})

    def test_a_directory_in_use_is_not_removed_without_keeping_it(self):
        others = [f"other{number}" for number in range(600)]  # more than are kept open
        for name in ("d", *others):
            os.mkdir(self.path(name))
        self.fs.sync()
        path = os.path.join(self.mnt, "d")
        used = os.open(path, os.O_PATH)
        self.addCleanup(os.close, used)
        for name in others:
            os.listdir(os.path.join(self.mnt, name))
        self.fs.leave_descriptors(0)
        result = outcome(os.rmdir, path)
        self.fs.relieve()
        self.assertEqual(result, "EMFILE")
        os.rmdir(path)
        self.assertEqual(os.fstat(used).st_nlink, 0)


class DaemonShortageTest(MountTest):
    """hostwatchd has no descriptor to spare for a while."""

    limit = 120
    COUNT = 64

    def setUp(self):
        super().setUp()
        # By its other name, only who has registered a file hears of its changes.
        self.others = [os.path.join(self.outside, f"f{number}") for number in range(self.COUNT)]
        self.files = [os.path.join(self.mnt, f"f{number}") for number in range(self.COUNT)]
        for number, other in enumerate(self.others):
            write(other, b"before")
            os.link(other, self.path(f"f{number}"))
        os.mkdir(self.path("d"))
        self.fs.sync()

    def starve(self, count):
        limit = fusefs.leave_descriptors(self.daemon.pid, count)
        self.addCleanup(self.relieve, self.daemon.pid, limit)
        return lambda: self.relieve(self.daemon.pid, limit)

    def relieve(self, pid, limit):
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)

    def check(self, rounds=3):
        for number in range(rounds):
            for other in self.others:
                write(other, b"x" * (number + 1))
            self.fs.sync()
            for here in self.files:
                self.assertEqual(os.stat(here).st_size, number + 1)
                self.assertEqual(read(here), b"x" * (number + 1))

    def check_all_is_cached(self):
        # Another test may have the kernel drop its caches meanwhile.
        self.assertTrue(any(self.is_all_cached() for _ in "abc"), "the server had to answer")

    def is_all_cached(self):
        """Whether the kernel answers without the server."""
        for _ in "ab":  # what was registered within a second of its change is looked at again
            self.fs.sync()
            for here in (*self.files, os.path.join(self.mnt, "d")):
                os.stat(here)
        resume = threading.Timer(15, self.fs.process.send_signal, (signal.SIGCONT,))
        resume.start()
        self.fs.process.send_signal(signal.SIGSTOP)
        try:
            for here in (*self.files, os.path.join(self.mnt, "d")):
                os.stat(here)
            return resume.is_alive()
        finally:
            resume.cancel()
            self.fs.process.send_signal(signal.SIGCONT)

    def test_what_is_looked_up_meanwhile(self):
        relieve = self.starve(0)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual(set(pool.map(read, self.files)), {b"before"})
        os.stat(os.path.join(self.mnt, "d"))
        self.check()
        os.chmod(self.path("d"), 0o700)
        self.fs.sync()
        self.assertEqual(os.stat(os.path.join(self.mnt, "d")).st_mode & 0o777, 0o700)
        self.assertEqual(self.fs.log().count("no free descriptors"), 1, self.fs.log())
        relieve()
        self.check()
        fusefs.wait_until(lambda: "are followed again" in self.fs.log(), "registered", 20)
        self.check_all_is_cached()
        self.check()

    def test_what_is_registered_again_meanwhile(self):
        """However many descriptors the restarted daemon has left, nothing is stale."""
        for here in self.files:  # the kernel forgets none of them
            self.addCleanup(os.close, os.open(here, os.O_PATH))
        said = 0
        for count in (0, 3, 6, 20):
            with self.subTest(count):
                self.fs.sync()
                self.fs.process.send_signal(signal.SIGSTOP)
                try:
                    self.daemon.kill()
                    log = self.daemon.log()
                    self.daemon.start()
                    self.daemon.drain_notifications()
                    relieve = self.starve(count)
                finally:
                    self.fs.process.send_signal(signal.SIGCONT)
                # It connects later and later: too few for a session are to be seen as well.
                fusefs.wait_until(
                    lambda: self.fs.status()["state"] == "in-step"
                    or "EMFILE" in self.daemon.log()[len(log):], "it has tried", 30)
                for number in range(2):
                    for other in self.others:
                        write(other, b"y" * (number + 1))
                    if self.fs.status()["state"] == "in-step":
                        self.fs.sync()
                    for here in self.files:
                        self.assertEqual(os.stat(here).st_size, number + 1)
                relieve()
                before = said
                fusefs.wait_until(lambda: self.fs.status()["state"] == "in-step", "in step", 30)
                said = self.fs.log().count("cannot be opened: Too many open files")
                if said > before:
                    fusefs.wait_until(
                        lambda: self.fs.log().count("are followed again") == said, "again", 20)
                self.check()
        self.assertGreater(said, 0, self.fs.log() + self.daemon.log())
        self.check_all_is_cached()


class GitTest(MountTest):
    limit = 120

    def git(self, top, *arguments):
        done = subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "core.fsmonitor=false",
             "-c", "safe.directory=*", *arguments], cwd=top, check=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        return done.stdout.decode()

    def test_a_work_tree_that_the_host_changes(self):
        host, here = self.path("tree"), os.path.join(self.mnt, "tree")
        os.mkdir(host)
        self.git(host, "init", "-q", "-b", "main")
        for branch in range(3):
            for number in range(120):
                folder = os.path.join(host, f"dir{number % 10}")
                os.makedirs(folder, exist_ok=True)
                write(os.path.join(folder, f"file{number}"), f"{branch} {number}\n".encode() * 20)
            os.makedirs(os.path.join(host, f"only{branch}"), exist_ok=True)
            write(os.path.join(host, f"only{branch}", "file"), b"x")
            self.git(host, "add", "-A")
            self.git(host, "commit", "-qm", f"state {branch}")
            self.git(host, "branch", f"state{branch}")
        for branch in (0, 2, 1, 0, 1):
            self.git(host, "checkout", "-q", f"state{branch}")
            self.fs.sync()
            self.assertEqual(self.git(here, "status", "--porcelain"), "")
            self.assertEqual(tree(here), tree(host))
        # And the other way round.
        self.git(here, "checkout", "-q", "main")
        self.assertEqual(self.git(host, "status", "--porcelain"), "")
        self.assertEqual(self.git(here, "status", "--porcelain"), "")
        self.git(here, "clone", "-q", ".", "../clone")
        self.assertEqual(tree(os.path.join(self.mnt, "clone")), tree(self.path("clone")))


    def test_a_build_while_the_host_rebases(self):
        """A build runs on the mount again and again while the host rebases: what it
        builds in the end is what the host has."""
        host, here = self.path("tree"), os.path.join(self.mnt, "tree")
        os.mkdir(host)
        self.git(host, "init", "-q", "-b", "main")
        parts = [f"part{number}" for number in range(12)]
        write(os.path.join(host, "Makefile"), (
            f"prog: main.o {' '.join(f'{part}.o' for part in parts)}\n"
            "\tcc -o $@ $^\n%.o: %.c all.h\n\tcc -O1 -c -o $@ $<\n").encode())
        write(os.path.join(host, ".gitignore"), b"*.o\nprog\n")
        write(os.path.join(host, "all.h"), "".join(f"int {part}(void);\n" for part in parts).encode())
        write(os.path.join(host, "main.c"), (
            '#include <stdio.h>\n#include "all.h"\nint main(void) {\n'
            + "".join(f'printf("%d\\n", {part}());\n' for part in parts) + "return 0; }\n").encode())

        def commit(text, value):
            for number, part in enumerate(parts):
                if text == "base" or number % 3 == value % 3:
                    write(os.path.join(host, f"{part}.c"),
                          f'#include "all.h"\nint {part}(void) {{ return {value}; }}\n'.encode())
            self.git(host, "add", "-A")
            self.git(host, "commit", "-qm", f"{text} {value}")

        commit("base", 0)
        self.git(host, "checkout", "-q", "-b", "topic")
        for value in (1, 4, 7, 10):
            commit("topic", value)
        self.git(host, "checkout", "-q", "main")
        commit("main", 2)
        builds, stop = [], threading.Event()

        def build():
            while not stop.is_set():
                # In the middle of a rebase a source may be missing, as it is on the host.
                builds.append(subprocess.run(["make", "-s", "-j2"], cwd=here, check=False,
                                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

        builder = threading.Thread(target=build)
        builder.start()
        try:
            turn = 0
            while turn < 6 or len(builds) < 2:  # a slow machine builds for longer
                self.git(host, "checkout", "-q", "topic")
                self.git(host, "rebase", "-q", "main")
                self.git(host, "checkout", "-q", "main")
                commit("main", 5 + 3 * turn)
                turn += 1
        finally:
            stop.set()
            builder.join()
        self.assertGreater(len(builds), 1)
        self.git(host, "checkout", "-q", "topic")
        self.git(host, "rebase", "-q", "main")
        self.fs.sync()
        self.assertEqual(self.git(here, "status", "--porcelain"), "")
        self.assertEqual(tree(here), tree(host))
        outputs = []
        for top in (here, host):
            subprocess.run(["make", "-s", "-B"], cwd=top, check=True)
            outputs.append(subprocess.run(["./prog"], cwd=top, check=True,
                                          stdout=subprocess.PIPE).stdout)
        self.assertEqual(outputs[0], outputs[1])
        self.assertEqual(set(outputs[0].split()), {b"0", b"10", str(2 + 3 * turn).encode()})


class CommandTest(DaemonTest):
    def setUp(self):
        super().setUp()
        self.daemon.drain_notifications()

    def run_once(self, *arguments, **options):
        return subprocess.run([fusefs.binary(), *arguments], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=30, check=False, **options)

    def test_errors_say_what_to_do(self):
        where = scratch.new_path("where")
        os.mkdir(where)
        nobody = os.path.join(self.base, "nobody")
        for arguments, status, text in (
                ((self.share, where, "--socket", nobody), 69, b"no hostwatchd listens"),
                (("/proc", where, "--socket", self.daemon.socket), 69, b"cannot watch"),
                ((self.share, where, "-o", "nonsense"), 64, b"no such option"),
                ((self.share, where, "-o", "access,events=none"), 64, b"nobody tells"),
                ((self.share, where, "-o", "events=some"), 64, b"replay, invalidate or none"),
                ((self.share, where, "-o", "timeout=x"), 64, b"seconds"),
                ((self.share, where + "none"), 71, b"No such file"),
                ((self.share + "none", where), 69, b"No such file")):
            for foreground in ((), ("-f",)):
                done = self.run_once(*arguments, *foreground)
                self.assertEqual(done.returncode, status, (arguments, done.stdout))
                self.assertIn(text, done.stdout)
        self.assertFalse(fusefs.is_mounted(where))

    def test_mount_8(self):
        """As from fstab: the helper goes to the background and mount returns."""
        where = scratch.new_path("where")
        os.mkdir(where)
        write(self.path("file"), b"seen")
        # mount(8) looks for helpers in its own PATH. The tests have a mount
        # namespace of their own.
        programs = scratch.new_path("sbin")
        os.mkdir(programs)
        os.symlink(fusefs.binary(), os.path.join(programs, "hostwatchfs"))
        scratch.run("mount", "--bind", programs, "/usr/local/sbin")
        self.addCleanup(scratch.run, "umount", "/usr/local/sbin")
        subprocess.run(
            ["mount", "-t", "fuse.hostwatchfs", self.share, where, "-o",
             f"allow_other,nosuid,_netdev,x-systemd.after=x,events=invalidate,"
             f"socket={self.daemon.socket}"], check=True, timeout=30)
        try:
            self.assertEqual(read(os.path.join(where, "file")), b"seen")
            with open("/proc/self/mountinfo", encoding="utf-8") as file:
                line = next(line for line in file if line.split()[4] == where)
            self.assertIn("fuse.hostwatchfs " + self.share, line)
            self.assertIn("nosuid", line)
        finally:
            subprocess.run(["umount", where], check=True)

    def test_the_status_shows_mounts(self):
        fs = fusefs.HostwatchFS(self.share, self.daemon.socket, "events=invalidate")
        self.addCleanup(fs.kill)
        write(self.path("file"), b"x")
        fs.sync()
        os.stat(os.path.join(fs.path, "file"))
        fs.sync()
        with open(self.path("file"), "r+b") as file:
            file.write(b"y")
        fs.sync()
        control = os.path.join(os.path.dirname(fusefs.binary()), "hostwatchctl")
        def ask(*words):
            return subprocess.run([control, "--socket", self.daemon.socket, "status", *words],
                                  stdout=subprocess.PIPE, check=True, timeout=20).stdout.decode()
        (mount,) = [one for one in json.loads(ask("--json"))["mounts"]
                    if one["pid"] == fs.process.pid]
        self.assertEqual((mount["source"], mount["mountpoint"]), (self.share, fs.path))
        self.assertEqual((mount["state"], mount["events"]), ("in-step", "invalidate"))
        self.assertEqual(mount["nodes"], 2)
        self.assertGreaterEqual(mount["invalidated"], 2)
        self.assertEqual(mount["failures"], {})
        (line,) = [line for line in ask().split("\n") if fs.path in line]
        self.assertRegex(line, rf"^ *{fs.process.pid} +in-step +invalidate +2 ")
        fs.process.kill()  # nobody answers for it any more
        fs.process.wait()
        self.assertNotIn(fs.path, ask())
        os.unlink(fs.control)

    def test_without_the_daemon(self):
        where = scratch.new_path("where")
        fs = fusefs.HostwatchFS(self.share, "/nonexistent", "events=none,timeout=0", path=where)
        self.addCleanup(fs.kill)
        for number in range(5):
            write(self.path("file"), b"x" * number)
            self.assertEqual(os.stat(os.path.join(where, "file")).st_size, number)
        self.assertEqual(fs.status()["state"], "alone")
        fs.unmount()
