# SPDX-License-Identifier: Apache-2.0
"""Mounts hostwatchfs for a test, and asks it when it has applied everything."""

import atexit
import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time

import daemon
import scratch

CONTROL = "/run/hostwatchfs"
_mounted = []


def binary():
    """HOSTWATCHFS, or the one that was built with the daemon under test."""
    return os.environ.get("HOSTWATCHFS") or os.path.join(
        os.path.dirname(daemon.binary()), "hostwatchfs")


def is_mounted(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return any(line.split()[4] == path for line in file)


def unmount(path):
    """A thread that waits in the kernel for an answer that nobody gives ends with this, too."""
    while is_mounted(path):
        subprocess.run(["umount", "-f", "-l", path], check=False)


def wait_until(condition, what, timeout=10.0):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not in {timeout} s: {what}")
        time.sleep(0.005)


def is_asking(pid):
    """Whether a process waits for a FUSE server's answer."""
    with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
        return re.search("fuse|request_wait", file.read()) is not None


def leave_descriptors(pid, count):
    """Lets a process open so many more, once it has closed what it is to close. Returns its
    limit before."""
    seen = []

    def is_quiet():
        seen.append(sorted(os.listdir(f"/proc/{pid}/fd")))
        return len(seen) > 10 and all(one == seen[-1] for one in seen[-10:])

    wait_until(is_quiet, "nothing more is closed")
    used = {int(number) for number in seen[-1]}
    free = [number for number in range(len(used) + count + 1) if number not in used]
    limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[count], limit[1]))
    return limit


def ask(control, word, timeout=30.0):
    """The answer of the server that listens there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        peer.settimeout(timeout)
        peer.connect(control)
        peer.send(word.encode())
        return peer.recv(1 << 20).decode()


_HOST = """import itertools, os, sys
for number in itertools.count():
    for top in sys.argv[1:]:
        path = os.path.join(top, f"h{os.getpid()}-{number}")
        os.mkdir(path)
        os.rename(path, path + "x")
        os.rmdir(path + "x")
"""
_CLIENT = """import itertools, os, sys
for number in itertools.count():
    for top in sys.argv[2:]:
        try:
            os.path.exists(os.path.join(top, f"{sys.argv[1]}-{number}"))
            os.listdir(top)
        except OSError:
            sys.exit()
"""


@contextlib.contextmanager
def load(source, mount, names):
    """Meanwhile directories of these names change on the host, and are looked at on a mount,
    which is gone afterwards."""
    def start(*arguments):
        return subprocess.Popen([sys.executable, "-c", *arguments])
    there, here = ([os.path.join(top, name) for name in names] for top in (source, mount))
    processes = [start(_HOST, *there)]
    try:
        processes += [start(_CLIENT, str(number), *here) for number in range(6)]
        yield
    finally:
        for process in processes:
            process.kill()
        unmount(mount)
        for process in processes:
            process.wait()


def _unmount_all():
    for mount in _mounted[:]:
        mount.kill()


atexit.register(_unmount_all)


class HostwatchFS:
    """SOURCE served at `path`, in the foreground."""

    limit = None  # of descriptors, before `leave_descriptors`

    def __init__(self, source, socket_path, options="", path=None, prefix=()):
        self.path = path or scratch.new_path("mount")
        os.makedirs(self.path, exist_ok=True)
        self.log_path = self.path + ".log"
        command = [*prefix, binary(), "-f", "--socket", socket_path, source, self.path]
        if options:
            command += ["-o", options]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        _mounted.append(self)

        def is_there():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log()}")
            return is_mounted(self.path) and os.path.exists(self.control)

        try:
            wait_until(is_there, "the mount is there")
        except BaseException:
            self.kill()
            raise

    @property
    def control(self):
        return f"{CONTROL}/{self.process.pid}.sock"

    def ask(self, word, timeout=30.0):
        return ask(self.control, word, timeout)

    def sync(self):
        """Everything that had happened on the host is applied."""
        answer = self.ask("sync")
        if answer != "done":
            raise AssertionError(f"sync: {answer}\n{self.log()}")

    def status(self):
        return json.loads(self.ask("status"))

    def thread(self, name):
        """A thread's id, or None."""
        tasks = f"/proc/{self.process.pid}/task"
        for task in os.listdir(tasks):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"{tasks}/{task}/comm", encoding="utf-8") as file:
                    if file.read() == f"{name}\n":
                        return task
        return None

    def follower(self):
        """The thread that tells the kernel."""
        return self.thread("follower")

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def leave_descriptors(self, count):
        """Lets the server open so many more, once it has closed what it is to close."""
        limit = leave_descriptors(self.process.pid, count)
        self.limit = self.limit or limit

    def relieve(self):
        """Takes back `leave_descriptors`."""
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, self.limit)

    def unmount(self):
        """umount, after which the server ends by itself."""
        if self not in _mounted:
            return
        subprocess.run(["umount", self.path], check=True)
        status = self.process.wait(15)
        _mounted.remove(self)
        if status != 0:
            raise AssertionError(f"exit status {status}: {self.log()}")

    def kill(self):
        if self in _mounted:
            _mounted.remove(self)
        self.process.kill()
        unmount(self.path)
        self.process.wait()
        if os.path.exists(self.control):
            os.unlink(self.control)
