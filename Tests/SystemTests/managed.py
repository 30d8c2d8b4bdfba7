# SPDX-License-Identifier: Apache-2.0
"""A daemon whose service manager is this process: it keeps descriptors for it, and
starts the next one with them."""

import os
import select
import shutil
import socket
import threading
import time
import unittest

import scratch
from daemon import START_TIMEOUT
from faults import TracedDaemon

_launcher = None


def launcher():
    """The program that takes the descriptors, compiled once."""
    global _launcher
    if _launcher is None:
        if not shutil.which("cc"):
            raise unittest.SkipTest("cc is missing")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.c")
        path = scratch.new_path("launch")
        scratch.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source)
        _launcher = path
    return _launcher


class ManagedDaemon(TracedDaemon):
    """`store` is what an earlier one has left: name → descriptor. It is this one's then."""

    def __init__(self, fault=None, store=None, **fields):
        super().__init__(fault, **fields)
        self.store = store if store is not None else {}
        self.said = []
        self.heard = threading.Condition()
        self.thread = None
        self.is_over = False
        path = os.path.join(self.directory, "launch")
        self.launching = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.launching.bind(path)
        self.launching.listen(1)
        at = len(self.command) - len(self.own_command)
        self.command = self.command[:at] + [launcher(), path] + self.own_command

    def spawn(self):
        super().spawn()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self):
        """Hands the descriptors out, then takes in what the daemon says."""
        while not self.is_over:
            ready, _, _ = select.select([self.launching, self.notify], [], [], 0.02)
            if self.launching in ready:
                connection, _ = self.launching.accept()
                names = list(self.store)
                socket.send_fds(connection, [("=" + ":".join(names)).encode()],
                                [self.store[name] for name in names])
                connection.close()
            if self.notify in ready:
                self._take()

    def _take(self):
        text, fds, _, _ = socket.recv_fds(self.notify, 65536, 8)
        lines = text.decode().split("\n")
        values = dict(line.partition("=")[::2] for line in lines)
        name = values.get("FDNAME")
        if values.get("FDSTOREREMOVE") and name in self.store:
            os.close(self.store.pop(name))
        if values.get("FDSTORE") and fds:
            if name in self.store:
                os.close(self.store[name])
            self.store[name] = fds.pop()
        for fd in fds:  # BARRIER=1 asks for its end
            os.close(fd)
        with self.heard:
            self.said += lines
            self.heard.notify_all()

    def wait_notified(self, line, timeout=START_TIMEOUT):
        end = time.monotonic() + timeout
        with self.heard:
            while line not in self.said:
                self.heard.wait(0.02)
                if self.process.poll() is not None:
                    break
                if time.monotonic() > end:
                    raise AssertionError(f"no {line} in {timeout} s:\n{self.log()}")
            if line in self.said:
                return
        status = self.wait()
        raise AssertionError(f"ended with {status} before {line}:\n{self.log()}")

    def drain_notifications(self):
        """The thread does it all the time."""

    def _ended(self, status):
        self.is_over = True
        self.thread.join()
        # What it had said before its end counts, too.
        while select.select([self.notify], [], [], 0)[0]:
            self._take()
        self.launching.close()
        super()._ended(status)

    def empty_store(self):
        """As systemd does when no process follows."""
        for fd in self.store.values():
            os.close(fd)
        self.store.clear()
