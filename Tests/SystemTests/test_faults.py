# SPDX-License-Identifier: Apache-2.0
"""Each system call of the daemon fails once, or from then on: it goes on or ends with a
clear error, and no session believes something untrue. `make faults` runs them all."""

import contextlib
import grp
import os
import re
import select
import signal
import shutil
import socket
import subprocess
import threading
import time
import unittest

import faults
import scratch
from daemon import REPOSITORY, START_TIMEOUT, Daemon, binary, table, touch, write
from faults import (CANNOT_FAIL, ERRNOS, EXACT, MISSED, NEAR, Fault, TracedDaemon, Violation, World,
                    judge_end, read_sites)
from managed import ManagedDaemon
from hostwatch import NODES, SUPPRESS_ECHO, TREE, WANT_PATH, Client, HungUp, register_entry
from runner import SYSCTL, read_limit

SHOW = "HOSTWATCH_FAULTS_SHOW" in os.environ
# A source that could not be taken out could not be put back either.
IMPOSSIBLE = "EPOLL_CTL_DEL"
# What a short run leaves out.
UNLIKELY = ("mmap", "ioctl", "madvise", "getrandom", "prlimit64", "pwrite64", "ftruncate", "unlink",
            "setsockopt", "newfstatat")
# What lasts in a short run.
LASTING = ("accept4", "recvmsg", "sendmmsg", "openat", "open_by_handle_at", "epoll_ctl")
ALL = os.environ.get("HOSTWATCH_FAULTS") == "all"
DELAY = 20000  # microseconds in which events gather
ATTEMPTS = 3  # to make the call fail that is meant
# How many faults may miss their call all the same, or two: whether the daemon finds something
# to read at one place or another is a matter of time.
MISSES = 0.08
QUEUE = 500  # events in the kernel's queue where it overflows
# A daemon at rest that fails and tries again: per second, of the processor and calls.
BUSY, RETRIES = 0.4, 200


def configuration(world, shares=("share",), allow=None):
    """`allow`: what each share has besides."""
    daemon = {"log_level": "debug", "max_delay": "50ms", "queue_events": int(read_limit())}
    if allow is not None:
        daemon["socket_mode"] = "0666"
    return table(daemon=daemon, share=[{"name": name, "path": world.path(name), **(allow or {})}
                                       for name in shares])


# Stacks take time: what is not looked at needs none.
CALLS = f"!{','.join(CANNOT_FAIL + (() if ALL else UNLIKELY))}"


def start(world, fault, old=None, **options):
    """A daemon in this world, on the socket of an old one."""
    return TracedDaemon(fault, config=world.text, calls=CALLS,
                        socket_path=old.socket if old else None, **options)


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
    world.reload(configuration(world, ("share", "outside")))
    world.reload(configuration(world))


STEPS = (make_names, move, move_in_and_out, merge, temporary, close_slowly, remove)


class FaultWorld(World):
    text = property(lambda self: self._text or configuration(self), doc="The configuration.")
    _text = None

    @text.setter
    def text(self, text):
        self._text = text

    def reload(self, text):
        """Again if the fault was in the way: then the configuration from before holds."""
        self.daemon.write_config(text)
        refused = self._reload_once()
        if refused and self.fault is not None:
            self.is_told = True
            refused = self._reload_once()
        if refused:
            raise Violation(f"the reload is refused:\n{self.log()}")

    def _reload_once(self):
        """What was wrong; None if nothing was."""
        before = self.reloads()["count"]
        pid = self.daemon.pid
        self.daemon.signal(signal.SIGHUP)
        end = time.monotonic() + faults.PATIENCE
        while (now := self.reloads())["count"] == before and self.daemon.pid == pid:
            if time.monotonic() > end:
                raise Violation(f"not reloaded:\n{self.log()}")
            time.sleep(0.005)
        return now["error"] if self.daemon.pid == pid else None

    def close(self):
        super().close()
        if os.path.ismount(self.path("volume")):
            subprocess.run(["umount", "-l", self.path("volume")], check=True)
        shutil.rmtree(self.base, ignore_errors=True)

    def reloads(self):
        return self.ask(lambda client: client.status()["reload"])


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


def come_and_go(world):
    """A filesystem is mounted over a share, and unmounted again."""
    os.mkdir(world.path("volume"))
    world.text = configuration(world, ("share", "volume"))
    run_start(world)
    world.is_moving = True
    world.join(TREE, share="share")
    volume = world.join(TREE, share="volume", place="volume")
    touch(world.path("volume/below"))
    world.check()
    path = world.path("volume")
    turns = 2 if ALL else 1
    for turn in range(turns):
        subprocess.run(["mount", "-t", "tmpfs", "scratch", path], check=True)
        volume.follow(f"over-{turn}")
        guest = world.join(TREE, place="volume")
        touch(world.path("volume/over"))
        touch(world.path("share", f"beside-{turn}"))
        world.check()
        subprocess.run(["umount", path], check=True)
        world.parties.remove(guest)
        guest.expect_end()
        volume.follow(f"under-{turn}")
        touch(world.path("volume", f"below-{turn}"))
        world.check()
    if world.fault is None and volume.parted < 2 * turns:
        raise Violation("the session was not told each time that its filesystem is gone")
    end(world)


ALLOW = {"allow_users": ["nobody"], "allow_groups": ["games"]}
NOBODY = {"uid": 65534}


def let_in(world):
    """Users who are not root, by name and by group, and processes whose changes are an echo."""
    player = {"uid": 65533, "gid": 65533, "groups": [grp.getgrnam("games").gr_gid]}
    world.text = configuration(world, allow=ALLOW)
    run_start(world)
    world.is_moving = False
    for peer in (NOBODY, player):
        world.join(TREE, share="share", peer=peer)
    world.join(TREE, options=SUPPRESS_ECHO, echo_pid=os.getppid())
    make_names(world)
    world.check()

    def register(client):
        """By descriptors that it may read itself."""
        fds = [os.open(world.path("share", name), os.O_RDONLY) for name in (".", "a/f")]
        try:
            client.init(NODES, fd=fds[0], options=SUPPRESS_ECHO, echo_pid=client.peer_pid)
            client.register([register_entry(10)], fds[1:])
            client.sync()
        finally:
            for fd in fds:
                os.close(fd)

    world.ask(register, NOBODY)
    # Who may no longer use it is detached, and may again later.
    world.is_moving = True
    world.reload(configuration(world, allow={"allow_groups": ["games"]}))
    move(world)
    world.parties[1].check()
    world.reload(configuration(world, allow=ALLOW))
    move_in_and_out(world)
    world.check()
    if world.fault is None and not world.parties[0].parted:
        raise Violation("a user whose right was taken away was not told")
    end(world)


def overflow(world, fillers=QUEUE + 100):
    """More happens than the kernel's queue holds."""
    run_start(world)
    parties = [world.join(TREE, share="share", options=WANT_PATH), world.join(NODES)]
    make_names(world)
    world.check()
    world.daemon.halt()
    for number in range(fillers):
        touch(world.path("outside", f"filler-{number}"))
    move(world)
    os.chmod(world.path("share/b/f"), 0o600)
    world.daemon.signal(signal.SIGCONT)
    world.check()
    if world.fault is None and all(party.told for party in parties) != bool(fillers):
        raise Violation("it was lost what was not to be, or the other way round")
    move_in_and_out(world)
    world.check()
    end(world)


def endure(world):
    """Calls fail from some moment on, and no more when they have done so for a while."""
    world.is_failing = world.fault is not None
    world.patience = 0.5 if world.is_failing else faults.PATIENCE
    run_start(world)
    check = faults.Party.try_check if world.is_failing else faults.Party.check
    world.join(TREE, share="share", options=WANT_PATH, max_delay_us=DELAY)
    world.join(NODES, max_delay_us=DELAY)
    for step in (make_names, move):
        step(world)
        for party in world.parties:
            check(party)
    world.daemon.signal(signal.SIGHUP)
    late = world.join(TREE, max_delay_us=DELAY)
    check(late)
    if world.is_failing:
        rest(world)
        if world.faulty.exit_status is None:
            world.faulty.let_go()
        world.is_failing = False
        world.patience = faults.PATIENCE
    move_in_and_out(world)
    world.check()
    reload(world)
    touch(world.path("share/last"))
    world.check()
    end(world)


def rest(world):
    """Nothing happens, and what fails is not tried without end."""
    daemon, seconds = world.faulty, 0.5
    used, failed = daemon.seconds_used(), len(daemon.injected)
    if used is None:
        return
    time.sleep(seconds)
    more = len(daemon.injected) - failed
    used = (daemon.seconds_used() or used) - used
    if used > BUSY * seconds or more > RETRIES * seconds:
        raise Violation(f"it spins: in {seconds} s {used:.2f} s of the processor, {more} calls "
                        f"that failed\n{world.log()[-3000:]}")


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
        daemon.spawn()
        daemon.wait_notified("READY=1", 2 if world.is_failing else START_TIMEOUT)
    except AssertionError:
        status = daemon.exit_status
        if status is None and world.is_failing:
            return  # what keeps it from being ready goes away
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


def run_start(world):
    # Where all calls of a kind fail it does not matter which was the first, and stacks
    # would hold the daemon up.
    start_up(world, start(world, world.fault, stacks=not world.is_failing))
    world.traced = world.daemon


def run(world, scenario):
    run_start(world)
    scenario(world)
    end(world)


def start_managed(world, fault, old=None, **options):
    return ManagedDaemon(
        fault, config=world.text, calls=CALLS,
        store=old.store if old else None, socket_path=old.socket if old else None, **options)


def hand_over(world, which):
    """From one process to the next; the fault, or the trace, is in the one that ends
    (0) or in the one that follows (1)."""
    faulty = [world.fault if which == at else None for at in range(2)]
    stacks = [which == at for at in range(2)]
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
    if world.is_untrue:
        return "untrue"
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


class FaultTest(unittest.TestCase):
    limit = 7200 if ALL else 180
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
        """What the scenario calls while nothing fails."""
        with self.world() as world:
            scenario(world)
            found = read_sites(world.traced.trace, os.path.basename(binary()))
        self.assertFalse({str(site) for site in found if site.call not in (*ERRNOS, *CANNOT_FAIL)},
                         "neither in ERRNOS nor in CANNOT_FAIL")
        return found

    @staticmethod
    def chosen(sites):
        """All of them; else one for each function that makes a call that is likely to fail."""
        seen = set()
        for site in sites:
            short = site.call, site.way[:3]
            if site.call not in ERRNOS or IMPOSSIBLE in site.shown:
                continue
            if not ALL and (short in seen or site.call in UNLIKELY):
                continue
            seen.add(short)
            yield site

    def plan(self, sites):
        """Each site's first, middle and last call with each errno, or one."""
        for site in self.chosen(sites):
            last = len(site.numbers) - 1
            for code in site.errnos if ALL else site.errnos[:1]:
                for rank in sorted({0, last // 2, last}) if ALL else [0]:
                    yield Fault(site, rank, code)

    def lasting(self, sites):
        """What is called again and again, from its first call on. No call is interrupted
        again and again."""
        seen = set()
        for site in self.chosen(sites):
            codes = [code for code in site.errnos if code != "EINTR"]
            if not codes or len(site.numbers) < 2:
                continue
            if not ALL and (site.call in seen or site.call not in LASTING):
                continue
            seen.add(site.call)
            yield Fault(site, 0, codes[0], lasts=True)

    def one(self, fault, scenario, places):
        """(what is wrong, how it was dealt with, whether the call that was meant failed)"""
        verdict = ""
        with self.world(fault) as world:
            def after_step():
                # Without strace the rest is quicker.
                daemon = world.faulty
                if not fault.lasts and daemon and daemon.exit_status is None and daemon.hit():
                    daemon.let_go()

            world.after_step = after_step
            try:
                scenario(world)
            except (Violation, AssertionError, OSError) as error:
                verdict = f"{fault}\n    {fault.site.shown}\n{type(error).__name__}: {error}"
            calls = world.faulty.calls_made()
            failed = [one for one in calls if one.is_injected]
            # Another call than the one that was meant, and one that the kernel does not
            # refuse.
            if any(IMPOSSIBLE in one.line for one in failed):
                verdict = ""
            if fault.lasts:
                hit = EXACT if failed else MISSED
            else:
                hit = world.faulty.hit()
            dealt = outcome(world, verdict)
        if hit != EXACT:
            fault.aim(calls, places)
        return verdict, dealt, hit

    def inject(self, name, scenario, plan=None):
        sites = self.sites(scenario)
        places = {site.key: site for site in sites}
        if plan is None:
            sites = [site for site in sites if site.key not in self.known]
            self.known.update(places)
        planned = list((plan or self.plan)(sites))
        wrong, missed, met, runs, near, untrue = [], [], set(), 0, 0, 0
        for fault in planned:
            hit = MISSED
            for _ in range(1 if fault.lasts else ATTEMPTS):
                began = time.monotonic()
                meant = f"{fault}"
                verdict, dealt, result = self.one(fault, scenario, places)
                hit = max(hit, result)
                runs += 1
                untrue += dealt == "untrue"
                if verdict:
                    wrong.append(verdict)
                if SHOW:
                    print(f"{dealt:6} {time.monotonic() - began:.2f}", ("MISSED ", "NEAR ", "")[result],
                          meant, fault.site.shown, flush=True)
                if hit or verdict:
                    break
            near += hit == NEAR
            if hit == MISSED:
                missed.append(fault)
            else:
                met.add(fault.site.key)
        print(f"{name}: {len(sites)} sites, {len(planned)} faults in {runs} runs, {near} come to "
              f"in another way, {len(missed)} missed, {untrue} untrue", flush=True)
        for site in dict.fromkeys(fault.site for fault in missed if fault.site.key not in met):
            print(f"    never failed: {site}", flush=True)
        self.assertFalse(wrong, f"{len(wrong)} of {len(planned)}:\n" + "\n".join(wrong))
        # What lasts is over before some calls are made.
        if plan is None:
            count = len(planned)
            self.assertLessEqual(len(missed), max(2, min(4, count / 4), count * MISSES),
                                 "too many calls did not fail")


class OverflowFaults(FaultTest):
    exclusive = True  # of the sysctl

    def test_overflow(self):
        self.addCleanup(write, SYSCTL, read_limit().encode())
        write(SYSCTL, str(QUEUE).encode())
        # What is called besides fails in the other scenarios.
        self.known.update(site.key for site in self.sites(lambda world: overflow(world, 0)))
        self.inject("overflow", overflow)


class Faults(FaultTest):
    def test_1_serving(self):
        self.inject("serving", lambda world: run(world, serve))

    def test_2_loss(self):
        self.inject("loss", lambda world: run(world, lose))

    def test_3_handing_over(self):
        self.inject("handing over", lambda world: hand_over(world, 0))

    def test_4_taking_up(self):
        self.inject("taking up", lambda world: hand_over(world, 1))

    def test_6_mounts(self):
        self.inject("mounts", come_and_go)

    def test_7_users(self):
        self.inject("users", let_in)

    def test_8_enduring(self):
        self.inject("enduring", endure, self.lasting)

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
