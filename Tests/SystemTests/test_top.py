# SPDX-License-Identifier: Apache-2.0
"""`hostwatchctl top` and the colours of `watch`, on a terminal and without one."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unittest

from daemon import Daemon, DaemonTest, touch
from hostwatch import TREE
from test_ctl import ctl_binary

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Screen:
    """A program on a terminal of its own."""

    def __init__(self, test, *arguments, rows=24, columns=100, **environment):
        self.test = test
        self.master, self.terminal = pty.openpty()
        test.addCleanup(os.close, self.master)
        test.addCleanup(os.close, self.terminal)
        self.resize(rows, columns)
        self.before = termios.tcgetattr(self.terminal)
        self.seen = b""
        inherited = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        self.process = subprocess.Popen(
            [ctl_binary(), "--socket", test.daemon.socket, *arguments],
            stdin=self.terminal, stdout=self.terminal, stderr=self.terminal,
            env={**inherited, "TERM": "xterm", **environment}, start_new_session=True)
        test.addCleanup(self.process.wait)
        test.addCleanup(self.process.kill)

    def resize(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, pattern, limit=15):
        """Reads until the pattern has come; returns what was read up to its end."""
        end = time.monotonic() + limit
        while not (found := re.search(pattern, self.seen, re.S)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            self.test.assertTrue(ready, f"{pattern!r} did not come: {self.seen[-2000:]!r}")
            self.seen += os.read(self.master, 65536)
        text, self.seen = self.seen[:found.end()], self.seen[found.end():]
        return text

    def assert_restored(self):
        self.wait_for(re.escape(LEAVE))
        self.test.assertEqual(termios.tcgetattr(self.terminal), self.before)


class Top(DaemonTest):
    kind = "ext4"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        if not os.path.exists(ctl_binary()):
            raise unittest.SkipTest("hostwatchctl is not beside hostwatchd")

    def top(self, *arguments, **how):
        screen = Screen(self, "top", "--interval", "0.2", *arguments, **how)
        screen.wait_for(re.escape(ENTER))
        return screen

    def test_keys_sort_and_quit(self):
        sessions = [self.session(), self.session()]
        screen = self.top()
        screen.wait_for(rb"SESSIONS by rate.*%d" % os.getpid())
        self.assertFalse(termios.tcgetattr(screen.terminal)[3] & (termios.ICANON | termios.ECHO))
        os.write(screen.master, b"n")
        screen.wait_for(rb"SESSIONS by nodes\x1b")
        os.write(screen.master, b"n")
        screen.wait_for(rb"SESSIONS by nodes, reversed")
        for key, column in ((b"a", b"lag"), (b"c", b"corrected"), (b"l", b"lost")):
            os.write(screen.master, key)
            screen.wait_for(rb"SESSIONS by %s\x1b" % column)
        os.write(screen.master, b"q")
        screen.assert_restored()
        self.assertEqual(screen.process.wait(), 0)
        for session in sessions:
            session.close()

    def test_a_narrow_terminal_has_the_columns_that_tell_most(self):
        session = self.session()
        screen = self.top(columns=80)
        header = screen.wait_for(rb"SESSIONS by rate\x1b\[K\r\n[^\r]*").splitlines()[-1]
        for column in (b"RECORDS/S", b"FULL%", b"LAG-P99", b"LOST", b"CORRECTED"):
            self.assertIn(column, header)
        self.assertNotIn("…".encode(), header)
        os.write(screen.master, b"q")
        screen.assert_restored()
        session.close()

    def test_rates_are_seen(self):
        session = self.session()
        screen = self.top()
        for number in range(50):
            touch(self.path(f"f{number}"))
        screen.wait_for(rb"events/s [1-9]")
        os.write(screen.master, b"q")
        screen.assert_restored()
        session.close()

    def test_a_new_size_is_heeded(self):
        session = self.session()
        screen = self.top(columns=100)
        screen.wait_for(rb"q quit")
        screen.resize(8, 30)
        # An ellipsis has three bytes.
        picture = screen.wait_for(rb"\x1b\[H[^\x1b]{1,32}\x1b\[K.*?\x1b\[J")
        last = picture[picture.rindex(b"\x1b[H"):].decode()
        lines = re.sub(r"\x1b\[[HKJ]", "", last).split("\r\n")
        self.assertLessEqual(len(lines), 8)
        self.assertLessEqual(max(map(len, lines)), 30, lines)
        os.write(screen.master, b"q")
        screen.assert_restored()
        session.close()

    def test_signals_leave_the_terminal_as_it_was(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            with self.subTest(number):
                screen = self.top()
                screen.wait_for(rb"q quit")
                screen.process.send_signal(number)
                screen.assert_restored()
                self.assertEqual(screen.process.wait(), 128 + number)

    def test_stopping_and_going_on(self):
        screen = self.top()
        screen.wait_for(rb"q quit")
        screen.process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
        self.assertTrue(os.WIFSTOPPED(status))
        screen.assert_restored()
        screen.process.send_signal(signal.SIGCONT)
        screen.wait_for(re.escape(ENTER))
        os.write(screen.master, b"q")
        screen.assert_restored()

    def test_a_daemon_that_goes_away_is_waited_for(self):
        screen = self.top(columns=200)
        screen.wait_for(rb"q quit")
        self.daemon.stop()
        self.addCleanup(self.daemon.start)
        screen.wait_for(rb"no daemon answers")
        os.write(screen.master, b"q")
        screen.assert_restored()
        self.assertEqual(screen.process.wait(), 0)

    def piped(self, *arguments, daemon=None):
        return subprocess.run(
            [ctl_binary(), "--socket", (daemon or self.daemon).socket, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)

    def test_piped(self):
        session = self.session()
        result = self.piped("top", "--interval", "0.1", "--count", "3")
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertNotIn("\x1b", result.stdout)
        self.assertEqual(result.stdout.count("SESSIONS by rate"), 3)
        result = self.piped("top", "--interval", "0.1", "--count", "2", "--json")
        first, second = map(json.loads, result.stdout.splitlines())
        self.assertIsNone(first["interval_seconds"])
        self.assertGreaterEqual(second["interval_seconds"], 0.1)
        self.assertEqual([one["delivered_rate"] for one in second["sessions"]], [0])
        self.assertEqual(second["pid"], self.daemon.pid)
        one = second["sessions"][0]
        self.assertEqual((one["corrected_rate"], one["lag_p99_us"]), (0, None))
        session.close()

    def test_a_share_keeps_what_its_sessions_had(self):
        daemon = Daemon(shares={"s": self.share})
        self.addCleanup(daemon.stop)
        # It does not read: the queue overflows.
        session = daemon.session(mode=TREE, share="s", queue_limit=65536, max_packet=4096)

        def share():
            result = self.piped("top", "--count", "1", "--json", daemon=daemon)
            return json.loads(result.stdout)["shares"][0]

        number = 0
        while not share()["dropped"]:
            for _ in range(1000):
                touch(self.path(f"f{number}"))
                number += 1
            self.assertLess(number, 100_000)
        self.assertGreater(share()["queue_bytes"], 0)
        session.sync()  # it is told that it has lost some
        session.close()
        end = time.monotonic() + 10
        while share()["sessions"]:
            self.assertLess(time.monotonic(), end)
        result = self.piped("top", "--interval", "0.1", "--count", "2", daemon=daemon)
        lines = result.stdout.splitlines()
        first, last = [dict(zip(lines[at + 1].split(), lines[at + 2].split()))
                       for at, line in enumerate(lines) if line == "SHARES"]
        self.assertRegex(first["LAG-P99"], "^[<>]")
        self.assertEqual((first["LOST"], first["QUEUE"], first["PATH"]), ("1", "0", self.share))
        self.assertEqual((last["RECORDS/S"], last["LAG-P99"]), ("0.0", "-"))

    def test_wrong_options(self):
        for wrong in (("--interval", "0"), ("--interval", "nan"), ("--count", "0"),
                      ("--sort", "size")):
            self.assertEqual(self.piped("top", *wrong).returncode, 64, wrong)

    def watch(self, *arguments, **environment):
        screen = Screen(self, "watch", "--count", "1", *arguments, self.share, **environment)
        screen.wait_for(rb"watching for")
        touch(self.path(f"file{time.monotonic_ns()}"))
        return screen.wait_for(rb"create .*file\d+")

    def test_watch_has_colours(self):
        self.assertIn(b"\x1b[32mcreate", self.watch())
        self.assertNotIn(b"\x1b", self.watch(NO_COLOR="1"))
        self.assertNotIn(b"\x1b", self.watch("--color", "never"))
        self.assertNotIn(b"\x1b", self.watch(TERM="dumb"))
        self.assertIn(b"\x1b[32mcreate", self.watch("--color", "always", NO_COLOR="1"))
