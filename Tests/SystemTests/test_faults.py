# SPDX-License-Identifier: Apache-2.0
"""Each system call of the daemon fails once: it goes on or ends with a clear error,
and no session believes something untrue. `make faults` runs them all."""

import os
import signal
import subprocess
import time
import unittest

import faults
import scratch
from daemon import DaemonTest, table, touch, write
from faults import ERRNOS, Fault, TracedDaemon, Violation, World, judge_end, read_sites
from hostwatch import NODES, TREE, WANT_PATH

ALL = os.environ.get("HOSTWATCH_FAULTS") == "all"
DELAY = 20000  # microseconds in which events gather


def configuration(world, shares=("share",)):
    return table(daemon={"log_level": "debug", "max_delay": "50ms"},
                 share=[{"name": name, "path": world.path(name)} for name in shares])


def start(world, fault, old=None, **options):
    """A daemon in this world, on the socket of an old one."""
    config = configuration(world)
    daemon = TracedDaemon(fault, config=config, calls=tuple(ERRNOS),
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


def reload(world):
    """A share more, and one less; the count of reloads says when it is done."""
    world.reload(("share", "outside"))
    world.reload(("share",))


STEPS = (make_names, move, move_in_and_out, merge, temporary, remove)


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


def run(world, fault, scenario):
    world.daemon = start(world, fault, stacks=fault is None)
    try:
        world.daemon.start()
    except AssertionError:
        status = world.daemon.exit_status
        if status is None or fault is None:
            raise
        world.is_told = True
        judge_end(status, world.daemon.log(), fault)
        world.logs.append(world.daemon.log())
        world.replace()
    scenario(world)
    daemon = world.daemon
    daemon.drain_notifications()
    daemon.signal(signal.SIGTERM)
    for party in world.parties:
        party.expect_end()
    status = daemon.wait()
    if status != 0:
        judge_end(status, daemon.log(), fault)


class Faults(unittest.TestCase):
    limit = 3600 if ALL else 180

    @classmethod
    def setUpClass(cls):
        faults.require()
        cls.mount = scratch.shared("ext4")

    def world(self, fault=None):
        world = FaultWorld(self.mount, fault, start)
        self.addCleanup(world.close)
        return world

    def test_serving(self):
        world = self.world()
        run(world, None, serve)
        sites = read_sites(world.daemon.trace, os.path.basename(faults.binary()))
        world.close()
        wrong, hit, silent = [], 0, []
        plan = []
        for site in sites:
            codes = ERRNOS[site.call]
            for code in codes if ALL else codes[:1]:
                plan.append(Fault(site, site.numbers[0], code))
        print(f"{len(sites)} sites, {len(plan)} faults", flush=True)
        for fault in plan:
            world = self.world(fault)
            began = time.monotonic()
            try:
                run(world, fault, serve)
            except (Violation, AssertionError, OSError) as error:
                wrong.append(f"{fault}\n    {fault.site.shown}\n{type(error).__name__} {error}")
                print("VIOLATION", wrong[-1], flush=True)
            hit += bool(world.daemon.was_hit)
            said = fault.code in world.log() or os.strerror(fault.errno) in world.log()
            if os.environ.get("HOSTWATCH_FAULTS_SHOW"):
                print(f"{'said' if said else 'told' if world.is_told else 'silent':8} "
                      f"{'' if world.daemon.was_hit or world.logs else 'NOT HIT '}{time.monotonic() - began:.2f} {fault}   {fault.site.shown}", flush=True)
            world.close()
        self.assertEqual(wrong, [], f"{len(wrong)} of {len(plan)}")
