# SPDX-License-Identifier: Apache-2.0
"""Does for hostwatchd what systemd does: holds its socket, keeps descriptors for it, and
passes both to the next process, so that a daemon can be restarted without loss.

As a program it is what becomes the daemon: soak_manager.py COUNT DESCRIPTOR... COMMAND...
"""

import ctypes
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

FIRST = 3  # where passed descriptors begin
TIMEOUT = 30.0


class Manager:
    def __init__(self, directory, command, environment):
        os.mkdir(directory)
        self.directory = directory
        self.command = command
        self.environment = environment
        self.socket = os.path.join(directory, "socket")
        self.log_path = os.path.join(directory, "log")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.socket)
        os.chmod(self.socket, 0o666)
        self.listener.listen(4096)
        self.notify_path = os.path.join(directory, "notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(self.notify_path)
        self.store = {}
        self.handed = False
        self.process = None
        self.exit_status = None
        self.readiness = 0
        self.changed = threading.Condition()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._take_messages, daemon=True)
        self.thread.start()

    # What the daemon tells

    def _take_messages(self):
        while not self.ended.is_set():
            if not select.select([self.notify], [], [], 0.2)[0]:
                continue
            text, fds, _, _ = socket.recv_fds(self.notify, 65536, 253)
            with self.changed:
                self._take(text.decode().split("\n"), fds)
                self.changed.notify_all()

    def _take(self, lines, fds):
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        name = values.get("FDNAME", "")
        if "FDSTOREREMOVE" in values:
            for fd in self.store.pop(name, []):
                os.close(fd)
        elif "FDSTORE" in values:
            self.store.setdefault(name, []).extend(fds)
            self.handed = self.handed or name == "hostwatchd-handover"
            fds = []
        if values.get("READY") == "1":
            self.readiness += 1
        for fd in fds:  # BARRIER=1: the close is the answer
            os.close(fd)

    def wait_ready(self, before, what):
        end = time.monotonic() + TIMEOUT
        with self.changed:
            while self.readiness == before:
                if self.process.poll() is not None:
                    raise AssertionError(f"{what}: the daemon ended with {self.process.returncode}")
                if time.monotonic() > end:
                    raise AssertionError(f"{what}: not ready in {TIMEOUT} s")
                self.changed.wait(0.2)

    # Its processes

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def start(self):
        with self.changed:
            before = self.readiness
            self.handed = False
            names, fds = ["hostwatchd.socket"], [self.listener.fileno()]
            for name, held in self.store.items():
                names += [name] * len(held)
                fds += held
        environment = self.environment | {
            "NOTIFY_SOCKET": self.notify_path, "LISTEN_FDNAMES": ":".join(names)}
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.abspath(__file__), str(len(fds)),
                 *map(str, fds), *self.command],
                env=environment, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)
        self.wait_ready(before, "start")

    def restart(self):
        """The next process goes on with what this one leaves."""
        self._end(signal.SIGTERM, 0)
        if not self.handed:
            raise AssertionError("the daemon handed nothing over")
        self.start()

    def kill(self):
        self._end(signal.SIGKILL, -signal.SIGKILL)

    def reload(self):
        before = self.readiness
        self.signal(signal.SIGHUP)
        self.wait_ready(before, "reload")

    def _end(self, number, expected):
        self.signal(number)
        try:
            status = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"signal {number}: not ended in {TIMEOUT} s") from None
        if status != expected:
            raise AssertionError(f"signal {number}: the daemon ended with {status}")

    def close(self):
        """Ends the daemon; what it kept goes."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        self.ended.set()
        self.thread.join()
        for fds in self.store.values():
            for fd in fds:
                os.close(fd)
        self.store = {}
        self.notify.close()
        self.listener.close()

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()


def become():
    """Puts the descriptors where the daemon looks for them, and becomes it."""
    count = int(sys.argv[1])
    fds = [int(text) for text in sys.argv[2:2 + count]]
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST + 2 * count + 100) for fd in fds]
    for place, fd in enumerate(aside):
        os.dup2(fd, FIRST + place)
    for fd in fds:
        if fd >= FIRST + count:
            os.close(fd)
    prctl_set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(prctl_set_parent_death_signal, signal.SIGKILL)
    # By the second the daemon knows that it is the manager's own process.
    os.environ["LISTEN_FDS"] = str(count)
    os.environ["LISTEN_PID"] = os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
    command = sys.argv[2 + count:]
    os.execv(command[0], command)


if __name__ == "__main__":
    become()
