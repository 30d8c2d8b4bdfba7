# SPDX-License-Identifier: Apache-2.0
"""hostwatchctl and the C library's example against a real daemon."""

import json
import os
import shutil
import subprocess
import unittest

import daemon as harness
from daemon import DaemonTest, touch
from scratch import new_path

REPOSITORY = harness.REPOSITORY


def ctl_binary():
    return os.path.join(os.path.dirname(harness.binary()), "hostwatchctl")


class Ctl(DaemonTest):
    kind = "ext4"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not os.path.exists(ctl_binary()):
            raise unittest.SkipTest("hostwatchctl is not beside hostwatchd")

    def ctl(self, *arguments, socket=None, user=None):
        return subprocess.run(
            [ctl_binary(), "--socket", socket or self.daemon.socket, *arguments],
            capture_output=True, text=True, timeout=30, check=False, user=user)

    def watch(self, *arguments):
        """A running `watch`, attached: its first line says so."""
        process = subprocess.Popen(
            [ctl_binary(), "--socket", self.daemon.socket, "watch", "--json", *arguments],
            stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        first = json.loads(process.stdout.readline())
        self.assertEqual(first["type"], "attached", first)
        return process

    def test_status(self):
        session = self.session()
        result = self.ctl("status", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        status = json.loads(result.stdout)
        self.assertEqual(status["pid"], self.daemon.pid)
        mine = [one for one in status["sessions"] if one["pid"] == os.getpid()]
        self.assertEqual([(one["mode"], one["nodes"]) for one in mine], [("nodes", 1)])
        self.assertEqual([one["type"] for one in status["filesystems"]], ["ext4"])
        table = self.ctl("status")
        self.assertEqual(table.returncode, 0)
        for word in ("FILESYSTEMS", "SESSIONS", "ext4", str(os.getpid())):
            self.assertIn(word, table.stdout)
        session.close()

    def test_watch(self):
        process = self.watch("--count", "3", self.share)
        os.mkdir(self.path("d"))
        touch(self.path("a"))
        os.rename(self.path("a"), self.path("d", "b\n\udcff"))
        lines = [json.loads(line) for line in process.stdout]
        self.assertEqual(process.wait(), 0)
        text = json.dumps(lines)
        self.assertIn('"d"', text)
        self.assertTrue(any("create" in json.dumps(line) for line in lines), lines)

    def test_watch_filters(self):
        process = self.watch("--events", "rename", "--count", "1", self.share)
        touch(self.path("a"))
        os.rename(self.path("a"), self.path("b"))
        lines = [json.loads(line) for line in process.stdout]
        self.assertEqual(process.wait(), 0)
        records = [line for line in lines if line["type"] == "event"] or lines
        self.assertEqual(len(records), 1, lines)
        self.assertIn("rename", json.dumps(records[0]))

    def test_sync(self):
        self.assertEqual(self.ctl("sync", self.share).returncode, 0)

    def test_doctor(self):
        result = self.ctl("doctor", "--json", self.share)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertNotIn('"fail"', result.stdout)
        result = self.ctl("doctor", "--json")  # the installation, such as it is here
        report = json.loads(result.stdout)
        self.assertEqual(report["ok"], result.returncode == 0)
        states = {check["name"]: check["state"] for check in report["checks"]}
        for name in ("daemon", "daemon-capabilities", "share", "socket-rights"):
            self.assertEqual(states[name], "ok", result.stdout)
        self.assertLessEqual({"unit", "configuration", "journal-catalog", "hostwatchfs",
                              "leftovers"}, set(states))
        result = self.ctl("doctor", "/proc")
        self.assertEqual(result.returncode, 1, result.stdout)

    def test_exit_statuses(self):
        self.assertEqual(self.ctl("status", socket=new_path("none")).returncode, 69)
        self.assertEqual(self.ctl("nonsense").returncode, 64)
        self.assertEqual(self.ctl("watch", "no-such-share").returncode, 69)

    def test_completions(self):
        for shell in ("bash", "zsh", "fish"):
            result = self.ctl("--generate-completion-script", shell)
            self.assertEqual(result.returncode, 0)
            self.assertIn("hostwatchctl", result.stdout)


class CLibrary(DaemonTest):
    """The C library against the daemon: what examples/watch.c prints."""

    kind = "ext4"

    def setUp(self):
        super().setUp()
        if not shutil.which("cc"):
            self.skipTest("no C compiler")
        self.program = os.path.join(self.base, "watch")
        sources = os.path.join(REPOSITORY, "Sources", "CHostWatch")
        files = sorted(os.path.join(sources, name) for name in os.listdir(sources)
                       if name.endswith(".c"))
        with open(os.path.join(REPOSITORY, "examples", "watch.c"), encoding="utf-8") as file:
            text = file.read()
        place = "hostwatch_options_init(&options, sizeof(options));"
        self.assertIn(place, text)
        changed = os.path.join(self.base, "watch.c")
        with open(changed, "w", encoding="utf-8") as file:
            file.write(text.replace(
                place, f'{place} options.socket_path = "{self.daemon.socket}";'))
        subprocess.run(["cc", "-pthread", "-I" + os.path.join(sources, "include"), "-o",
                        self.program, changed, *files], check=True)

    def test_watch(self):
        process = subprocess.Popen(["stdbuf", "-oL", self.program, self.share],
                                   stdout=subprocess.PIPE, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        # It says nothing when it is attached: its session tells.
        while not any(one["pid"] == process.pid for one in self.status()["sessions"]):
            self.assertIsNone(process.poll())
        os.mkdir(self.path("archive"))
        touch(self.path("notes"))
        os.rename(self.path("notes"), self.path("archive", "notes"))
        seen = []
        while not seen or "RENAME" not in seen[-1]:
            line = process.stdout.readline()
            self.assertTrue(line, seen)
            seen.append(line)
        self.assertIn("notes -> archive/notes", seen[-1])

    def status(self):
        with self.daemon.session(self.share) as client:
            status = client.status()
        return status if isinstance(status, dict) else json.loads(status)


if __name__ == "__main__":
    unittest.main()
