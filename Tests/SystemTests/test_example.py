# SPDX-License-Identifier: Apache-2.0
"""examples/watch.py, the client in plain Python, against a real daemon."""

import importlib.util
import os
import signal
import struct
import subprocess
import sys

from daemon import REPOSITORY, Daemon, DaemonTest, table, touch
from hostwatch import ATTRIB, CREATE, ISDIR, RECHECK

EXAMPLE = os.path.join(REPOSITORY, "examples", "watch.py")


class Example(DaemonTest):
    kind = "ext4"

    def run_example(self, what, *more):
        process = subprocess.Popen([sys.executable, EXAMPLE, what, *more],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_changes(self):
        os.mkdir(self.path("d"))
        process = self.run_example(self.share, self.daemon.socket)
        self.assertEqual(process.stdout.readline(), "watching\n")
        touch(self.path("d", "a"))
        os.rename(self.path("d", "a"), self.path("b"))
        os.rename(self.path("b"), os.path.join(self.outside, "c"))
        os.rename(os.path.join(self.outside, "c"), self.path("new\nline"))
        os.unlink(self.path("new\nline"))
        wanted = ["CREATE 'd/a'", "RENAME 'd/a' -> 'b'", "RENAME 'b' -> (outside)",
                  "RENAME (outside) -> 'new\\nline'", "DELETE 'new\\nline'"]
        seen = []
        while len(seen) < len(wanted):
            line = process.stdout.readline().rstrip("\n")
            self.assertTrue(line, f"it ended after {seen}")
            if line.split()[0] in ("CREATE", "RENAME", "DELETE"):
                seen.append(line)
        self.assertEqual(seen, wanted)

    def test_loss_and_the_end(self):
        """It does not read until its queue is full; then the daemon ends."""
        daemon = Daemon(config=table(limits={"queue_per_session": "64KiB"}))
        self.addCleanup(daemon.kill)
        process = self.run_example(self.share, daemon.socket)
        self.assertEqual(process.stdout.readline(), "watching\n")
        process.send_signal(signal.SIGSTOP)
        with daemon.connect() as other:
            for number in range(100):
                for name in range(100):
                    touch(self.path(f"{number}-{name}-{'x' * 200}"))
                if other.status()["sessions"][0]["dropped"]:
                    break
            else:
                self.fail("nothing was dropped")
        process.send_signal(signal.SIGCONT)
        seen = []
        while not seen or seen[-1] != "read the whole tree again now\n":
            seen.append(process.stdout.readline())
            self.assertTrue(seen[-1], "it ended")
        self.assertEqual([line for line in seen if "'" not in line],
                         ["events were lost\n", "read the whole tree again now\n"])
        touch(self.path("after"))
        self.assertEqual(process.stdout.readline(), "CREATE 'after'\n")
        daemon.stop()
        self.assertEqual(process.wait(10), 1)
        self.assertIn("the session has ended: reason 3", process.stderr.read())

    def test_what_has_no_path(self):
        """A RECHECK, and a path that is not given: made here, since the kernel's timing decides."""
        spec = importlib.util.spec_from_file_location("watch", EXAMPLE)
        watch = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(watch)

        def body(flags, mask, directory, node, name):
            size = 96 + len(name) + -len(name) % 8
            return struct.pack("=IIIIQQQQQQQQQiHHII", 1, 0, size, flags, 1, mask, directory, 0, node,
                               0, 0, 0, 0, 0, len(name), 0, 0, 0) + name + bytes(-len(name) % 8)

        for packet, text in ((body(RECHECK, ISDIR, 0, 7, b""), "look again at inode 7"),
                             (body(0, CREATE, 9, 7, b"f"), "CREATE '?/f'"),
                             (body(0, CREATE, 1, 7, b"f"), "CREATE 'f'"),
                             (body(0, ATTRIB | ISDIR, 1, 1, b""), "ATTRIB|ISDIR '.'")):
            self.assertEqual([watch.describe(*one) for one in watch.records(packet)], [text])

    def test_refusals(self):
        for what, socket, said in (("share:none", self.daemon.socket, "No share of that name"),
                                   (self.share, "/nonexistent", "No such file")):
            process = self.run_example(what, socket)
            self.assertEqual(process.wait(10), 1)
            self.assertIn(said, process.stderr.read())
