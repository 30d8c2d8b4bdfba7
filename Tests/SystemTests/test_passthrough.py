# SPDX-License-Identifier: Apache-2.0
"""examples/passthrough_ll.patch: libfuse's own example as a client of hostwatchd. With the
patch the mount is true while its kernel caches for a day, without it is not."""

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import unittest

import daemon
import fusefs
import inject
import runner
import scratch
from daemon import REPOSITORY, DaemonTest
from test_mirror import picture

PATCH = os.path.join(REPOSITORY, "examples", "passthrough_ll.patch")
EXAMPLES = "/usr/share/doc/libfuse3-dev/examples"
LIBFUSE = "3.14."  # what the patch is against
TIMEOUT = 20.0


def libfuse(*what):
    return subprocess.run(["pkg-config", *what, "fuse3"], stdout=subprocess.PIPE, text=True,
                          check=False).stdout.strip()


def build(patched):
    """The program, and what the compiler said of it, without line numbers."""
    directory = scratch.new_path("passthrough")
    os.mkdir(directory)
    for name in ("passthrough_ll.c", "passthrough_helpers.h"):
        shutil.copy(os.path.join(EXAMPLES, name), directory)
    source = os.path.join(directory, "passthrough_ll.c")
    program = os.path.join(directory, "passthrough_ll")
    library = []
    if patched:
        scratch.run("patch", "--fuzz=0", source, PATCH)
        client = os.path.join(REPOSITORY, "Sources", "CHostWatch")
        library = [f"-I{client}/include"] + sorted(
            os.path.join(client, name) for name in os.listdir(client) if name.endswith(".c"))
    done = scratch.run("cc", "-O1", "-Wall", "-Wextra", "-pthread", "-o", program, source, *library,
                       *shlex.split(libfuse("--cflags", "--libs")))
    return program, sorted(re.findall(r"warning: .*", done.stderr.decode()))


def states(directory, names):
    """What each name leads to, asked for by that name alone: no listing is read."""
    found = {}
    for name in names:
        path = os.path.join(directory, name)
        try:
            status = os.lstat(path)
            contents = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    contents = file.read()
        except OSError as problem:
            found[name] = type(problem).__name__
        else:
            found[name] = (status.st_mode, status.st_nlink, status.st_size, status.st_mtime_ns,
                           contents)
    return found


class PatchTest(unittest.TestCase):
    def test_integrate_counts_its_lines(self):
        with open(PATCH, encoding="utf-8") as file:
            lines = file.read().partition("\n+++ ")[2].split("\n")[1:]
        added, removed = (sum(line.startswith(sign) for line in lines) for sign in "+-")
        with open(os.path.join(REPOSITORY, "docs", "integrate.md"), encoding="utf-8") as file:
            self.assertIn(f"{added} lines added, {removed} removed", " ".join(file.read().split()))


class PassthroughTest(DaemonTest):
    @classmethod
    def setUpClass(cls):
        version = libfuse("--modversion")
        if not os.path.exists(os.path.join(EXAMPLES, "passthrough_ll.c")):
            raise unittest.SkipTest(
                f"no {EXAMPLES}/passthrough_ll.c: libfuse3-dev is not installed, or dpkg was told "
                "to leave out /usr/share/doc (path-exclude in /etc/dpkg/dpkg.cfg.d)")
        if not version.startswith(LIBFUSE):
            raise unittest.SkipTest(f"the patch is against libfuse {LIBFUSE}x, here is {version}")
        super().setUpClass()
        cls.programs = {patched: build(patched) for patched in (True, False)}

    def started(self, patched=True, options="cache=always,timeout=86400", socket=None, more=()):
        """The server's process and its mount point."""
        path = scratch.new_path("passthrough-mount")
        os.mkdir(path)
        options = f"source={self.share},allow_other,{options}"
        if patched:
            options += f",hostwatch={socket or self.daemon.socket}"
        process = subprocess.Popen([self.programs[patched][0], "-f", *more, "-o", options, path],
                                   stderr=subprocess.PIPE, text=True)

        def stop():
            subprocess.run(["umount", "-f", "-l", path], stderr=subprocess.DEVNULL, check=False)
            process.terminate()
            process.wait(10)
            process.stderr.close()
        self.addCleanup(stop)
        return process, path

    def mounted(self, *arguments, **named):
        process, path = self.started(*arguments, **named)
        self.until(lambda: os.path.ismount(path) or process.poll() is not None, "mounted")
        self.assertIsNone(process.poll(), "the server has ended")
        return path

    def until(self, true, what):
        deadline = time.monotonic() + TIMEOUT
        while not true():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.005)

    def becomes_true(self, mount, names=()):
        """The mount shows what the host has, by names and by listings."""
        def same():
            return (states(mount, names) == states(self.share, names)
                    and picture(mount) == picture(self.share))
        deadline = time.monotonic() + TIMEOUT
        while not same() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.assertEqual(states(mount, names), states(self.share, names))
        self.assertEqual(picture(mount), picture(self.share))

    NAMES = ("f", "g", "victim", "linked", "link", "removed", "s", "sub", "sub/x", "sub/deep",
             "sub/deep/y", "replaced", "replaced/old", "replaced/new", "created", "made", "moved",
             "moved/x", "moved/deep/y", "back", "back/x", "kind")

    def fill(self):
        os.makedirs(self.path("sub/deep"))
        os.mkdir(self.path("replaced"))
        for name in ("f", "g", "victim", "linked", "removed", "sub/x", "sub/deep/y",
                     "replaced/old", "kind"):
            daemon.write(self.path(name), f"old {name}".encode())
        os.link(self.path("linked"), self.path("link"))
        os.symlink("f", self.path("s"))

    def replace_directory(self):
        os.unlink(self.path("replaced/old"))
        os.rmdir(self.path("replaced"))
        os.mkdir(self.path("replaced"))
        daemon.write(self.path("replaced/new"), b"new")

    # What is done, and a name that shows without the patch what was before; names that were not
    # there are not cached by passthrough_ll, so they appear in any case.
    CHANGES = (
        ("create", None, lambda t: daemon.write(t.path("created"), b"new")),
        ("create in a directory", "sub", lambda t: daemon.write(t.path("sub/new"), b"new")),
        ("mkdir", None, lambda t: os.mkdir(t.path("made"))),
        ("contents", "f", lambda t: daemon.write(t.path("f"), b"new and longer")),
        ("contents of the same size", "g", lambda t: daemon.write(t.path("g"), b"NEW g")),
        ("mode", "sub/x", lambda t: os.chmod(t.path("sub/x"), 0o600)),
        ("delete", "removed", lambda t: os.unlink(t.path("removed"))),
        ("delete one link", "link", lambda t: os.unlink(t.path("link"))),
        ("rename over", "victim", lambda t: os.rename(t.path("g"), t.path("victim"))),
        ("replace a directory", "replaced", replace_directory),
        ("rename a directory", "sub/deep/y", lambda t: os.rename(t.path("sub"), t.path("moved"))),
        ("move out", None, lambda t: os.rename(t.path("moved"), os.path.join(t.outside, "moved"))),
        ("move in", None, lambda t: os.rename(os.path.join(t.outside, "moved"), t.path("back"))),
        ("another kind", "kind", lambda t: (os.unlink(t.path("kind")), os.mkdir(t.path("kind")))),
    )

    def test_no_warning_that_the_example_does_not_have(self):
        self.assertEqual(self.programs[True][1], self.programs[False][1])

    def test_every_change_is_seen(self):
        self.fill()
        for options in ("cache=always,timeout=86400", "cache=auto,timeout=86400"):
            mount = self.mounted(options=options)
            self.becomes_true(mount, self.NAMES)
            for what, _, change in self.CHANGES:
                with self.subTest(what, options=options):
                    change(self)
                    self.becomes_true(mount, self.NAMES)
            subprocess.run(["umount", mount], check=True)
            shutil.rmtree(self.share)
            os.mkdir(self.share)
            self.fill()

    @runner.attempts(3)  # another test may have the kernel drop its caches meanwhile
    def test_without_the_patch_the_mount_is_stale(self):
        self.fill()
        mount = self.mounted(patched=False)
        states(mount, self.NAMES)
        picture(mount)
        before = states(mount, self.NAMES)
        self.assertEqual(before, states(self.share, self.NAMES))
        for what, name, change in self.CHANGES:
            change(self)
            if name:
                self.assertNotEqual(states(self.share, [name])[name], before[name], what)
                self.assertEqual(states(mount, [name])[name], before[name], what)

    def test_host_and_mount_write_the_same_files(self):
        self.fill()
        mount = self.mounted()
        for turn in range(50):
            here, there = (mount, self.share) if turn % 2 else (self.share, mount)
            text = f"turn {turn}".encode() * (turn + 1)
            daemon.write(os.path.join(here, "f"), text)
            os.chmod(os.path.join(here, "g"), 0o600 + turn % 8)
            os.link(os.path.join(here, "linked"), os.path.join(here, f"link{turn}"))
            daemon.write(os.path.join(here, f"new{turn}"), text)
            self.until(lambda: states(here, ["f", "g", "linked", f"new{turn}"]) ==
                       states(there, ["f", "g", "linked", f"new{turn}"]), turn)
        self.becomes_true(mount, self.NAMES)

    def test_what_changes_while_it_is_looked_up(self):
        """Answers under way: a name is looked up for the first time while the host writes."""
        mount = self.mounted()
        names = [f"n{i}" for i in range(800)]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            # One change each, sooner or later after the name is there; nothing is closed, which
            # would be another.
            for i, name in enumerate(names):
                fd = os.open(self.path(name), os.O_CREAT | os.O_WRONLY)
                os.write(writing, b"x")
                end = time.monotonic() + i % 20 * 20e-6
                while time.monotonic() < end:
                    pass
                os.write(fd, b"more")
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        for name in names:
            os.read(reading, 1)
            os.lstat(os.path.join(mount, name))
        os.waitpid(child, os.WUNTRACED)
        self.addCleanup(os.waitpid, child, 0)
        self.addCleanup(os.kill, child, signal.SIGKILL)
        os.close(reading)
        os.close(writing)

        def stale():
            return [name for name in names if os.lstat(os.path.join(mount, name)).st_size != 4]
        deadline = time.monotonic() + TIMEOUT
        while stale() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(stale(), [])

    @runner.attempts(3)  # as above
    def test_what_is_forgotten_is_not_registered(self):
        process, mount = self.started()
        self.until(lambda: os.path.ismount(mount), "mounted")
        names = [f"n{i}" for i in range(100)]
        for name in names:
            daemon.write(self.path(name), b"")
        self.assertEqual(self.nodes(process), 0)
        states(mount, names)
        self.assertEqual(self.nodes(process), 100)
        for name in names:
            os.unlink(self.path(name))
        self.until(lambda: self.nodes(process) == 0, "forgotten")

    @runner.attempts(3)  # as above
    def test_the_kernel_keeps_what_it_has(self):
        """True because it is told, not because it asks: the server is stopped."""
        self.fill()
        process, mount = self.started()
        self.until(lambda: os.path.ismount(mount), "mounted")
        self.becomes_true(mount, self.NAMES)
        paths = [os.path.join(mount, name) for name in self.NAMES
                 if os.path.lexists(self.path(name))]
        look = "import os, sys; [os.lstat(path) for path in sys.argv[1:]]"
        subprocess.run([sys.executable, "-c", look, *paths], check=True)  # reading moved atimes
        process.send_signal(signal.SIGSTOP)
        try:
            subprocess.run([sys.executable, "-c", look, *paths], check=True, timeout=TIMEOUT)
        finally:
            process.send_signal(signal.SIGCONT)

    def test_after_the_daemon_was_away(self):
        self.fill()
        process, mount = self.started()
        self.until(lambda: os.path.ismount(mount), "mounted")
        self.becomes_true(mount, self.NAMES)
        self.daemon.stop()
        try:
            for _, _, change in self.CHANGES[:8]:
                change(self)
            self.becomes_true(mount, self.NAMES)
        finally:
            self.daemon.start()
        self.until(lambda: self.nodes(process) > 0, "registered again")
        for _, _, change in self.CHANGES[8:]:
            change(self)
        self.becomes_true(mount, self.NAMES)

    def test_away_for_a_moment(self):
        """What was cached before and not asked for meanwhile is checked when it is back."""
        self.fill()
        mount = self.mounted()
        self.becomes_true(mount, self.NAMES)
        with open(os.path.join(mount, "f"), "rb") as file:
            self.daemon.kill()
            daemon.write(self.path("f"), b"new and longer")
            self.daemon.start()
            self.until(lambda: os.fstat(file.fileno()).st_size == 14, "an open file")
            self.until(lambda: os.pread(file.fileno(), 99, 0) == b"new and longer", "its pages")
        self.becomes_true(mount, self.NAMES)

    def test_what_is_open_while_the_daemon_is_away(self):
        """Nobody looks it up by its name."""
        self.fill()
        mount = self.mounted()
        self.becomes_true(mount, self.NAMES)
        directory = os.open(os.path.join(mount, "sub"), os.O_RDONLY | os.O_DIRECTORY)
        self.addCleanup(os.close, directory)
        with open(os.path.join(mount, "f"), "rb") as file:
            self.assertEqual(file.read(), b"old f")
            self.daemon.kill()
            try:
                daemon.write(self.path("f"), b"new and longer")
                os.chmod(self.path("sub"), 0o700)
                self.until(lambda: os.pread(file.fileno(), 99, 0) == b"new and longer", "its pages")
                self.assertEqual(os.fstat(file.fileno()).st_size, 14)
                self.until(lambda: os.fstat(directory).st_mode & 0o777 == 0o700, "a directory")
            finally:
                self.daemon.start()

    def test_it_ends(self):
        process, mount = self.started()
        self.until(lambda: os.path.ismount(mount), "mounted")
        os.listdir(mount)
        subprocess.run(["umount", mount], check=True)
        self.assertEqual(process.wait(10), 0)
        self.assertNotIn("hostwatch", process.stderr.read())

    def test_it_ends_under_load(self):
        os.mkdir(self.path("d"))
        process, mount = self.started(more=["-s"])
        self.until(lambda: os.path.ismount(mount), "mounted")
        with fusefs.load(self.share, mount, ["d"]):
            # There are always requests that nobody has read yet.
            with inject.failing(process.pid, "writev", "delay_enter=50000") as count:
                fusefs.wait_until(lambda: count() > 20, "answers are delayed")
                process.terminate()
                fusefs.wait_until(lambda: not fusefs.is_mounted(mount), "unmounted", 20)
            process.wait(20)

    def test_who_caches_needs_a_daemon(self):
        nobody = scratch.new_path("no-socket")
        process, _ = self.started(socket=nobody)
        self.assertNotEqual(process.wait(10), 0)
        self.assertIn("hostwatchd: ", process.stderr.read())
        self.fill()
        mount = self.mounted(options="cache=never", socket=nobody)
        for _, _, change in self.CHANGES:
            change(self)
            self.assertEqual(states(mount, self.NAMES), states(self.share, self.NAMES))
        process, _ = self.started(options="writeback")
        self.assertNotEqual(process.wait(10), 0)
        self.assertIn("writeback", process.stderr.read())

    def nodes(self, process):
        """How many are registered, the root not counted."""
        with self.daemon.connect() as client:
            return sum(session["nodes"] - 1 for session in client.status()["sessions"]
                       if session["pid"] == process.pid)
