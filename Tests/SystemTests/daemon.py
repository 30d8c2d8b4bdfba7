# SPDX-License-Identifier: Apache-2.0
"""Starts and ends hostwatchd for a test, and the base class of the tests."""

import atexit
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import unittest

import handles
import scratch
from hostwatch import Client, NODES, read_while

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
START_TIMEOUT = 10.0
STOP_TIMEOUT = 15.0
_running = []


def binary():
    """The daemon under test: $HOSTWATCHD, or the newest build of this tree."""
    path = os.environ.get("HOSTWATCHD")
    if path:
        return path
    builds = [os.path.join(REPOSITORY, ".build", build, "hostwatchd")
              for build in ("release", "debug")]
    builds = [path for path in builds if os.path.exists(path)]
    if not builds:
        raise RuntimeError("hostwatchd is not built, and HOSTWATCHD is not set")
    return max(builds, key=os.path.getmtime)


def _end_all():
    # All of them first: what else is done at an end may fail when a test was interrupted.
    for daemon in _running:
        daemon.process.kill()
    for daemon in _running[:]:
        daemon.kill()


atexit.register(_end_all)


def granted(client, root, mode, **fields):
    """The connection after a granted INIT: on a directory's path, on a share (bytes), or on
    what the fields say."""
    try:
        if root is None:
            client.init(mode, **fields)
        elif isinstance(root, bytes):
            client.init(mode, root, **fields)
        else:
            fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
            try:
                client.init(mode, fd=fd, **fields)
            finally:
                os.close(fd)
    except BaseException:
        client.close()
        raise
    return client


def descriptors(pid):
    """What a process holds open: number → target."""
    folder = f"/proc/{pid}/fd"
    found = {}
    for name in os.listdir(folder):
        try:
            found[int(name)] = os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            pass
    return found


class Daemon:
    def __init__(self, shares=None, config=None, arguments=(), socket_path=None,
                 start=True):
        self.directory = scratch.new_path("daemon")
        os.mkdir(self.directory)
        self.socket = socket_path or os.path.join(self.directory, "socket")
        self.log_path = os.path.join(self.directory, "log")
        self.command = [binary(), "--socket", self.socket, "--log-target", "stderr"]
        for name, path in (shares or {}).items():
            self.command += ["--share", f"{name}={path}"]
        self.config = None
        if config is not None:
            self.config = os.path.join(self.directory, "hostwatchd.toml")
            self.write_config(config)
            self.command += ["--config", self.config]
        self.command += arguments
        self.process = None
        self.exit_status = None
        if start:
            self.start()

    def write_config(self, text):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(text)

    def spawn(self):
        """Starts without waiting for readiness."""
        path = os.path.join(self.directory, "notify")
        if os.path.exists(path):
            os.unlink(path)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(path)
        environment = {key: value for key, value in os.environ.items()
                       if key not in ("LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC")}
        environment["NOTIFY_SOCKET"] = path
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True)
        _running.append(self)

    def start(self):
        self.spawn()
        self.wait_notified("READY=1")

    def wait_notified(self, line, timeout=START_TIMEOUT):
        """Waits until the daemon tells its service manager `line`."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([self.notify, pidfd], [], [], timeout)
                if self.notify in ready:
                    if line in self.notify.recv(65536).decode().split("\n"):
                        return
                elif pidfd in ready:
                    status = self.process.wait()
                    _running.remove(self)
                    self._ended(status)
                    raise AssertionError(f"ended with {status} before {line}:\n{self.log()}")
                else:
                    raise AssertionError(f"no {line} in {timeout} s:\n{self.log()}")
        finally:
            os.close(pidfd)

    def drain_notifications(self):
        """Reads what the daemon has told its service manager meanwhile."""
        self.notify.setblocking(False)
        try:
            while True:
                self.notify.recv(65536)
        except BlockingIOError:
            pass
        finally:
            self.notify.setblocking(True)

    def _ended(self, status):
        self.exit_status = status
        self.notify.close()

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=STOP_TIMEOUT):
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not end in {timeout} s:\n{self.log()}") from None
        if self in _running:
            _running.remove(self)
        self._ended(status)
        return status

    def stop(self, expect=0):
        """SIGTERM; the exit status must be `expect`."""
        if self not in _running:
            return
        # What is not read fills up, and a daemon that is ending waits for its
        # manager to have taken what it said.
        self.drain_notifications()
        self.signal(signal.SIGTERM)
        status = self.wait()
        if status != expect:
            raise AssertionError(f"exit status {status}, not {expect}:\n{self.log()}")

    def kill(self):
        if self in _running:
            self.process.kill()
            self.process.wait()
            _running.remove(self)
            self._ended(-signal.SIGKILL)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def connect(self):
        return Client(self.socket)

    def session(self, root=None, mode=NODES, **fields):
        """A connection after a granted INIT, by directory path or share name."""
        return granted(self.connect(), root, mode, **fields)

    def unprivileged(self, uid=65534, gid=65534, groups=(), kind=Client):
        """A connection that a process of another user has made. That process
        waits until the returned client is closed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        child = os.fork()
        if child == 0:
            try:
                # Copies of other clients' sockets would keep those connected.
                os.closerange(3, theirs.fileno())
                os.closerange(theirs.fileno() + 1, 4096)
                os.setgroups(list(groups))
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                sock.connect(self.socket)
                socket.send_fds(theirs, [b"x"], [sock.fileno()])
                sock.close()
                theirs.recv(1)  # until the test is done with it
            finally:
                os._exit(0)
        theirs.close()
        ours.settimeout(10)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if not fds:
            ours.close()
            os.waitpid(child, 0)
            raise PermissionError("the child could not connect")
        client = kind(sock=socket.socket(fileno=fds[0]))
        client.peer_pid = child
        close = client.close

        def close_both():
            close()
            if client.peer_pid:
                ours.send(b"x")  # other children may hold copies of this end
                ours.close()
                os.waitpid(client.peer_pid, 0)
                client.peer_pid = 0

        client.close = close_both
        return client

    def descriptors(self):
        """What the daemon holds open."""
        return descriptors(self.pid)

    def marks(self):
        """(sdev, mask) of each fanotify mark, from fdinfo."""
        found = []
        for number, target in self.descriptors().items():
            if "fanotify" not in target:
                continue
            with open(f"/proc/{self.pid}/fdinfo/{number}", encoding="ascii") as file:
                found += [(int(sdev, 16), int(mask, 16)) for sdev, mask in
                          re.findall(r"^fanotify sdev:(\w+) mflags:\w+ mask:(\w+)",
                                     file.read(), re.MULTILINE)]
        return found


def table(**values):
    """A configuration's lines out of nested dictionaries, as TOML."""
    lines = []
    for section, keys in values.items():
        tables = keys if isinstance(keys, list) else [keys]
        for one in tables:
            lines.append(f"[[{section}]]" if isinstance(keys, list) else f"[{section}]")
            for key, value in one.items():
                if isinstance(value, list):
                    text = "[" + ", ".join(f'"{item}"' for item in value) + "]"
                elif isinstance(value, int):
                    text = str(value)
                else:
                    text = f'"{value}"'
                lines.append(f"{key.replace('_', '-')} = {text}")
    return "\n".join(lines) + "\n"


class DaemonTest(unittest.TestCase):
    """A directory `share` and one `outside` on a scratch filesystem, and a daemon
    that all tests of the class use."""

    kind = None
    daemon = None
    config = None

    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("needs root")
        cls.mount = scratch.shared(cls.kind or "ext4")
        cls.daemon = Daemon(config=cls.config)

    @classmethod
    def tearDownClass(cls):
        if cls.daemon:
            cls.daemon.stop()

    def setUp(self):
        self.base = os.path.join(self.mount.path, os.path.basename(scratch.new_path("t")))
        self.share = os.path.join(self.base, "share")
        self.outside = os.path.join(self.base, "outside")
        os.makedirs(self.share)
        os.mkdir(self.outside)
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.assertIsNone(self.daemon and self.daemon.process.poll(),
                          "the daemon is gone")

    def path(self, *names):
        return os.path.join(self.share, *names)

    def session(self, mode=NODES, root=None, **fields):
        client = self.daemon.session(root or self.share, mode, **fields)
        self.addCleanup(client.close)
        return client

    def run_reading(self, command, *clients, **options):
        """Runs a command while the clients' sockets are read."""
        options.setdefault("stdout", subprocess.DEVNULL)
        with open(os.path.join(self.daemon.directory, "output"), "w+b") as output:
            process = subprocess.Popen(command, stderr=output, **options)
            status = read_while(process, *clients)
            output.seek(0)
            self.assertEqual(status, 0, f"{command}: {output.read()!r}")


def write(path, data=b"x", mode="wb"):
    with open(path, mode) as file:
        file.write(data)


def touch(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def identity(path):
    return handles.identity_of(path)
