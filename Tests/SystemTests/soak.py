# SPDX-License-Identifier: Apache-2.0
"""Everything at once, for long: see scripts/soak.

    unshare --mount python3 soak.py [--seconds N] [--every N] [--seed N] [--alone]

Four filesystems with random histories, their sessions compared with the filesystem at
every SYNC; two mounts of hostwatchfs that host and mount write to; a filesystem that
comes and goes; slow clients and hostile ones; a kernel queue that overflows; and a daemon
that is stopped and continued, reloaded, restarted and killed.
"""

import argparse
import collections
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import daemon
import fusefs
import runner
import scratch
import soak_workers
from histories import churn, stop
from library import library
from soak_manager import Manager
from soak_sizes import (descriptors, growth, loop_devices, mount_points, processes,
                        resident, same)

QUEUE = 1024  # events in the kernel's queue of a filesystem
SETTLED = 30.0
LONG = 120  # seconds after which a low queue must have overflowed
LEAST = ("restarts", "kills", "reloads")


class Interrupted(Exception):
    pass


class Soak:
    def __init__(self, options):
        self.options = options
        self.dice = random.Random(options.seed)
        self.counts = collections.Counter()
        self.failures = []
        self.events = 0
        self.last_events = {}
        self.began = time.monotonic()
        self.mounted_before = mount_points()
        self.former_queue = runner.read_limit()
        self.manager = None
        self.control = None
        self.filesystems = []
        self.workers = []
        self.servers = []
        self.measured = []

    def fail(self, text):
        self.failures.append(text)
        print(f"FAILED: {text}", flush=True)

    # What it is made of

    def make(self):
        churn()
        library()
        for kind in (*scratch.KINDS, "ext4"):
            self.filesystems.append(scratch.Mount(kind))
        *self.mounts, self.removable = self.filesystems
        self.removable.unmount()
        folder = scratch.new_path("manager")
        path = os.path.join(folder, "socket")
        self.sources = [(self.place(mount, "source"), events)
                        for mount, events in zip(self.mounts, ("replay", "invalidate"))]
        for source, _ in self.sources:
            for name in ("a", "b", "c", "d"):
                os.makedirs(os.path.join(source, name))
        self.points = [scratch.new_path("mount") for _ in self.sources]
        self.control = soak_workers.Control()
        self.workers = list(self.make_workers(path))
        for worker in self.workers:  # before this process has a thread
            worker.process.start()
        config = os.path.join(scratch.base(), "hostwatchd.toml")
        self.config = config
        self.write_config()
        self.manager = Manager(folder, [daemon.binary(), "--config", config,
                                        "--log-target", "stderr"],
                               os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"})
        with self.low_queue(wait=True):
            self.manager.start()
        for (source, events), point in zip(self.sources, self.points):
            self.servers.append(fusefs.HostwatchFS(
                source, path, f"allow_other,events={events}", point,
                ("setpriv", "--pdeathsig", "KILL")))
            self.control.servers[len(self.servers) - 1] = self.servers[-1].process.pid

    @staticmethod
    def place(mount, name):
        return os.path.join(mount.path, name)

    def make_workers(self, path):
        def seed():
            return self.dice.randrange(1 << 32)

        control = self.control
        for mount in self.mounts:
            yield soak_workers.Histories(control, mount.kind, seed(), mount.path, path)
        for number, ((source, events), point) in enumerate(zip(self.sources, self.points)):
            yield soak_workers.Loads(control, number, events, seed(), source, point)
        yield soak_workers.Removable(control, "removable", seed(), self.removable, path)
        yield soak_workers.Slow(control, "slow", seed(), self.mounts[1].path, path)
        yield soak_workers.Hostiles(control, "hostile", seed(), self.mounts[0].path, path)

    def write_config(self):
        shares = [{"name": mount.kind, "path": mount.path} for mount in self.mounts]
        shares.append({"name": "removable", "path": os.path.join(self.removable.path, "share")})
        if self.dice.random() < 0.5:
            shares.append({"name": "more", "path": self.place(self.mounts[2], "")})
        text = daemon.table(
            daemon={"queue_events": QUEUE, "max_delay": self.dice.choice(("0", "1ms", "5ms"))},
            limits={"sessions": 512}, share=shares)
        with open(self.config, "w", encoding="utf-8") as file:
            file.write(text)

    @contextlib.contextmanager
    def low_queue(self, wait=False):
        """What is watched from now on has a small queue. The sysctl is everybody's: unless
        this run is told that it is alone, it is low only while nobody else's tests run."""
        if self.options.alone:
            daemon.write(runner.SYSCTL, str(QUEUE).encode())
            yield
            return
        try:
            turn = runner.turn(exclusive=True, wait=wait)
            turn.__enter__()
        except BlockingIOError:
            yield
            return
        former = runner.read_limit()
        try:
            daemon.write(runner.SYSCTL, str(QUEUE).encode())
            self.counts["low"] += 1
            yield
        finally:
            daemon.write(runner.SYSCTL, former.encode())
            turn.__exit__(None, None, None)

    # What is done to the daemon

    def stop_and_continue(self):
        stop(self.manager)
        time.sleep(self.dice.choice((0.01, 0.05, 0.2, 0.4)))
        self.manager.signal(signal.SIGCONT)
        self.counts["stops"] += 1

    def reload(self):
        if self.dice.random() < 0.2:
            with open(self.config, "a", encoding="utf-8") as file:
                file.write("mistake = 1\n")
        else:
            self.write_config()
        self.manager.reload()
        self.counts["reloads"] += 1

    def restart(self):
        self.write_config()
        self.manager.restart()
        self.counts["restarts"] += 1

    def kill(self):
        self.write_config()
        self.control.kills.value += 1
        self.manager.kill()
        with self.low_queue():
            time.sleep(0.1)
            self.manager.start()
        self.counts["kills"] += 1

    def actions(self):
        """Endless: each of them, then by chance. Between a quarter and the half of the
        time the process stays the same, so that what it may leak adds up."""
        gentle = [self.stop_and_continue, self.reload]
        rough = gentle + [self.restart, self.kill]
        waiting = list(rough)
        while True:
            if not waiting:
                waiting = rough + self.dice.choices(gentle, (4, 1), k=6)
                self.dice.shuffle(waiting)
            action = waiting.pop()
            if action not in gentle and 0.25 <= self.part() < 0.5:
                waiting.insert(0, action)
                action = self.stop_and_continue
            yield action

    def part(self):
        """Of its time, how much is over."""
        return (time.monotonic() - self.began) / self.options.seconds

    # What is looked at

    def total(self, figure):
        return sum(worker.value(figure) for worker in self.workers)

    def look(self):
        """Whether everything still runs; what the workers have to say."""
        while not self.control.messages.empty():
            self.fail(self.control.messages.get())
        for worker in self.workers:
            if not worker.process.is_alive():
                raise AssertionError(f"{worker.name} has ended")
        for server in self.servers:
            if server.process.poll() is not None:
                raise AssertionError(f"hostwatchfs ended with {server.process.returncode}:\n"
                                     f"{server.log()[-3000:]}")

    def count_events(self, status):
        """Figures begin anew with each process."""
        now = status["totals"]["kernel_events"]
        last = self.last_events.get(status["pid"], 0)
        self.events += max(0, now - last)
        self.last_events = {status["pid"]: now}

    def line(self):
        status = soak_workers.status(self.manager.socket)
        if status:
            self.count_events(status)
        figures = [f"{time.monotonic() - self.began:5.0f} s",
                   f"{self.total('operations')} operations", f"{self.events} events",
                   f"{self.total('compared')} compared", f"{self.total('looked')} looked",
                   f"{self.total('wrong')} wrong", f"{self.total('lost')} LOST",
                   *(f"{self.counts[word]} {word}" for word in ("stops", *LEAST)),
                   f"{self.total('remounts')} remounts",
                   f"{len(status['sessions']) if status else '-'} sessions",
                   self.sizes()]
        print(", ".join(figures), flush=True)

    def sizes(self):
        pids = [self.manager.pid, *(server.process.pid for server in self.servers)]
        return (f"{'+'.join(str(resident(pid)) for pid in pids)} KiB, "
                f"{'+'.join(str(sum(descriptors(pid).values())) for pid in pids)} descriptors, "
                f"{len(mount_points())} mounts, {len(loop_devices())} loop devices")

    def rest(self):
        """Everybody pauses, and what the mounts showed is gone."""
        self.control.paused.set()
        end = time.monotonic() + 4 * SETTLED
        while not all(worker.resting.is_set() for worker in self.workers):
            self.look()
            if time.monotonic() > end:
                names = [one.name for one in self.workers if not one.resting.is_set()]
                raise AssertionError(f"they do not come to rest: {names}")
            time.sleep(0.05)
        for source, _ in self.sources:
            for folder in os.scandir(source):
                for one in os.scandir(folder.path):
                    shutil.rmtree(one.path) if one.is_dir(follow_symlinks=False) \
                        else os.unlink(one.path)
        for server in self.servers:
            server.sync()
        # What the kernel keeps of what is gone is not the servers' doing.
        daemon.write("/proc/sys/vm/drop_caches", b"2")

    def measure(self):
        """The size of everything at rest: the same situation each time."""
        self.rest()
        wanted = self.measured[0] if self.measured else None
        end = time.monotonic() + SETTLED
        before, unchanged = None, 0
        while True:
            status = soak_workers.status(self.manager.socket)
            now = {"sessions": len(status["sessions"]) if status else None,
                   "mounts": len(mount_points()), "loop devices": len(loop_devices())}
            for name, pid in self.pids():
                now[f"{name} descriptors"] = descriptors(pid)
            # What is being closed, and what is being forgotten, is not at rest yet.
            unchanged = unchanged + 1 if now == before else 0
            before = now
            is_settled = (all(same(key, wanted[key], value) for key, value in now.items())
                          if wanted else unchanged >= 5)
            if now["sessions"] == len(self.servers) and is_settled:
                break
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        for name, pid in self.pids():
            now[f"{name} KiB"] = resident(pid)
        now["process"] = self.manager.pid
        self.measured.append(now)
        print(f"at rest: {self.short(now)}", flush=True)
        self.control.paused.clear()

    def measure_if_due(self):
        """At a quarter of the time and at the half."""
        while len(self.measured) < 2 and self.part() >= (len(self.measured) + 1) / 4:
            self.measure()

    def pids(self):
        yield "hostwatchd", self.manager.pid
        for server, (_, events) in zip(self.servers, self.sources):
            yield f"hostwatchfs {events}", server.process.pid

    @staticmethod
    def short(measured):
        def figure(value):
            if not isinstance(value, dict):
                return str(value)
            gone = value.get("deleted", 0)
            return f"{sum(value.values())}{f' ({gone} of what is gone)' if gone else ''}"

        return ", ".join(f"{key} {figure(value)}" for key, value in measured.items())

    # Its way

    def run(self):
        self.make()
        self.began = time.monotonic()
        self.control.go.set()
        actions = self.actions()
        next_line = self.began + self.options.every
        while self.part() < 1 or not all(self.counts[word] for word in LEAST):
            next(actions)()
            pause = time.monotonic() + self.dice.uniform(0.1, 2.0)
            while time.monotonic() < pause:
                self.look()
                time.sleep(0.1)
            self.measure_if_due()
            if time.monotonic() > next_line:
                self.line()
                next_line += self.options.every
        self.measure_if_due()  # a slow machine may have had no time for it
        self.measure()
        self.control.stopped.set()
        for worker in self.workers:
            worker.process.join(60)
        self.line()
        for text in growth(self.measured):
            self.fail(text)
        self.finish()

    def finish(self):
        while not self.control.messages.empty():
            self.fail(self.control.messages.get())
        for word in LEAST:
            if not self.counts[word]:
                self.fail(f"no {word}")
        for figure in ("compared", "looked", "lost", "remounts", "packets"):
            if not self.total(figure):
                self.fail(f"nothing was counted as {figure}")
        if self.total("wrong") and not self.failures:
            self.fail("something was wrong")
        log = self.manager.log()
        for line in log.splitlines():
            if re.search("nothing can be handed over|cannot be used|cannot go on", line):
                self.fail(line)
        self.counts["overflows"] = len(re.findall("the kernel's queue of events overflowed", log))
        is_low = self.options.alone or self.counts["low"]
        if is_low and self.options.seconds >= LONG and not self.counts["overflows"]:
            self.fail("the kernel's queue was low and never overflowed")

    def close(self):
        """Ends what was started, however far it came."""
        if self.manager and self.manager.process and self.manager.process.poll() is None:
            self.manager.signal(signal.SIGCONT)  # others wait for it, if it is stopped just now
        if self.control:
            self.control.stopped.set()
            self.control.go.set()
        for worker in self.workers:
            if worker.process.pid is not None:
                worker.process.join(5)
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
        controls = [server.control for server in self.servers]
        for server in self.servers:
            try:
                server.unmount()
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                self.fail(f"hostwatchfs: {error}")
                server.kill()
        if self.manager:
            self.manager.close()
        for mount in self.filesystems:
            if os.path.ismount(mount.path):
                scratch.run("umount", mount.path)
            mount.remove()
        if self.options.alone:
            daemon.write(runner.SYSCTL, self.former_queue.encode())
        self.left_behind(controls)

    def left_behind(self, controls):
        end = time.monotonic() + 10
        while (left := [*(f"mount {one}" for one in mount_points()
                          if one not in self.mounted_before),
                        *loop_devices(), *processes(),
                        *filter(os.path.exists, controls)]):
            if time.monotonic() > end:
                self.fail("left behind:\n" + "\n".join(left))
                return
            time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--every", type=float, default=10, help="seconds between lines of figures")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--alone", action="store_true", help="no other tests run on this host")
    options = parser.parse_args()

    def interrupt(number, _frame):
        signal.signal(number, signal.SIG_IGN)
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    soak = Soak(options)
    print(f"soak for {options.seconds:.0f} s, seed {options.seed}", flush=True)
    try:
        soak.run()
    except Interrupted:
        soak.fail("interrupted")
    except Exception as error:
        soak.fail(f"{type(error).__name__}: {error}")
        if soak.manager:
            print(soak.manager.log()[-4000:], flush=True)
    finally:
        soak.close()
    print(", ".join([
        f"seed {options.seed}", f"{time.monotonic() - soak.began:.0f} s",
        *(f"{soak.total(word)} {word}" for word in soak_workers.FIGURES),
        f"{soak.events} events", *(f"{value} {word}" for word, value in soak.counts.items()),
        f"{len(soak.failures)} failures"]), flush=True)
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main())
