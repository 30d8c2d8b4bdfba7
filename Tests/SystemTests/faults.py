# SPDX-License-Identifier: Apache-2.0
"""System calls of a daemon that fail one after the other.

strace(1) runs the daemon once and writes down each call with the functions that led
to it: a *site* is a call with its way there. Then, for each site and errno, the same
scenario runs with the first (or another) call of that site failing.
"""

import errno
import os
import re
import shutil
import subprocess
import time
import unittest

import scratch
from daemon import Daemon
from histories import Server
from hostwatch import NODES, TREE, Client, HungUp, Lost, Refused
from model import TreeModel

REALTIME_COARSE = 5
PATIENCE = 8.0  # seconds for an answer
SINCE_MARGIN = 10_000_000  # nanoseconds, as the protocol has it

# What the kernel may answer, by call. The first is the one that a short run takes.
ERRNOS = {
    "accept4": ("EMFILE", "ENOMEM", "EINTR", "ECONNABORTED"),
    "bind": ("ENOMEM", "ENOSPC", "EIO"),
    "capget": ("EPERM",),
    "capset": ("EPERM",),
    "chmod": ("EIO", "EPERM"),
    "clone": ("EAGAIN", "ENOMEM"),
    "connect": ("ENOMEM", "EINTR"),
    "epoll_create1": ("EMFILE", "ENOMEM"),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "epoll_wait": ("EINTR",),
    "fanotify_init": ("EMFILE", "ENOMEM"),
    "fanotify_mark": ("ENOMEM", "ENOSPC"),
    "fcntl": ("EMFILE", "ENOMEM"),
    "flock": ("ENOLCK", "EINTR"),
    "fstatfs": ("EIO", "ENOMEM"),
    "ftruncate": ("ENOSPC", "EIO"),
    "getrandom": ("EINTR",),
    "getsockname": ("ENOBUFS",),
    "getsockopt": ("ENOMEM",),
    "ioctl": ("ENOMEM",),
    "listen": ("ENOMEM",),
    "lseek": ("EIO",),
    "madvise": ("ENOMEM",),
    "memfd_create": ("ENOMEM", "EMFILE"),
    "mkdir": ("ENOSPC", "EIO"),
    "mmap": ("ENOMEM",),
    "name_to_handle_at": ("ENOMEM", "EIO"),
    "newfstatat": ("ENOMEM", "EIO"),
    "open_by_handle_at": ("EMFILE", "ENOMEM", "EIO"),
    "open_tree": ("EMFILE", "ENOMEM"),
    "openat": ("EMFILE", "ENOMEM", "EIO", "EINTR"),
    "pidfd_open": ("EMFILE", "ENOMEM"),
    "prctl": ("EPERM",),
    "poll": ("EINTR", "ENOMEM"),
    "pread64": ("EIO", "EINTR"),
    "prlimit64": ("EPERM",),
    "pwrite64": ("ENOSPC", "EIO"),
    "read": ("EIO", "EINTR", "ENOMEM"),
    "readlink": ("ENOMEM", "EIO"),
    "recvmsg": ("ENOMEM", "EINTR"),
    "sendmmsg": ("ENOMEM", "EINTR"),
    "sendmsg": ("ENOMEM", "EINTR", "ECONNREFUSED"),
    "sendto": ("ECONNREFUSED", "ENOMEM", "EINTR"),
    "setsockopt": ("ENOMEM",),
    "shutdown": ("ENOTCONN",),
    "signalfd4": ("EMFILE", "ENOMEM"),
    "socket": ("EMFILE", "ENOMEM"),
    "socketpair": ("EMFILE", "ENOMEM"),
    "statx": ("EIO", "ENOMEM"),
    "timerfd_create": ("EMFILE", "ENOMEM"),
    "timerfd_settime": ("ENOMEM",),
    "unlink": ("EIO",),
    "wait4": ("ECHILD",),
    "write": ("ENOSPC", "EIO", "EINTR"),
}

# What has no failure that the daemon could meet: the kernel has none to give, or what it says
# changes nothing. Every other call that the daemon makes has to be in ERRNOS.
CANNOT_FAIL = ("brk", "close", "exit_group", "futex", "getegid", "geteuid", "getgid", "getpid", "getppid",
               "getuid", "munmap", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "umask")

# What malloc(3) cannot get ends a Swift program by a signal.
MEMORY = ("mmap", "brk", "mremap")


class Violation(AssertionError):
    """Somebody believes something untrue, or the daemon ended without saying why."""


class Site:
    """A call, the functions that led to it, and when it was made: the first call of its
    kind has number 1."""

    def __init__(self, call, way, number, shown):
        self.call, self.way, self.shown = call, way, shown
        self.numbers = [number]
        self.key = None

    def __str__(self):
        return f"{self.call} of {name_of(self.way)}"


def words_of(symbol):
    """The names in a mangled Swift symbol: module, type, function."""
    words, at = [], 0
    while at < len(symbol):
        length = re.match(r"[1-9]\d*", symbol[at:])
        if not length:
            at += 1
            continue
        at += length.end()
        words.append(symbol[at:at + int(length[0])])
        at += int(length[0])
    return [word for word in words if re.fullmatch(r"\w+", word)]


def name_of(way):
    """The innermost functions of the daemon's own."""
    own = [symbol.partition("+")[0] for symbol in way if symbol]
    readable = [".".join(words_of(symbol)[1:3]) if symbol.startswith("$s") else symbol
                for symbol in own]
    return " < ".join([name for name in readable if name][:5]) or "the daemon"


_LINE = re.compile(r"(\w+)\((.*)")
_FRAME = re.compile(r" > (.*?)\((.*?)\) \[(0x[0-9a-f]+)\]")


def read_sites(path, program):
    """The daemon's own calls in a trace with stacks, as sites in the order of their
    first calls. What the loader does before the program starts is none."""
    counts, sites, found = {}, {}, []
    pending = None

    def end():
        if pending is None:
            return
        call, number, shown, frames = pending
        own = tuple(symbol for where, symbol, _ in frames if where.endswith(program))
        if not own:
            return
        key = call, tuple((os.path.basename(where), at) for where, _, at in frames)
        if key in sites:
            sites[key].numbers.append(number)
        else:
            sites[key] = Site(call, own, number, shown)
            sites[key].key = key
            found.append(sites[key])

    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            frame = _FRAME.match(line)
            if frame:
                if pending:
                    pending[3].append(frame.groups())
                continue
            started = _LINE.match(line)
            if started:
                end()
                call = started[1]
                counts[call] = counts.get(call, 0) + 1
                pending = (call, counts[call], line.strip()[:160], [])
    end()
    return found


class Fault:
    def __init__(self, site, number, code):
        self.site, self.number, self.code = site, number, code

    def __str__(self):
        return f"{self.code} at call {self.number} of {self.site}"

    @property
    def errno(self):
        return getattr(errno, self.code)


def require():
    if os.geteuid() != 0:
        raise unittest.SkipTest("needs root")
    if not shutil.which("strace"):
        raise unittest.SkipTest("strace is missing")
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], stderr=subprocess.PIPE)
    if done.returncode:
        raise unittest.SkipTest(f"strace cannot trace here: {done.stderr.decode()}")


class TracedDaemon(Daemon):
    """A daemon under strace: with `fault` one call of it fails, without it is written
    down what it calls."""

    def __init__(self, fault=None, stacks=False, calls=(), **fields):
        self.fault, self.stacks, self.calls = fault, stacks, calls
        super().__init__(start=False, **fields)
        self.trace = os.path.join(self.directory, "trace")
        # -D: the process that is started is the daemon, strace its grandchild.
        options = ["strace", "-D", "-q", "-o", self.trace]
        if fault:
            call = fault.site.call
            options += ["-e", f"trace={call}",
                        "-e", f"inject={call}:error={fault.code}:when={fault.number}"]
        else:
            options += ["-e", f"trace={','.join(calls)}"]
        if stacks:
            options.append("-k")
        self.own_command = self.command
        self.command = options + self.command

    @property
    def injected(self):
        """The call that failed, as strace shows it; "" if it was not reached."""
        try:
            with open(self.trace, encoding="utf-8", errors="replace") as file:
                return next((line for line in file if "(INJECTED)" in line), "")
        except FileNotFoundError:
            return ""


class Connection(Client):
    """A client with less patience, for which a refused registration that says why is no
    mistake: it is tried again."""

    world = None

    def receive(self, timeout=PATIENCE):
        try:
            super().receive(min(timeout, PATIENCE))
        except TimeoutError:
            raise Violation(f"no answer in {PATIENCE} s") from None

    def register(self, entries, fds):
        statuses = super().register(entries, fds)
        failed = [at for at, status in enumerate(statuses) if status]
        for at in failed:
            self.world.accept_error(-statuses[at], "REGISTER")
        if failed:
            again = super().register([entries[at] for at in failed], [fds[at] for at in failed])
            for at, status in zip(failed, again):
                statuses[at] = status
        return statuses


class Party:
    """A session, its model, and what it does when it is told that it missed something."""

    def __init__(self, world, mode, **fields):
        self.world, self.mode, self.fields = world, mode, fields
        self.model = None
        self.since = 0
        self.told = 0
        self.client = None
        self.join()

    def join(self):
        """Connects, or connects again, and makes or repairs the model."""
        for _ in range(6):
            try:
                self._join()
                return
            except (HungUp, ConnectionError, BrokenPipeError, FileNotFoundError) as error:
                self.told += 1
                self.world.ended_or(error)
            except Refused as refused:
                self.told += 1
                self.world.accept_error(refused.errno, f"{refused}")
            self.leave()
        raise Violation(f"no session after six attempts:\n{self.world.log()}")

    def _join(self):
        self.client = Connection(self.world.daemon.socket)
        self.client.world = self.world
        share = self.world.path("share")
        if "share" in self.fields or self.fields.get("by_name"):
            self.client.init(self.mode, **self.fields)
        else:
            fd = os.open(share, os.O_PATH | os.O_DIRECTORY)
            try:
                self.client.init(self.mode, fd=fd, **self.fields)
            finally:
                os.close(fd)
        if self.mode == TREE:
            self.model = TreeModel(self.client, share)
        elif self.model is None or not self.since:
            if self.model:
                self.model.close()
            self.model = Server(self.client, share)
        else:
            self.model.reconnect(self.client, self.since)

    def leave(self):
        if self.client:
            self.client.close()

    def check(self):
        """At SYNC the model equals the filesystem, or the client has been told."""
        for _ in range(6):
            try:
                since = time.clock_gettime_ns(REALTIME_COARSE) - SINCE_MARGIN
                wrong = self.model.check()
                self.told += sum(isinstance(one, Lost) for one in self.model.history)
                if wrong:
                    raise Violation(f"{'TREE' if self.mode == TREE else 'NODES'}: {wrong}")
                self.since = since
                return
            except (HungUp, ConnectionError, BrokenPipeError) as error:
                self.told += 1
                self.world.ended_or(error)
            except Refused as refused:
                self.told += 1
                self.world.accept_error(refused.errno, f"{refused}")
            self.leave()
            self.join()
        raise Violation(f"it never is in step:\n{self.world.log()}")

    def expect_end(self):
        """The daemon ends: that is told, by DETACHED or the connection's end."""
        try:
            self.client.wait_hang_up()
        except ConnectionError:
            pass

    def close(self):
        self.leave()
        if self.model and self.mode == NODES:
            self.model.close()


class World:
    """One run of a scenario: a base directory, a daemon, its clients."""

    def __init__(self, mount, fault=None, start=None):
        self.base = os.path.join(mount.path, os.path.basename(scratch.new_path("w")))
        for name in ("share", "outside"):
            os.makedirs(os.path.join(self.base, name))
        self.fault = fault
        self.daemons = []
        self.traced = None  # the one that is looked at
        self.parties = []
        self.logs = []
        self.is_told = False
        self.make = start

    def path(self, *names):
        return os.path.join(self.base, *names)

    @property
    def daemon(self):
        """The one that runs."""
        return self.daemons[-1] if self.daemons else None

    @daemon.setter
    def daemon(self, daemon):
        self.daemons.append(daemon)

    def log(self):
        return "".join(self.logs) + (self.daemon.log() if self.daemon else "")

    def join(self, mode, **fields):
        self.parties.append(Party(self, mode, **fields))
        return self.parties[-1]

    def check(self):
        for party in self.parties:
            party.check()

    # What the daemon may do about a fault

    def accept_error(self, code, what):
        """An error that a client was told has to be the fault's own."""
        self.is_told = True
        if self.fault is None:
            raise Violation(f"without a fault: {what}")
        if code != self.fault.errno:
            raise Violation(f"{what}: {errno.errorcode.get(code)}, which is not what failed")

    def ended_or(self, error):
        """After a connection's end: the daemon goes on, or has ended with a clear error;
        then another one is started in its place."""
        if self.fault is None:
            raise Violation(f"without a fault: {error!r}\n{self.log()}")
        self.is_told = True
        try:
            # It ends at once or not at all.
            self.daemon.process.wait(0.5)
        except subprocess.TimeoutExpired:
            return
        status = self.daemon.wait()
        self.judge_end(status)
        self.logs.append(self.daemon.log())
        self.replace()

    def replace(self):
        """Another daemon, to which nothing happens."""
        old = self.daemon
        self.daemon = self.make(self, None, old)
        self.daemon.start()

    def judge_end(self, status):
        judge_end(status, self.daemon.log(), self.fault)

    def close(self):
        for party in self.parties:
            party.close()
        for daemon in self.daemons:
            daemon.kill()
        shutil.rmtree(self.base, ignore_errors=True)


CLEAR = (69, 71, 77, 78)


def judge_end(status, log, fault):
    """A daemon ended by itself: a code of sysexits.h, and a message with the failure."""
    if status < 0:
        if fault and fault.site.call in MEMORY:
            return
        raise Violation(f"ended by signal {-status}:\n{log[-3000:]}")
    if status not in CLEAR:
        raise Violation(f"ended with {status}:\n{log[-3000:]}")
    errors = [line for line in log.splitlines() if line[:3] in ("<0>", "<1>", "<2>", "<3>")]
    texts = (fault.code, os.strerror(fault.errno)) if fault else ()
    if not any(text in line for line in errors for text in texts):
        raise Violation(f"ended with {status} and no message that names {fault}:\n{log[-3000:]}")
