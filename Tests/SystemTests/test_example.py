# SPDX-License-Identifier: Apache-2.0
"""examples/watch.py, the client in plain Python, against a real daemon."""

import os
import subprocess
import sys

from daemon import REPOSITORY, DaemonTest, touch

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

    def test_refusals(self):
        for what, socket, said in (("share:none", self.daemon.socket, "No share of that name"),
                                   (self.share, "/nonexistent", "No such file")):
            process = self.run_example(what, socket)
            self.assertEqual(process.wait(10), 1)
            self.assertIn(said, process.stderr.read())
