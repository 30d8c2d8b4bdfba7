# SPDX-License-Identifier: Apache-2.0
"""hostwatch_fuse.h at work in examples/mirror.c, a server that lets its kernel
cache everything for ever: with the header the mount is true, without it is not."""

import os
import shlex
import stat
import subprocess
import time

import daemon
import runner
import scratch
from daemon import DaemonTest
from streams import Inotify, mask_text

TIMEOUT = 20.0


def build(*flags):
    path = scratch.new_path("mirror")
    library = os.path.join(daemon.REPOSITORY, "Sources", "CHostWatch")
    sources = [os.path.join(library, name) for name in os.listdir(library) if name.endswith(".c")]
    fuse = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    scratch.run("cc", "-O1", "-pthread", *flags, f"-I{library}/include", "-o", path,
                os.path.join(daemon.REPOSITORY, "examples", "mirror.c"), *sources,
                *shlex.split(fuse))
    return path


def picture(directory):
    """Names, kinds, modes, link counts, sizes, times and contents below."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in folders + files:
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
                contents = b""
                if stat.S_ISREG(status.st_mode):
                    with open(path, "rb") as file:
                        contents = file.read()
            except (FileNotFoundError, NotADirectoryError, OSError):
                status, contents = None, None
            found[os.path.relpath(path, directory)] = status and (
                status.st_mode, status.st_nlink, status.st_size, status.st_mtime_ns, contents)
    return found


class MirrorTest(DaemonTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.programs = {True: build("-DHOSTWATCH"), False: build()}

    def mounted(self, hostwatch=True):
        path = scratch.new_path("mirror-mount")
        os.mkdir(path)
        process = subprocess.Popen([self.programs[hostwatch], self.share, path,
                                    self.daemon.socket])

        def stop():
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL, check=False)
            process.terminate()
            process.wait(10)
        self.addCleanup(stop)
        deadline = time.monotonic() + TIMEOUT
        while not os.path.ismount(path):
            self.assertIsNone(process.poll(), "the server has ended")
            self.assertLess(time.monotonic(), deadline, "not mounted")
            time.sleep(0.01)
        return path

    def fill(self):
        os.makedirs(self.path("sub/deep"))
        for name in ("f", "g", "victim", "sub/x", "sub/deep/y", "linked"):
            daemon.write(self.path(name), f"old {name}".encode())
        os.link(self.path("linked"), self.path("link"))
        os.symlink("f", self.path("s"))

    CHANGES = (
        ("CREATE", lambda p: daemon.write(p("absent"), b"new")),
        ("MODIFY", lambda p: daemon.write(p("f"), b"new and longer")),
        ("MODIFY of the same size", lambda p: daemon.write(p("g"), b"NEW g")),
        ("ATTRIB", lambda p: os.chmod(p("sub"), 0o700)),
        ("DELETE", lambda p: os.unlink(p("f"))),
        ("DELETE of one link", lambda p: os.unlink(p("link"))),
        ("RENAME over", lambda p: os.rename(p("g"), p("victim"))),
        ("RENAME of a directory", lambda p: os.rename(p("sub"), p("moved"))),
        ("rmdir", lambda p: (os.unlink(p("moved/deep/y")), os.rmdir(p("moved/deep")))),
        ("move out", lambda p: os.rename(p("moved"), os.path.join(p(".."), "outside", "moved"))),
        ("move in", lambda p: os.rename(os.path.join(p(".."), "outside", "moved"), p("back"))),
        ("another kind", lambda p: (os.unlink(p("absent")), os.mkdir(p("absent")))),
    )

    def look(self, mount):
        """Everything into the kernel's caches, also that names are not there."""
        for name in ("absent", "moved", "back"):
            try:
                os.lstat(os.path.join(mount, name))
            except FileNotFoundError:
                pass
        return picture(mount)

    def test_every_change_is_seen(self):
        self.fill()
        mount = self.mounted()
        self.assertEqual(self.look(mount), picture(self.share))
        for what, change in self.CHANGES:
            with self.subTest(what):
                change(self.path)
                deadline = time.monotonic() + TIMEOUT
                while self.look(mount) != picture(self.share):
                    if time.monotonic() > deadline:
                        self.assertEqual(self.look(mount), picture(self.share))
                    time.sleep(0.005)

    @runner.attempts(3)  # another test may have the kernel drop its caches meanwhile
    def test_without_it_the_mount_is_stale(self):
        self.fill()
        mount = self.mounted(hostwatch=False)
        before = self.look(mount)
        for _, change in self.CHANGES:
            change(self.path)
        for name in before:
            self.assertTrue(os.path.lexists(os.path.join(mount, name)), name)
        for name in ("absent", "moved", "back"):
            self.assertFalse(os.path.lexists(os.path.join(mount, name)), name)

    def test_deleting_tells_watchers_of_what_is_gone_only(self):
        self.fill()
        mount = self.mounted()
        self.look(mount)
        watch = Inotify()
        self.addCleanup(watch.close)
        for name in ("f", "linked", "sub/deep"):
            watch.watch(os.path.join(mount, name), name)
        os.unlink(self.path("link"))
        os.unlink(self.path("sub/deep/y"))
        os.rmdir(self.path("sub/deep"))
        os.unlink(self.path("f"))
        told, deadline = [], time.monotonic() + TIMEOUT
        while ("f", "IGNORED") not in told and time.monotonic() < deadline:
            told += [(label, mask_text(mask)) for label, mask, _, _ in watch.read()]
            time.sleep(0.005)
        self.assertEqual(told, [("sub/deep", "DELETE_SELF"), ("sub/deep", "IGNORED"),
                                ("f", "DELETE_SELF"), ("f", "IGNORED")])

    def test_after_the_daemon_was_away(self):
        self.fill()
        mount = self.mounted()
        self.look(mount)
        self.daemon.stop()
        try:
            for _, change in self.CHANGES:
                change(self.path)
            deadline = time.monotonic() + TIMEOUT
            while self.look(mount) != picture(self.share) and time.monotonic() < deadline:
                time.sleep(0.005)
            self.assertEqual(self.look(mount), picture(self.share), "while it is away")
        finally:
            self.daemon.start()
        self.look(mount)
        # Back in step sooner or later, and true all the time.
        deadline = time.monotonic() + TIMEOUT
        while len(self.registered()) == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        daemon.write(self.path("absent-2"), b"new")
        deadline = time.monotonic() + TIMEOUT
        while self.look(mount) != picture(self.share) and time.monotonic() < deadline:
            time.sleep(0.005)
        self.assertEqual(self.look(mount), picture(self.share))

    def test_the_root_while_the_daemon_is_away(self):
        """Nobody looks it up by a name, so no expired name makes the kernel ask for it."""
        os.mkdir(self.path("d"))
        mount = self.mounted()

        def seen(directory):
            return sorted(os.listdir(directory)), os.stat(directory).st_mtime_ns
        self.assertEqual(seen(mount), seen(self.share))
        self.daemon.stop()
        try:
            os.mkdir(self.path("new"))
            deadline = time.monotonic() + TIMEOUT
            while seen(mount) != seen(self.share) and time.monotonic() < deadline:
                time.sleep(0.005)
            self.assertEqual(seen(mount), seen(self.share))
        finally:
            self.daemon.start()

    def registered(self):
        with self.daemon.connect() as client:
            return [session for session in client.status()["sessions"] if session["nodes"]]
