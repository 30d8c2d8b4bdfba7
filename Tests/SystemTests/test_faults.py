# SPDX-License-Identifier: Apache-2.0
"""Each system call of the daemon fails once: it goes on or ends with a clear error,
and no session believes something untrue. `make faults` runs them all."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
import unittest

import faults
import scratch
from daemon import REPOSITORY, Daemon, binary, table, touch, write
from faults import CANNOT_FAIL, ERRNOS, Fault, TracedDaemon, Violation, World, judge_end, read_sites
from managed import ManagedDaemon
from hostwatch import NODES, TREE, WANT_PATH, Client, HungUp, register_entry
from runner import read_limit

SHOW = "HOSTWATCH_FAULTS_SHOW" in os.environ
# A source that could not be taken out could not be put back either.
IMPOSSIBLE = "EPOLL_CTL_DEL"
# What a short run leaves out.
UNLIKELY = ("mmap", "ioctl", "madvise", "getrandom", "prlimit64", "pwrite64", "ftruncate", "unlink",
            "setsockopt", "newfstatat")
ALL = os.environ.get("HOSTWATCH_FAULTS") == "all"
DELAY = 20000  # microseconds in which events gather


def configuration(world, shares=("share",)):
    return table(daemon={"log_level": "debug", "max_delay": "50ms", "queue_events": int(read_limit())},
                 share=[{"name": name, "path": world.path(name)} for name in shares])


def start(world, fault, old=None, **options):
    """A daemon in this world, on the socket of an old one."""
    config = configuration(world)
    daemon = TracedDaemon(fault, config=config, calls=("all",),
                          socket_path=old.socket if old else None, **options)
    return daemon


# Steps: after each of them every model is compared with the filesystem.

def make_names(world):
    os.makedirs(world.path("share/a/deep"))
    os.mkdir(world.path("share/b"))
    for name in ("a/f", "a/g", "b/h", "a/deep/x"):
        touch(world.path("share", name))


def move(world):
    os.rename(world.path("share/a/f"), world.path("share/b/f"))
    os.rename(world.path("share/a/deep"), world.path("share/b/deep"))
    os.rename(world.path("share/a/g"), world.path("share/b/h"))
    touch(world.path("share/b/deep/y"))


def move_in_and_out(world):
    os.makedirs(world.path("outside/tree/sub"))
    touch(world.path("outside/tree/sub/t"))
    os.rename(world.path("outside/tree"), world.path("share/tree"))
    touch(world.path("share/tree/sub/u"))
    os.rename(world.path("share/b/deep"), world.path("outside/deep"))
    touch(world.path("outside/deep/z"))


def merge(world):
    """Records that stand for several operations, so that names are looked up."""
    a, b = world.path("share/a/one"), world.path("share/b/two")
    touch(a)
    for _ in range(3):
        os.rename(a, b)
        os.rename(b, a)
    os.link(a, world.path("share/b/link"))
    os.unlink(a)
    touch(a)
    d, e = world.path("share/a/dir"), world.path("share/b/dir")
    os.mkdir(d)
    touch(os.path.join(d, "below"))
    for _ in range(2):
        os.rename(d, e)
        os.rename(e, d)
    os.rename(d, e)
    touch(os.path.join(e, "later"))


def temporary(world):
    fd = os.open(world.path("share/a"), os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"x")
    os.close(fd)
    write(world.path("share/b/f"), b"more", "ab")


def remove(world):
    os.unlink(world.path("share/b/f"))
    os.unlink(world.path("share/b/link"))
    os.unlink(world.path("share/tree/sub/t"))
    os.unlink(world.path("share/tree/sub/u"))
    os.rmdir(world.path("share/tree/sub"))
    os.rmdir(world.path("share/tree"))


def close_slowly(world):
    """What is of no filesystem is closed by a helper."""
    ours, theirs = os.pipe()
    try:
        with contextlib.suppress(HungUp, ConnectionError):  # check() looks why
            Client.register(world.parties[1].client, [register_entry(1 << 40)], [ours])
        os.close(ours)
        ours = None
        poll = select.poll()
        poll.register(theirs, 0)
        if not poll.poll(faults.PATIENCE * 1000):
            raise Violation("the descriptor is not closed")
    finally:
        os.close(theirs)
        if ours is not None:
            os.close(ours)


def reload(world):
    """A share more, and one less; the count of reloads says when it is done."""
    world.reload(("share", "outside"))
    world.reload(("share",))


STEPS = (make_names, move, move_in_and_out, merge, temporary, close_slowly, remove)


class FaultWorld(World):
    def reload(self, shares):
        before = self.reloads()
        self.daemon.write_config(configuration(self, shares))
        pid = self.daemon.pid
        self.daemon.signal(signal.SIGHUP)
        end = time.monotonic() + faults.PATIENCE
        while self.daemon.pid == pid and self.reloads() == before:
            if time.monotonic() > end:
                raise Violation(f"not reloaded:\n{self.log()}")
            time.sleep(0.005)

    def reloads(self):
        for _ in range(6):
            try:
                with faults.Connection(self.daemon.socket) as client:
                    return client.status()["reload"]["count"]
            except (faults.HungUp, ConnectionError, FileNotFoundError) as error:
                self.ended_or(error)
            except faults.Refused as refused:
                self.accept_error(refused.errno, f"{refused}")
        raise Violation(f"no STATUS:\n{self.log()}")


def serve(world):
    """The whole life of a daemon."""
    world.join(TREE, share="share", options=WANT_PATH, max_delay_us=DELAY)
    world.join(NODES, max_delay_us=DELAY)
    for step in STEPS:
        step(world)
        world.check()
    reload(world)
    touch(world.path("share/after-reload"))
    world.check()
    late = world.join(TREE, max_delay_us=DELAY)
    touch(world.path("share/late"))
    world.check()
    late.close()
    world.parties.remove(late)
    touch(world.path("share/last"))
    world.check()


def make_files(world):
    os.mkdir(world.path("share/many"))
    for number in range(100):
        touch(world.path("share/many", str(number)))


def lose(world):
    """A client that does not read loses records: its nodes are looked at."""
    make_files(world)
    slow = world.join(NODES, queue_limit=65536, max_packet=4096)
    other = world.join(TREE)
    world.check()
    for turn in range(30):
        for number in range(100):
            os.chmod(world.path("share/many", str(number)), 0o600 + turn % 8)
        other.check()
    os.unlink(world.path("share/many/7"))
    os.rename(world.path("share/many/8"), world.path("share/8"))
    world.check()
    if world.fault is None and not slow.told:
        raise Violation("nothing was lost")


def start_up(world, daemon):
    """READY, or a clear end and another daemon."""
    world.daemon = daemon
    try:
        daemon.start()
    except AssertionError:
        status = daemon.exit_status
        if status is None or daemon.fault is None:
            raise
        world.is_told = True
        judge_end(status, daemon.log(), daemon.fault)
        world.logs.append(daemon.log())
        world.replace()


def end(world):
    daemon = world.daemon
    daemon.drain_notifications()
    daemon.signal(signal.SIGTERM)
    if not isinstance(daemon, ManagedDaemon):
        for party in world.parties:
            party.expect_end()
    status = daemon.wait()
    if status != 0:
        judge_end(status, daemon.log(), daemon.fault)


def run(world, scenario):
    start_up(world, start(world, world.fault, stacks=world.fault is None))
    world.traced = world.daemon
    scenario(world)
    end(world)


def start_managed(world, fault, old=None, **options):
    return ManagedDaemon(
        fault, config=configuration(world), calls=tuple(ERRNOS),
        store=old.store if old else None, socket_path=old.socket if old else None, **options)


def hand_over(world, which):
    """From one process to the next; the fault, or the trace, is in the one that ends
    (0) or in the one that follows (1)."""
    faulty = [world.fault if which == at else None for at in range(2)]
    stacks = [world.fault is None and which == at for at in range(2)]
    world.make = start_managed
    start_up(world, start_managed(world, faulty[0], stacks=stacks[0]))
    if which == 0:
        world.traced = world.daemon
    world.join(TREE, share="share", options=WANT_PATH, max_delay_us=DELAY)
    world.join(NODES, max_delay_us=DELAY)
    make_names(world)
    world.check()
    move(world)
    end(world)
    old = world.daemon
    world.logs.append(old.log())
    if world.fault is None and "hostwatchd-handover" not in old.store:
        raise Violation(f"nothing was handed over:\n{world.log()}")
    move_in_and_out(world)
    start_up(world, start_managed(world, faulty[1], old, stacks=stacks[1]))
    if which == 1:
        world.traced = world.daemon
    world.check()
    merge(world)
    world.check()
    touch(world.path("share/last"))
    world.check()
    end(world)
    world.daemon.empty_store()
    for party in world.parties:
        party.expect_end()


def outcome(world, verdict):
    """How a fault was dealt with: in the log, to a client, or so that nobody noticed."""
    if verdict:
        return "wrong"
    log, fault = world.log(), world.fault
    if fault.code in log or os.strerror(fault.errno) in log:
        return "logged"
    return "told" if world.is_told else "silent"


def eventually(condition):
    end = time.monotonic() + faults.PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("not in time")
        time.sleep(0.01)


def drain(journal, heard):
    """Entries as journald takes them: a datagram, or a sealed file that comes with one."""
    while (packet := socket.recv_fds(journal, 1 << 20, 4))[0] != b"END":
        heard.append(packet[0])
        for fd in packet[1]:
            heard.append(os.pread(fd, 1 << 20, 0))
            os.close(fd)


class Faults(unittest.TestCase):
    limit = 3600 if ALL else 120
    # Sites that an earlier scenario has shown.
    known = set()

    @classmethod
    def setUpClass(cls):
        faults.require()
        cls.mount = scratch.shared("ext4")
        # The release build has no symbols to tell one call from another.
        debug = os.path.join(REPOSITORY, ".build/debug/hostwatchd")
        if "HOSTWATCHD" not in os.environ and os.path.exists(debug):
            os.environ["HOSTWATCHD"] = debug
            cls.addClassCleanup(os.environ.pop, "HOSTWATCHD", None)

    def world(self, fault=None):
        return contextlib.closing(FaultWorld(self.mount, fault, start))

    def sites(self, scenario):
        """What the scenario calls while nothing fails, as far as it is new."""
        with self.world() as world:
            scenario(world)
            found = [site for site in
                     read_sites(world.traced.trace, os.path.basename(binary()))
                     if site.key not in self.known]
        self.known.update(site.key for site in found)
        self.assertFalse({str(site) for site in found if site.call not in (*ERRNOS, *CANNOT_FAIL)},
                         "neither in ERRNOS nor in CANNOT_FAIL")
        return [site for site in found if site.call in ERRNOS]

    @staticmethod
    def plan(sites):
        """All of it: each site's first, middle and last call with each errno. Else one of
        the first calls for each function that makes it."""
        seen = set()
        for site in sites:
            if IMPOSSIBLE in site.shown:
                continue
            short = site.call, site.way[:3]
            if not ALL and (short in seen or site.call in UNLIKELY):
                continue
            seen.add(short)
            numbers = site.numbers
            if ALL:
                numbers = sorted({numbers[0], numbers[len(numbers) // 2], numbers[-1]})
            for code in ERRNOS[site.call] if ALL else ERRNOS[site.call][:1]:
                for number in numbers if ALL else numbers[:1]:
                    yield Fault(site, number, code)

    def inject(self, name, scenario):
        sites = self.sites(scenario)
        plan = list(self.plan(sites))
        wrong, reached = [], 0
        for fault in plan:
            began = time.monotonic()
            with self.world(fault) as world:
                try:
                    scenario(world)
                    verdict = ""
                except (Violation, AssertionError, OSError) as error:
                    verdict = f"{fault}\n    {fault.site.shown}\n{type(error).__name__}: {error}"
                injected = "".join(one.injected for one in world.daemons)
                was_reached = bool(injected) and IMPOSSIBLE not in injected
                # Another call than the one that was meant, and one that the kernel
                # does not refuse.
                if IMPOSSIBLE in injected:
                    verdict = ""
                if verdict:
                    wrong.append(verdict)
                reached += was_reached
                if SHOW:
                    print(f"{outcome(world, verdict):6} {time.monotonic() - began:.2f}",
                          "" if was_reached else "MISSED", fault, fault.site.shown, flush=True)
        print(f"{name}: {len(sites)} sites, {len(plan)} faults, {reached} reached", flush=True)
        self.assertFalse(wrong, f"{len(wrong)} of {len(plan)}:\n" + "\n".join(wrong))
        self.assertGreater(reached, len(plan) * 0.8, "the calls come in another order")

    def test_1_serving(self):
        self.inject("serving", lambda world: run(world, serve))

    def test_2_loss(self):
        self.inject("loss", lambda world: run(world, lose))

    def test_3_handing_over(self):
        self.inject("handing over", lambda world: hand_over(world, 0))

    def test_4_taking_up(self):
        self.inject("taking up", lambda world: hand_over(world, 1))

    def test_5_the_journal(self):
        """Whatever becomes of its messages, the daemon serves."""
        subprocess.run(["mount", "-t", "tmpfs", "journal", "/run/systemd"], check=True)
        self.addCleanup(subprocess.run, ["umount", "-l", "/run/systemd"], check=True)
        os.mkdir("/run/systemd/journal")
        path = "/run/systemd/journal/socket"

        def life(inject=""):
            """Its trace."""
            with contextlib.closing(FaultWorld(self.mount)) as world:
                world.daemon = daemon = Daemon(config=configuration(world), start=False,
                                               arguments=["--log-target", "journal"])
                trace = os.path.join(daemon.directory, "trace")
                daemon.command = ["strace", "-D", "-q", "-s", "1000", "-o", trace, "-e", "trace=sendto",
                                  *(("-e", f"inject=sendto:{inject}") if inject else ()),
                                  *daemon.command]
                daemon.start()
                serve(world)
                end(world)
                self.assertEqual(daemon.exit_status, 0)
                with open(trace, encoding="utf-8") as file:
                    return file.read().splitlines()

        with self.subTest("there is none"):
            life()
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as journal:
            journal.bind(path)
            with self.subTest("it does not read"):
                self.assertTrue(any("EAGAIN" in line for line in life()))
            heard = []
            reader = threading.Thread(target=drain, args=(journal, heard))
            reader.start()
            try:
                with self.subTest("it reads"):
                    calls = [line for line in life() if line.startswith("sendto")]
                ready = next(at for at, line in enumerate(calls) if "READY=1" in line)
                for name in ERRNOS["sendto"] + ("EAGAIN", "ENOBUFS", "EPIPE"):
                    # READY=1 is sent in the same way, and has to get there.
                    with self.subTest(name):
                        failed = life(f"error={name}:when={ready + 2}+")
                        self.assertGreater(sum("(INJECTED)" in line for line in failed), 5)
                with self.subTest("it misses some"):
                    life(f"error=EAGAIN:when={ready + 2}..{ready + 5}")
                with self.subTest("too large for a datagram"):
                    before = len(heard)
                    life(f"error=EMSGSIZE:when={ready + 2}+")
                    eventually(lambda: b"MESSAGE=hostwatchd stopped" in heard[-1][:26])
                    self.assertEqual(heard[-2], b"")
                    self.assertGreater(len(heard), before + 5)
            finally:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                    last.sendto(b"END", path)
                reader.join()
        text = b"".join(heard)
        for wanted in (rb"MESSAGE=The share", rb"HOSTWATCH_SHARE=share\n",
                       rb"MESSAGE=The journal did not take \d+ messages"):
            self.assertTrue(re.search(wanted, text), wanted)
        with self.subTest("it has gone"):  # ECONNREFUSED
            life()
