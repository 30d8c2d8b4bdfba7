# SPDX-License-Identifier: Apache-2.0
"""System calls of a daemon that fail one after the other.

strace(1) runs the daemon once and writes down each call with the functions that led
to it: a *site* is a call with its way there. Then, for each site and errno, the same
scenario runs with the first (or another) call of that site failing. strace counts calls
and knows no sites, so it writes the stacks down again: a run in which another site was
met is repeated with the number that would have been right.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import time
import unittest

import scratch
from daemon import Daemon, binary
from histories import Server
from hostwatch import NODES, TREE, Client, Detached, HungUp, Lost, Refused
from model import TreeModel

REALTIME_COARSE = 5
PATIENCE = 8.0  # seconds for an answer
SINCE_MARGIN = 10_000_000  # nanoseconds, as the protocol has it

# What the kernel may answer, by call. The first is the one that a short run takes.
ERRNOS = {
    "accept4": ("EMFILE", "ENFILE", "ENOMEM", "EINTR", "ECONNABORTED"),
    "bind": ("ENOMEM", "ENOSPC", "EIO"),
    "capget": ("EPERM",),
    "capset": ("EPERM",),
    "chmod": ("EIO", "EPERM"),
    "clone": ("EAGAIN", "ENOMEM"),
    "connect": ("ENOMEM", "EINTR", "ECONNREFUSED", "ENOENT", "EAGAIN"),
    "epoll_create1": ("EMFILE", "ENFILE", "ENOMEM"),
    "epoll_ctl": ("ENOMEM", "ENOSPC"),
    "epoll_wait": ("EINTR",),
    "fanotify_init": ("EMFILE", "ENFILE", "ENOMEM"),
    "fanotify_mark": ("ENOMEM", "ENOSPC", "EIO"),
    "fcntl": ("EMFILE", "ENOMEM"),
    "flock": ("ENOLCK", "EINTR"),
    "fstatfs": ("EIO", "ENOMEM"),
    "ftruncate": ("ENOSPC", "EIO"),
    "getrandom": ("EINTR",),
    "getsockname": ("ENOBUFS",),
    "getsockopt": ("ENOMEM", "EMFILE"),
    "ioctl": ("ENOMEM",),
    "listen": ("ENOMEM",),
    "lseek": ("EIO",),
    "madvise": ("ENOMEM",),
    "memfd_create": ("ENOMEM", "EMFILE", "ENFILE"),
    "mkdir": ("ENOSPC", "EIO"),
    "mmap": ("ENOMEM",),
    "name_to_handle_at": ("ENOMEM", "EIO"),
    "newfstatat": ("ENOMEM", "EIO"),
    "open_by_handle_at": ("EMFILE", "ENFILE", "ENOMEM", "EIO", "ESTALE"),
    "open_tree": ("EMFILE", "ENFILE", "ENOMEM"),
    "openat": ("EMFILE", "ENFILE", "ENOMEM", "EIO", "EINTR"),
    "openat2": ("EMFILE", "ENFILE", "ENOMEM", "EIO", "EAGAIN"),
    "pidfd_open": ("EMFILE", "ENFILE", "ENOMEM"),
    "pipe2": ("EMFILE", "ENFILE"),
    "ppoll": ("EINTR", "ENOMEM"),
    "prctl": ("EPERM",),
    "poll": ("EINTR", "ENOMEM"),
    "pread64": ("EIO", "EINTR"),
    "prlimit64": ("EPERM",),
    "pwrite64": ("ENOSPC", "EIO"),
    "read": ("EIO", "EINTR", "ENOMEM"),
    "readlink": ("ENOMEM", "EIO"),
    "recvmsg": ("ENOMEM", "EINTR"),
    "sendmmsg": ("ENOMEM", "EINTR"),
    "sendmsg": ("ENOMEM", "EINTR", "ECONNREFUSED", "EAGAIN", "ETOOMANYREFS"),
    "sendto": ("ECONNREFUSED", "ENOMEM", "EINTR"),
    "setsockopt": ("ENOMEM",),
    "shutdown": ("ENOTCONN",),
    "signalfd4": ("EMFILE", "ENFILE", "ENOMEM"),
    "socket": ("EMFILE", "ENFILE", "ENOMEM"),
    "socketpair": ("EMFILE", "ENFILE", "ENOMEM"),
    "statfs": ("EIO", "ENOMEM"),
    "statx": ("EIO", "ENOMEM"),
    "timerfd_create": ("EMFILE", "ENFILE", "ENOMEM"),
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


# What open_by_handle_at(2) makes of every error of a filesystem but ENOMEM, an inode that
# cannot be read from its disk included. It is also what it says of an object that is gone, so
# that the daemon takes a living one for gone, and a session may believe it.
TAKEN_FOR_GONE = "ESTALE"

# How the daemon takes leave of a client, or is not there.
GONE = (HungUp, ConnectionError, FileNotFoundError, PermissionError)


# Whether a fault has met its call.
MISSED, NEAR, EXACT = range(3)


class Violation(AssertionError):
    """Somebody believes something untrue, or the daemon ended without saying why."""


class Silence(Violation):
    """No answer in time."""


class Parted(HungUp):
    """DETACHED."""


class Untrue(Exception):
    """What a session believes since the kernel said that something living is gone."""


class NotRegistered(Exception):
    """A registration failed twice."""

    def __init__(self, code):
        super().__init__(f"REGISTER: {errno.errorcode.get(code)}")
        self.errno = code


class Site:
    """A call, the functions that led to it, and when it was made: the first call of its
    kind has number 1."""

    def __init__(self, call, way, number, shown):
        self.call, self.way, self.shown = call, way, shown
        self.numbers = [number]
        self.key = None

    @property
    def errnos(self):
        """What the kernel may answer here."""
        makes = ("ENOSPC",) if self.call == "openat" and "O_CREAT" in self.shown else ()
        return ERRNOS[self.call] + makes

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


class Traced:
    """A call as strace has written it down: the `number`-th of its kind."""

    def __init__(self, call, number, line):
        self.call, self.number, self.line = call, number, line
        self.frames = []

    @property
    def is_injected(self):
        return "(INJECTED)" in self.line

    @property
    def key(self):
        return self.call, tuple((os.path.basename(where), at) for where, _, at in self.frames)

    def way(self, program):
        """The daemon's own functions; none in what the loader does before it starts."""
        return tuple(symbol for where, symbol, _ in self.frames if where.endswith(program))


def read_calls(path):
    counts, found = {}, []
    is_call = False
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            frame = _FRAME.match(line)
            if frame:
                if is_call:
                    found[-1].frames.append(frame.groups())
                continue
            started = _LINE.match(line)
            is_call = bool(started)  # or a signal, or the end
            if is_call:
                call = started[1]
                counts[call] = counts.get(call, 0) + 1
                found.append(Traced(call, counts[call], line.strip()))
    return found


def read_sites(path, program):
    """The daemon's own calls in a trace with stacks, as sites in the order of their
    first calls."""
    sites = {}
    for one in read_calls(path):
        way = one.way(program)
        if not way:
            continue
        if one.key in sites:
            sites[one.key].numbers.append(one.number)
        else:
            sites[one.key] = site = Site(one.call, way, one.number, one.line[:160])
            site.key = one.key
    return list(sites.values())


class Fault:
    """A call that fails: the `rank`-th of its site, which is the `number`-th of its kind.
    If the fault `lasts`, so do all calls of this kind that follow, wherever they are made."""

    def __init__(self, site, rank, code, lasts=False):
        self.site, self.rank, self.code, self.lasts = site, rank, code, lasts
        self.number = site.numbers[rank]

    def __str__(self):
        return f"{self.code} at call {self.number}{' and on' * self.lasts} of {self.site}"

    @property
    def errno(self):
        return getattr(errno, self.code)

    def hits(self, failed, program):
        """EXACT if the call that failed is the one that was meant, NEAR if it was made at the
        same place that was come to in another way."""
        if failed is None or failed.call != self.site.call:
            return MISSED
        if failed.key == self.site.key:
            return EXACT
        place, there = ([at for where, at in key[1] if where == program][:3]
                        for key in (self.site.key, failed.key))
        return NEAR if place == there else MISSED

    def aim(self, calls, places):
        """Makes the number what it would have had to be; `places` are all sites of the run
        that was recorded, by their keys."""
        failed = next((one for one in calls if one.is_injected), None)
        numbers = [one.number for one in calls if one.key == self.site.key]
        if numbers:
            self.number = numbers[min(self.rank, len(numbers) - 1)]
        elif failed and failed.key in places:
            # The calls before it are more or fewer than they were.
            there = min(places[failed.key].numbers, key=lambda at: abs(at - self.number))
            self.number = max(1, self.number + self.number - there)


def require():
    if os.geteuid() != 0:
        raise unittest.SkipTest("needs root")
    for program in ("strace", "strip"):
        if not shutil.which(program):
            raise unittest.SkipTest(f"{program} is missing")
    done = subprocess.run(["strace", "-o", "/dev/null", "true"], stderr=subprocess.PIPE)
    if done.returncode:
        raise unittest.SkipTest(f"strace cannot trace here: {done.stderr.decode()}")


_stripped = {}


def stripped(program):
    """A copy without names, of which strace writes stacks down several times as fast. The
    addresses in it are the same."""
    if program not in _stripped:
        folder = scratch.new_path("stripped")
        os.mkdir(folder)
        _stripped[program] = os.path.join(folder, os.path.basename(program))
        scratch.run("strip", "-s", "-o", _stripped[program], program)
    return _stripped[program]


class TracedDaemon(Daemon):
    """A daemon under strace: with `fault` a call of it fails, without it is written
    down what it calls."""

    def __init__(self, fault=None, stacks=False, calls="all", **fields):
        self.fault, self.stacks = fault, stacks
        super().__init__(start=False, **fields)
        self.trace = os.path.join(self.directory, "trace")
        # -D: the process that is started is the daemon, strace its grandchild. It ends with
        # the test, however that ends, and strace with it.
        options = ["setpriv", "--pdeathsig", "KILL", "strace", "-D", "-q", "-o", self.trace]
        if fault:
            call = fault.site.call
            options += ["-e", f"trace={call}", "-e",
                        f"inject={call}:error={fault.code}:when={fault.number}{'+' * fault.lasts}"]
        else:
            options += ["-e", f"trace={calls}"]
        if stacks:
            options.append("-k")
        if fault and stacks:
            self.command[0] = stripped(self.command[0])
        self.own_command = self.command
        self.command = options + self.command

    @property
    def injected(self):
        """The calls that failed, as strace shows them."""
        try:
            with open(self.trace, encoding="utf-8", errors="replace") as file:
                return [line for line in file if "(INJECTED)" in line]
        except FileNotFoundError:
            return []

    def calls_made(self):
        return read_calls(self.trace) if os.path.exists(self.trace) else []

    def hit(self):
        """Whether the call that was meant has failed."""
        failed = next((one for one in self.calls_made() if one.is_injected), None)
        return self.fault.hits(failed, os.path.basename(binary()))

    def _status(self, name):
        """A line of /proc/PID/status; "" when the daemon has ended."""
        try:
            with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
                return next((line.split()[1] for line in file if line.startswith(f"{name}:")), "")
        except (FileNotFoundError, ProcessLookupError):
            return ""

    def halt(self):
        """Stops the daemon until SIGCONT, between two calls; false when it has ended."""
        stops = self._stops()
        self.signal(signal.SIGSTOP)
        while (state := self._status("State")) not in ("", "Z", "X"):
            # A traced process is stopped at each call, too.
            if state == "T" or self._stops() > stops:
                return True
            time.sleep(0.001)
        return False

    def _stops(self):
        with open(self.trace, "rb") as file:
            return file.read().count(b"--- stopped by SIGSTOP")

    def let_go(self):
        """strace goes away, and with it the failure."""
        if not self.halt():
            return
        tracer = int(self._status("TracerPid") or 0)
        if tracer:
            os.kill(tracer, signal.SIGKILL)
            while self._status("TracerPid") not in ("", "0"):
                time.sleep(0.001)
        self.signal(signal.SIGCONT)

    def seconds_used(self):
        """Of the processor; None when the daemon has ended."""
        try:
            with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
                fields = file.read().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Connection(Client):
    """A client with less patience, for which a refused registration that says why is no
    mistake: it is tried again. What came late is an answer to nothing."""

    world = None

    def receive(self, timeout=PATIENCE):
        patience = min(timeout, self.world.patience)
        try:
            super().receive(patience)
        except TimeoutError:
            raise Silence(f"no answer in {patience} s") from None
        if self.inbox and isinstance(self.inbox[-1], Detached):
            raise Parted(f"{self.inbox.pop()}")

    def wait_reply(self, unique, timeout=PATIENCE):
        while True:
            while self.replies and self.replies[0].unique < unique:
                self.replies.pop(0)
            if self.replies:
                return super().wait_reply(unique, timeout)
            self.receive(timeout)

    def register(self, entries, fds):
        statuses = super().register(entries, fds)
        failed = [at for at, status in enumerate(statuses) if status]
        for at in failed:
            self.world.accept_error(-statuses[at], "REGISTER")
        if failed:
            again = super().register([entries[at] for at in failed], [fds[at] for at in failed])
            for at, status in zip(failed, again):
                statuses[at] = status
                if status and self.world.is_failing:
                    raise NotRegistered(-status)
        return statuses


class Party:
    """A session on a directory of the world's, its model, and what it does when it is told
    that it missed something. It may be of another user, `peer`."""

    def __init__(self, world, mode, place="share", peer=None, **fields):
        self.world, self.mode, self.peer, self.fields = world, mode, peer, fields
        self.place = world.path(place)
        self.model = None
        self.since = 0
        self.told = 0
        self.parted = 0
        self.client = None

    def _is_over(self, error):
        """It was told, in one way or another."""
        self.told += 1
        if isinstance(error, BrokenPipeError) and self.client:
            error = self._last_word() or error
        if isinstance(error, Parted):
            self.parted += 1
        if isinstance(error, (NotRegistered, Untrue)):
            self._forget()
        if isinstance(error, GONE):
            self.world.ended_or(error)
        elif isinstance(error, Untrue):
            self.world.is_untrue = True
        else:
            self.world.accept_error(error.errno, f"{error}")
        self.leave()

    def _last_word(self):
        """What the daemon said before it closed the connection."""
        try:
            while True:
                self.client.receive()
        except (HungUp, ConnectionError) as error:
            return error

    def _forget(self):
        """What was being applied is not known."""
        if self.model and self.mode == NODES:
            self.model.close()
        self.model = None
        self.since = 0

    def join(self):
        """Connects, or connects again, and makes or repairs the model."""
        for _ in range(6):
            try:
                self._join()
                return
            except (*GONE, Refused, NotRegistered) as error:
                self._is_over(error)
        raise Violation(f"no session after six attempts:\n{self.world.log()}")

    def _join(self):
        self.client = self.world.connect(self.peer)
        if "share" in self.fields:
            self.client.init(self.mode, **self.fields)
        else:
            fd = os.open(self.place, os.O_PATH | os.O_DIRECTORY)
            try:
                self.client.init(self.mode, fd=fd, **self.fields)
            finally:
                os.close(fd)
        if self.mode == TREE:
            self.model = TreeModel(self.client, self.place)
        elif self.model is None or not self.since:
            self._forget()
            self.model = Server(self.client, self.place)
            self.model.is_asked_in_vain = True
        else:
            self.model.reconnect(self.client, self.since)

    def leave(self):
        if self.client:
            self.client.close()
        self.client = None

    def check(self):
        """At SYNC the model equals the filesystem, or the client has been told."""
        for _ in range(6):
            if self.client is None:
                self.join()
            try:
                self._check()
                return
            except (*GONE, Refused, NotRegistered, Untrue) as error:
                self._is_over(error)
        raise Violation(f"it never is in step:\n{self.world.log()}")

    def _check(self):
        since = time.clock_gettime_ns(REALTIME_COARSE) - SINCE_MARGIN
        fault = self.world.fault
        may_be_untrue = fault and fault.code == TAKEN_FOR_GONE and not self.world.is_untrue
        try:
            wrong = self.model.check()
        except AssertionError as error:
            if isinstance(error, Violation) or not may_be_untrue:
                raise
            wrong = f"{error}"
        self.told += sum(isinstance(one, Lost) for one in self.model.history)
        if wrong and may_be_untrue:
            raise Untrue(wrong)
        if wrong:
            raise Violation(f"{'TREE' if self.mode == TREE else 'NODES'}: {wrong}")
        self.since = since

    def try_check(self):
        """While calls fail: it may get no answer, and no session."""
        try:
            if self.client is None:
                self._join()
            self._check()
        except Silence:
            # The answer may come yet, but for INIT's and what the model was asking for.
            if self.model is None or self.model.client is not self.client:
                self.leave()
        except (*GONE, Refused, NotRegistered) as error:
            self._is_over(error)

    def follow(self, name):
        """Until the session is about what is at its place now, after it was detached: it
        then is told of a file that is made there."""
        end = time.monotonic() + PATIENCE
        for turn in itertools.count():
            probe = f"{name}-{turn}"
            try:
                if self.client is None:
                    self._join()
                os.close(os.open(os.path.join(self.place, probe), os.O_CREAT | os.O_WRONLY))
                self.model.sync()
                if probe.encode() in self.model.flat():
                    return
            except (*GONE, Refused, NotRegistered) as error:
                self._is_over(error)
            if time.monotonic() > end:
                raise Violation(f"{self.place}: it is not told of {probe}\n{self.world.log()}")
            time.sleep(0.01)

    def expect_end(self):
        """The session ends: that is told, by DETACHED or the connection's end."""
        try:
            if self.client:
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
        self.is_untrue = False
        self.is_failing = False  # a fault that lasts
        self.is_moving = False  # sessions may be detached, and their places be missing
        self.patience = PATIENCE
        self.make = start
        self.after_step = lambda: None

    def path(self, *names):
        return os.path.join(self.base, *names)

    @property
    def daemon(self):
        """The one that runs."""
        return self.daemons[-1] if self.daemons else None

    @daemon.setter
    def daemon(self, daemon):
        self.daemons.append(daemon)

    @property
    def faulty(self):
        return next((daemon for daemon in self.daemons if daemon.fault), None)

    def log(self):
        return "".join(self.logs) + (self.daemon.log() if self.daemon else "")

    def connect(self, peer=None):
        """A connection, of another user if one is given."""
        if peer is None:
            client = Connection(self.daemon.socket)
        else:
            client = self.daemon.unprivileged(kind=Connection, **peer)
        client.world = self
        return client

    def ask(self, do, peer=None):
        """What is done with a connection of its own, again if the fault was in the way."""
        for _ in range(6):
            try:
                with contextlib.closing(self.connect(peer)) as client:
                    return do(client)
            except GONE as error:
                self.ended_or(error)
            except Refused as refused:
                self.accept_error(refused.errno, f"{refused}")
        raise Violation(f"not after six attempts:\n{self.log()}")

    def join(self, mode, **fields):
        party = Party(self, mode, **fields)
        self.parties.append(party)
        if not self.is_failing:
            party.join()
        return party

    def check(self):
        for party in self.parties:
            party.check()
        self.after_step()

    # What the daemon may do about a fault

    def accept_error(self, code, what):
        """An error that a client was told has to be the fault's own, or to say that it comes
        of it: a share that could not be made ready is tried again after a while."""
        self.is_told = True
        if self.is_moving and code in (errno.ENOENT, errno.ENODEV):
            time.sleep(0.02)
            return
        if self.fault is None:
            raise Violation(f"without a fault: {what}")
        if code != self.fault.errno and self.fault.code in what:
            time.sleep(0.1)
        elif code != self.fault.errno:
            raise Violation(f"{what}: {errno.errorcode.get(code)}, which is not what failed")

    def ended_or(self, error):
        """After a connection's end: the daemon goes on, or has ended with a clear error;
        then another one is started in its place."""
        if isinstance(error, Parted) and self.is_moving:
            return
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
        for daemon in self.daemons:
            daemon.kill()
        for party in self.parties:
            party.close()
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
    if fault and "Accounts" in f"{fault.site}":
        # getpwnam(3) does not say that one data base cannot be read when the next does not
        # know the name.
        texts += ("unknown user", "unknown group")
    if not any(text in line for line in errors for text in texts):
        raise Violation(f"ended with {status} and no message that names {fault}:\n{log[-3000:]}")
