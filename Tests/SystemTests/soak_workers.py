# SPDX-License-Identifier: Apache-2.0
"""The processes of a soak. Each does its part until it is told to pause or to stop, and
counts what it does."""

import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback

import fusefs
import test_load
from histories import Writer, make_base
from hostwatch import TREE, Client, Detached, HungUp, Lost, Refused
from soak_sessions import BUSY, GONE, LibrarySession, NodesSession, TreeSession, again, connect

OPERATIONS = (100, 400, 2000)  # of a writer between two comparisons
SMALL_QUEUE = 65536
QUIET = 60.0  # longest time in which nothing happens
FIGURES = ("operations", "compared", "wrong", "lost", "disconnects", "looked", "remounts",
           "packets")
KEPT = "/var/tmp/hostwatch-soak"


class Control:
    """What the processes share."""

    def __init__(self):
        self.go = multiprocessing.Event()
        self.paused = multiprocessing.Event()
        self.stopped = multiprocessing.Event()
        self.kills = multiprocessing.Value("Q", 0)
        self.messages = multiprocessing.SimpleQueue()
        self.servers = multiprocessing.Array("l", 2)  # the pids of hostwatchfs


class Worker:
    """A process of its own."""

    def __init__(self, control, name, seed):
        self.control = control
        self.name = name
        self.seed = seed
        self.figures = multiprocessing.Array("Q", len(FIGURES), lock=False)
        self.resting = multiprocessing.Event()
        self.process = multiprocessing.Process(target=self._main, name=name)

    def count(self, figure, by=1):
        self.figures[FIGURES.index(figure)] += by

    def value(self, figure):
        return self.figures[FIGURES.index(figure)]

    def _main(self):
        # A terminal's interrupt is for the process that tells this one to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        try:
            self.control.go.wait()
            dice = random.Random(self.seed)
            while not self.control.stopped.is_set():
                if self.control.paused.is_set():
                    self.resting.set()
                    time.sleep(0.05)
                    continue
                self.resting.clear()
                self.turn(dice.randrange(1 << 32))
        except BaseException:
            self.count("wrong")
            self.control.messages.put(f"{self.name} ended:\n{traceback.format_exc()}")
            os._exit(1)
        finally:
            self.resting.set()
        os._exit(0)

    def is_wanted(self):
        return not self.control.paused.is_set() and not self.control.stopped.is_set()

    def wrong(self, seed, text):
        self.count("wrong")
        self.control.messages.put(f"WRONG: {self.name}, seed {seed}:\n{text}")

    def note(self, *sessions):
        """What became of sessions that end now. Without a kill no connection ends."""
        for one in sessions:
            self.count("lost", one.losses)
            self.count("disconnects", one.disconnects)


class OnMount(Worker):
    """One that needs a filesystem and the daemon."""

    def __init__(self, control, name, seed, mount, socket):
        super().__init__(control, name, seed)
        self.mount = mount
        self.socket = socket


class Histories(OnMount):
    """Random histories on one filesystem, and three sessions with models: a TREE client, a
    server whose client is often slow, and one that uses the C library."""

    def turn(self, seed):
        dice = random.Random(seed)
        base = os.path.join(self.mount, str(seed))
        make_base(base)
        traces = [f"{base}.{number}" for number in range(dice.randint(1, 3))]
        names = dice.choice(("abc/pq", "ab/pqr", "abcdefg/pqrst", "abcd/pq"))
        rounds = dice.choice((3, 6, 20))
        kills = self.control.kills.value
        writers = [Writer(base, seed + at, names, 0, trace) for at, trace in enumerate(traces)]
        share = os.path.join(base, "share")
        sessions = []
        wrong = ""
        try:
            sessions.append(TreeSession(self.socket, share))
            sessions.append(NodesSession(self.socket, share, queue_limit=SMALL_QUEUE))
            sessions.append(LibrarySession(self.socket, share))
            for number in range(rounds):
                style = dice.choice(("follows", "gathers", "sleeps"))
                self.write(writers, sessions, style, dice.choice(OPERATIONS))
                for one in sessions:
                    differences = one.check()
                    self.count("compared")
                    if differences:
                        wrong += f"{type(one).__name__}, round {number}: {differences}\n"
                if wrong or not self.is_wanted():
                    break
        except AssertionError:
            wrong += traceback.format_exc()
        finally:
            for writer in writers:
                writer.close()
            for one in sessions:
                one.close()
        self.note(*sessions)
        kills = self.control.kills.value - kills
        for one in sessions:
            if one.disconnects > kills:
                wrong += f"{one.disconnects} disconnects, and {kills} daemons were killed\n"
        if wrong:
            self.keep(seed, traces, sessions, f"{names}, {rounds} rounds\n{wrong}")
        for path in traces:
            os.unlink(path)
        shutil.rmtree(base, ignore_errors=True)

    def write(self, writers, sessions, style, operations):
        tree, nodes, library = sessions
        for writer in writers:
            writer.begin("run", str(operations))
        waiting = list(writers)
        heard = time.monotonic()
        while waiting:
            clients = [tree] if style == "sleeps" else [tree, nodes]
            ready, _, _ = select.select([*waiting, *clients], [], [], 0.05)
            for one in clients:
                if one in ready:
                    one.receive(style == "follows")
            for writer in waiting[:]:
                if writer in ready:
                    writer.end()
                    waiting.remove(writer)
                    self.count("operations", operations)
                    heard = time.monotonic()
            library.poll()
            assert time.monotonic() - heard < QUIET, f"no writer has answered in {QUIET} s"

    def keep(self, seed, traces, sessions, text):
        where = f"{KEPT}-{self.name}-{seed}"
        for one in sessions:
            with open(f"{where}.{type(one).__name__}", "w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in one.model.history)
        for at, trace in enumerate(traces):
            shutil.copy(trace, f"{where}.trace{at}")
        self.wrong(seed, f"{text}all of it: {where}.*")


class Loads(Worker):
    """Host and mount of a hostwatchfs write the same names; then its caches are true."""

    def __init__(self, control, number, name, seed, source, mount):
        super().__init__(control, name, seed)
        self.number = number
        self.source = source
        self.mount = mount
        self.names = None

    def times_out_of_step(self):
        """How often so far, once it is in step."""
        pid = self.control.servers[self.number]
        end = time.monotonic() + QUIET
        while time.monotonic() < end:
            status = json.loads(fusefs.ask(f"{fusefs.CONTROL}/{pid}.sock", "status"))
            if status["state"] == "in-step":
                return status["out_of_step"]
            time.sleep(0.05)
        raise AssertionError(f"{self.mount} is not in step in {QUIET} s")

    def watch_names(self):
        """Anew after a gap: what a watcher was not told in it nobody tells it."""
        gaps = self.times_out_of_step()
        if self.names and gaps == self.gaps:
            return
        if self.names:
            self.names.inotify.close()
        self.gaps = gaps
        self.names = test_load.Names(self.mount)

    def untold(self):
        """What watchers were not told although the mount was in step all the time."""
        if self.times_out_of_step() != self.gaps:
            return ""
        wrong = test_load.differences(self.source, self.mount, self.names, 40.0)
        return wrong if self.times_out_of_step() == self.gaps else ""

    def turn(self, seed):
        is_told = self.name == "replay"
        if is_told:
            self.watch_names()
        stop = multiprocessing.Event()
        counters = [multiprocessing.Value("L") for _ in range(2)]
        programs = [
            multiprocessing.Process(target=test_load.churn,
                                    args=(base, seed + at, stop, counters[at], 400))
            for at, base in enumerate((self.source, self.mount))]
        for program in programs:
            program.start()
        end = time.monotonic() + 3.0
        while time.monotonic() < end and self.is_wanted():
            if self.names:
                self.names.read()
            time.sleep(0.02)
        stop.set()
        for program in programs:
            program.join(QUIET)
            if program.is_alive():
                program.kill()
                program.join()
                self.wrong(seed, f"a program hangs on {self.mount}")
        self.count("operations", sum(counter.value for counter in counters))
        wrong = test_load.differences(self.source, self.mount, None, 40.0)
        if is_told and not wrong:
            wrong = self.untold()
        self.count("looked")
        if wrong:
            self.wrong(seed, wrong)
            self.gaps = None  # said once is enough


class Removable(OnMount):
    """A filesystem with a share that is mounted and unmounted, its sessions with it."""

    def turn(self, seed):
        kills = self.control.kills.value
        self.mount.mount()
        base = self.mount.path
        share = os.path.join(base, "share")
        shutil.rmtree(share, ignore_errors=True)
        shutil.rmtree(os.path.join(base, "outside"), ignore_errors=True)
        make_base(base)
        writer = Writer(base, seed, "abc/pq")
        named = tree = None
        try:
            # The share is watched when the daemon has seen that something was mounted.
            end = time.monotonic() + QUIET
            named = again(lambda: connect(self.socket, b"removable", TREE),
                          until=lambda: time.monotonic() < end)
            tree = TreeSession(self.socket, share)
            for _ in range(3):
                writer.begin("run", "400")
                while not select.select([writer], [], [], 0.01)[0]:
                    if select.select([tree], [], [], 0.01)[0]:
                        tree.receive(True)
                writer.end()
                self.count("operations", 400)
                wrong = tree.check()
                self.count("compared")
                if wrong:
                    self.wrong(seed, wrong)
        finally:
            writer.close()
        self.unmount()
        self.count("remounts")
        ends = [self.ending(one) for one in (named, tree.client)]
        named.close()
        tree.close()
        self.note(tree)
        if any(reason != 1 for reason in ends) and self.control.kills.value == kills:
            self.wrong(seed, f"unmounted, and sessions ended with {ends}, not with DETACHED 1")

    def unmount(self):
        end = time.monotonic() + QUIET
        while True:
            try:
                return self.mount.unmount()
            except RuntimeError:  # what the daemon looks at just now keeps it busy
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    @staticmethod
    def ending(client):
        """The reason of DETACHED; None if the connection just ended."""
        try:
            return client.wait_for(Detached, QUIET)[-1].reason
        except (HungUp, ConnectionError):
            return None


class Slow(OnMount):
    """A client of the whole filesystem that never keeps up."""

    def turn(self, seed):
        dice = random.Random(seed)
        client = again(lambda: connect(self.socket, self.mount, TREE, queue_limit=SMALL_QUEUE))
        end = time.monotonic() + dice.uniform(3, 15)
        try:
            while time.monotonic() < end and self.is_wanted():
                if select.select([client], [], [], 0.1)[0]:
                    client.receive()
                    self.count("packets")
                    time.sleep(dice.choice((0, 0.01, 0.1)))
                self.count("lost", sum(isinstance(one, Lost) for one in client.take()))
            client.sync()
        except GONE:
            self.count("disconnects")
        finally:
            client.close()


class Hostiles(OnMount):
    """Clients that mean harm, one of them without privilege."""

    def turn(self, seed):
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hostile.py")
        running = [subprocess.Popen(
            [sys.executable, program, self.socket, self.mount, str(seed + at), "6", str(uid)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for at, uid in enumerate((0, 65534))]
        for one in running:
            output, _ = one.communicate()
            if one.returncode:
                self.wrong(seed, output.decode(errors="replace"))
            else:
                self.count("packets", int(output.split()[-2]))


def status(path):
    """What the daemon says of itself; None while there is none."""
    try:
        with Client(path) as client:
            return client.status()
    except (*GONE, BUSY, Refused, TimeoutError):
        return None
