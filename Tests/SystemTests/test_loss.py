# SPDX-License-Identifier: Apache-2.0
"""What was lost is looked for, and nothing else: the kernel's queue, a session's queue,
a daemon that was killed."""

import os
import random
import select
import shutil
import signal
import time
import unittest

import handles
import scratch
from daemon import Daemon, DaemonTest, binary, granted, table, touch, write
from histories import Server, Watch, Writer, stop
from hostwatch import (ATTRIB, CREATE, DELETE_SELF, MOVED_IN, MOVED_OUT, RECHECK, REGISTER, RENAME,
                       NODES, ROOT, TREE, Client, Lost, Record, Resynced, batch, register_entry)
from model import TreeModel
from runner import SYSCTL, read_limit
from soak_manager import Manager

QUEUE = 500  # events in the kernel's queue
_REALTIME_COARSE = 5
_TICK = 0.02  # more than one of the coarse clock


def now():
    """The moment at which a client says that it knows everything."""
    return time.clock_gettime_ns(_REALTIME_COARSE) - 1


class LossTest(DaemonTest):
    exclusive = True  # of the sysctl
    limit = 120

    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("needs root")
        cls.mount = scratch.shared(cls.kind or "ext4")

    def small_queue(self, size=QUEUE, **daemon):
        """A daemon whose kernel queue is small, and which may not raise it."""
        self.addCleanup(write, SYSCTL, read_limit().encode())
        write(SYSCTL, str(size).encode())
        return self.start(config=table(daemon={"queue_events": size, **daemon}))

    def start(self, **fields):
        daemon = Daemon(**fields)
        self.addCleanup(daemon.kill)
        return daemon

    def fill_queue(self, size=QUEUE):
        """More events than the kernel's queue holds, none about the share."""
        for number in range(size + 100):
            touch(os.path.join(self.outside, f"filler{number}-{time.monotonic_ns()}"))

    def registered(self, client, paths, first=10):
        """Registers them as nodes `first`, …: path → node."""
        nodes = {}
        for at in range(0, len(paths), 250):
            part = paths[at:at + 250]
            fds = [os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in part]
            entries = []
            for path in part:
                nodes[path] = (first + len(nodes), 3)
                entries.append(register_entry(*nodes[path]))
            self.assertFalse(any(client.register(entries, fds)))
            for fd in fds:
                os.close(fd)
        return nodes

    def told(self, taken):
        """(nodes that were to be looked at again, nodes that are gone), and that
        nothing else was said."""
        records = [one for one in taken if isinstance(one, Record)]
        looked = [one.node for one in records if one.flags & RECHECK]
        gone = [one.node for one in records if one.mask & DELETE_SELF]
        self.assertEqual(len(looked) + len(gone), len(records), [str(one) for one in records])
        self.assertEqual(len(looked), len(set(looked)), "looked at twice")
        return set(looked), set(gone)


class PopulationTest(LossTest):
    """A share with some contents, and changes to some of them."""

    def population(self, directories=20, files=40):
        paths = []
        for directory in range(directories):
            path = self.path(f"d{directory}")
            os.mkdir(path)
            paths.append(path)
            for number in range(files):
                touch(os.path.join(path, f"f{number}"))
                paths.append(os.path.join(path, f"f{number}"))
        return paths

    def change(self, dice):
        """Changes some of the population: (paths that changed and are still there, by
        their old names; paths of what is gone)."""
        changed, gone = set(), set()

        def of(directory):
            for number in dice.sample(range(40), 4):
                yield self.path(f"d{directory}", f"f{number}")

        for path in of(0):
            os.chmod(path, 0o600)
            changed.add(path)
        for path in of(1):
            write(path, b"more", "ab")
            changed.add(path)
        for path in of(2):
            os.unlink(path)
            gone.add(path)
            changed.add(self.path("d2"))
        for path in of(3):
            os.rename(path, path + "new")
            changed |= {path, self.path("d3")}
        for path in of(4):
            os.rename(path, self.path("d5", os.path.basename(path)))
            gone.add(self.path("d5", os.path.basename(path)))
            changed |= {path, self.path("d4"), self.path("d5")}
        for path in of(6):
            os.link(path, os.path.join(self.outside, f"link{time.monotonic_ns()}"))
            changed.add(path)
        a, b, *_ = of(7)
        handles.exchange(a, b)
        # xfs leaves the ctime of files alone when they change places.
        changed |= {self.path("d7")} if self.kind == "xfs" else {a, b, self.path("d7")}
        for path in of(8):
            os.rename(path, os.path.join(self.outside, f"out{time.monotonic_ns()}"))
            changed |= {path, self.path("d8")}
        touch(self.path("d9", "fresh"))
        changed.add(self.path("d9"))
        for number in range(40):
            os.unlink(self.path("d10", f"f{number}"))
            gone.add(self.path("d10", f"f{number}"))
        os.rmdir(self.path("d10"))
        gone.add(self.path("d10"))
        os.rename(self.path("d11"), self.path("renamed"))
        changed.add(self.path("d11"))
        return changed, gone


@scratch.on_each_filesystem
class Loss(PopulationTest):
    def compare(self, nodes, taken, changed, gone, of_root=True):
        name = {node: os.path.relpath(path, self.share) for path, node in nodes.items()}
        name[ROOT] = "/"
        looked, ended = self.told(taken)
        wanted = {name[nodes[path]] for path in changed} | ({"/"} if of_root else set())
        self.assertEqual(sorted(name[node] for node in looked), sorted(wanted))
        self.assertEqual(sorted(name[node] for node in ended),
                         sorted(name[nodes[path]] for path in gone))
        return len(looked) + len(ended)

    def test_kernel_queue(self):
        """Exactly what changed or went is reported."""
        dice = random.Random(5)
        daemon = self.small_queue()
        paths = self.population()
        client = daemon.session(self.share)
        self.addCleanup(client.close)
        watch = Watch(daemon, self.base)
        self.addCleanup(watch.close)
        nodes = self.registered(client, paths)
        # One that is unlinked while somebody has it open is not gone yet.
        open_one = self.path("d12", "f0")
        held = os.open(open_one, os.O_RDONLY)
        time.sleep(_TICK)
        client.sync()
        stop(daemon)
        self.fill_queue()
        changed, gone = self.change(dice)
        os.unlink(open_one)
        changed |= {open_one, self.path("d12")}
        daemon.signal(signal.SIGCONT)
        taken = client.sync()
        kinds = [type(one) for one in taken if not isinstance(one, Record)]
        self.assertEqual(kinds, [Lost, Resynced])
        reported = self.compare(nodes, taken, changed, gone)
        self.assertEqual(taken[0], Lost(1, 0))
        resynced = taken[-1]
        self.assertEqual((resynced.checked, resynced.reported), (len(nodes) + 1, reported))
        self.assertEqual(watch.check(), "")
        for model in watch.models:
            self.assertEqual([one.reason for one in model.history if isinstance(one, Lost)], [1])
        tree = [one for one in watch.models[0].history if isinstance(one, Resynced)]
        self.assertEqual([(one.checked, one.reported) for one in tree], [(0, 0)])
        os.close(held)
        last = client.records()
        self.assertTrue(last and last[-1].mask & DELETE_SELF and last[-1].node == nodes[open_one],
                        [str(one) for one in last])
        os.chmod(self.path("d13", "f1"), 0o600)
        self.assertEqual([(one.mask, one.node) for one in client.records()],
                         [(ATTRIB, nodes[self.path("d13", "f1")])])
        self.assertEqual(watch.check(), "")
        daemon.stop()

    def test_session_queue(self):
        """A session that does not read: LOST 2, and nothing untouched is reported."""
        daemon = self.start()
        paths = self.population()
        slow = daemon.session(self.share, queue_limit=65536, max_packet=4096)
        self.addCleanup(slow.close)
        nodes = self.registered(slow, paths)
        time.sleep(_TICK)
        slow.sync()
        # The reader of this one makes the daemon read and queue for the slow one.
        other = daemon.session(self.share)
        self.addCleanup(other.close)
        self.registered(other, paths)
        time.sleep(_TICK)
        other.sync()
        storm = [self.path("d15", f"f{number}") for number in range(40)]
        for turn in range(120):
            for path in storm:
                os.chmod(path, 0o600 + turn % 8)
            other.sync()
        changed, gone = self.change(random.Random(6))
        other.sync()
        taken = slow.sync()
        kinds = [type(one) for one in taken if not isinstance(one, Record)]
        self.assertEqual(kinds, [Lost, Resynced])
        lost = next(at for at, one in enumerate(taken) if isinstance(one, Lost))
        self.assertEqual(taken[lost].reason, 2)
        resync = taken[lost + 1:taken.index(next(
            one for one in taken if isinstance(one, Resynced)))]
        resync = [one for one in resync if one.flags & RECHECK or not one.dir[0]]
        reported = {one.node for one in resync}
        may = {nodes[path] for path in (*changed, *gone, *storm)} | {ROOT}
        must = {nodes[path] for path in (*changed, *gone)}
        self.assertEqual(reported - may, set(), "untouched")
        told = {node for one in taken if isinstance(one, Record)
                for node in (one.node, one.dir, one.new_dir)}
        name = {node: os.path.relpath(path, self.share) for path, node in nodes.items()}
        self.assertEqual(sorted(name[node] for node in must - told), [])
        ended = {one.node for one in taken if isinstance(one, Record) and one.mask & DELETE_SELF}
        self.assertEqual(ended, {nodes[path] for path in gone})
        daemon.stop()

    def test_register_into_a_full_queue(self):
        """A RECHECK that has no room comes with the resync, which reports nothing else for
        its sake."""
        daemon = self.start()
        paths = [self.path(f"f{number}") for number in range(300)]
        for path in paths:
            touch(path)
        late, later = paths[-2:]
        slow = daemon.session(self.share, queue_limit=65536, max_packet=4096)
        self.addCleanup(slow.close)
        nodes = self.registered(slow, paths[:-2])
        other = daemon.session(self.share)
        self.addCleanup(other.close)
        time.sleep(_TICK + 0.01)  # what was under way before is reported with a margin
        slow.sync()
        for turn in range(120):
            for path in paths[:40]:
                os.chmod(path, 0o600 + turn % 8)
            other.sync()
        self.assertTrue(next(one for one in other.status()["sessions"]
                             if one["id"] == slow.granted.session)["dropped"])
        uniques = []
        for number, path in ((8000, late), (8001, later)):
            fd = os.open(path, os.O_PATH)
            # It is later than the one moment, and not than the other.
            since = (1, 0) if path == late else (time.time_ns() // 10**9 + 60, 0)
            uniques.append(slow.send(REGISTER, batch([register_entry(number, 3, since=since)]),
                                     (fd,)))
            os.close(fd)
        other.sync()
        for unique in uniques:
            self.assertEqual(slow.wait_reply(unique).statuses(), [0])
        taken = slow.sync()
        self.assertEqual([type(one) for one in taken if not isinstance(one, Record)],
                         [Lost, Resynced])
        lost = next(at for at, one in enumerate(taken) if isinstance(one, Lost))
        looked = {one.node for one in taken[lost:] if isinstance(one, Record)
                  and one.flags & RECHECK}
        self.assertIn((8000, 3), looked)
        self.assertEqual(looked - {nodes[path] for path in paths[:40]}, {(8000, 3)}, "untouched")
        self.assertEqual(taken[-1].reported, len(looked))
        daemon.stop()

    def test_killed(self):
        """kill -9 during a storm: after the restart, since says it all."""
        daemon = self.start()
        paths = self.population()
        model = Server(daemon.session(self.share), self.share)
        self.addCleanup(model.close)
        self.assertEqual(model.check(), "")
        node = {os.path.relpath(path, self.share): model.nodes[handles.handle_of(path)]
                for path in paths}
        time.sleep(_TICK)
        since = now()
        self.assertEqual(model.check(), "")
        before = len(model.history)
        time.sleep(_TICK)
        for number in range(300):
            touch(os.path.join(self.outside, f"storm{number}"))
        os.kill(daemon.pid, signal.SIGKILL)
        changed, gone = self.change(random.Random(7))
        daemon.kill()
        model.client.close()
        again = self.start(socket_path=daemon.socket)
        # What is gone cannot be opened: the client sees that by itself.
        lost = model.reconnect(again.session(self.share), since)
        self.addCleanup(lambda: model.client.close())
        self.assertEqual(lost, {node[os.path.relpath(path, self.share)] for path in gone})
        told = model.client.sync()
        looked, ended = self.told(told)
        self.assertEqual(ended, set())
        name = {value: key for key, value in node.items()}
        self.assertEqual(sorted(name[one] for one in looked),
                         sorted(os.path.relpath(path, self.share) for path in changed))
        model.apply_all(told)
        self.assertEqual(model.check(), "")
        os.chmod(self.path("d13", "f1"), 0o600)
        self.assertEqual(model.check(), "")
        self.assertGreater(len(model.history), before)
        again.stop()

    def test_killed_under_writers(self):
        """The same while others never stop changing things."""
        writers = [Writer(self.base, number, "abc/pq") for number in range(2)]
        for writer in writers:
            self.addCleanup(writer.close)
        daemon = self.start()
        model = Server(daemon.session(self.share), self.share)
        self.addCleanup(model.close)
        for _ in range(5):
            for writer in writers:
                writer.begin("run", "3000")
            since = now()
            model.apply_all(model.client.sync())
            daemon.kill()
            model.client.close()
            daemon = self.start(socket_path=daemon.socket)
            model.reconnect(daemon.session(self.share), since)
            for writer in writers:
                while not select.select([writer], [], [], 0)[0]:
                    model.apply_all(model.client.sync())
                self.assertEqual(writer.end(), 0)
            self.assertEqual(model.check(), "")
        model.client.close()
        daemon.stop()


class LostMoves(LossTest):
    def test_directories_that_moved_in_a_gap(self):
        """The daemon does not know either where a directory went while records were lost."""
        daemon = self.small_queue()
        came, went = os.path.join(self.outside, "came"), self.path("went")
        for path in (came, went):
            os.makedirs(os.path.join(path, "below"))
        client = daemon.session(self.share, TREE)
        self.addCleanup(client.close)
        model = TreeModel(client, self.share)
        for path in (came, went):  # the daemon has to know where they are
            touch(os.path.join(path, "below", "f"))
        self.assertEqual(model.check(), "")
        stop(daemon)
        self.fill_queue()
        os.rename(came, self.path("came"))
        os.rename(went, os.path.join(self.outside, "went"))
        daemon.signal(signal.SIGCONT)
        self.assertEqual(model.check(), "")
        self.assertTrue(any(isinstance(one, Lost) for one in model.history))
        def names(change):
            before = len(model.history)
            change()
            self.assertEqual(model.check(), "")
            return [(one.mask & (CREATE | RENAME), one.flags & (MOVED_IN | MOVED_OUT))
                    for one in model.history[before:]
                    if isinstance(one, Record) and one.mask & (CREATE | RENAME)]

        self.assertEqual(names(lambda: touch(self.path("came/below/g"))), [(CREATE, 0)])
        self.assertEqual(names(lambda: touch(os.path.join(self.outside, "went/below/g"))), [])
        self.assertEqual(names(lambda: os.rename(os.path.join(self.outside, "went/below"),
                                                 self.path("came/there"))), [(RENAME, MOVED_IN)])
        self.assertEqual(names(lambda: os.rename(self.path("came/below"),
                                                 os.path.join(self.outside, "below"))),
                         [(RENAME, MOVED_OUT)])


class HoleBehindAnOverflow(LossTest):
    SIZE = 30000  # more than is read at once
    FILES = 1500

    def test_it_is_in_the_gap(self):
        """The kernel tells of one overflow at a time: while that is in the queue others may
        be behind it, between records that are told."""
        # It reads for a moment in each half of a second.
        daemon = self.small_queue(self.SIZE, max_delay="500ms")
        for number in range(self.FILES):
            touch(self.path(f"f{number}"))
        client = daemon.session(self.share, TREE, max_delay_us=500000)
        self.addCleanup(client.close)
        model = TreeModel(client, self.share)
        nodes = Server(daemon.session(self.share, max_delay_us=500000), self.share)
        self.addCleanup(nodes.close)
        self.addCleanup(nodes.client.close)
        before, holes, within = "f", 0, 0
        overflows = 0
        for attempt in range(4):  # how much is read between two signals is chance
            if holes and within:
                break
            shutil.rmtree(self.outside)
            os.mkdir(self.outside)
            for one in (model, nodes):
                self.assertEqual(one.check(), "")
            stop(daemon)
            self.fill_queue(self.SIZE)
            daemon.signal(signal.SIGCONT)
            time.sleep(0.6 + attempt * 0.5)  # it reads some of it
            stop(daemon)
            for name in (f"{attempt}a", f"{attempt}b"):
                for number in range(self.FILES):
                    os.rename(self.path(f"{before}{number}"), self.path(f"{name}{number}"))
                    for filler in range(4):  # so that reading it takes a while
                        touch(os.path.join(self.outside, f"{name}{number}.{filler}"))
                before = name
            told = len(model.history)
            daemon.signal(signal.SIGCONT)
            late = self.newcomers(daemon, overflows)
            for one in (model, nodes, *late):
                self.assertEqual(one.check(), "")
            overflows = self.overflows(nodes.client)
            story = [one for one in model.history[told:] if isinstance(one, (Lost, Record))]
            first = next(at for at, one in enumerate(story) if isinstance(one, Lost))
            renames = [at for at, one in enumerate(story)
                       if isinstance(one, Record) and one.mask & RENAME]
            self.assertFalse([at for at in renames if at < first], "told before the loss was")
            holes += 0 < len(renames) < 2 * self.FILES
            within += sum(any(isinstance(line, Lost) for line in one.history) for one in late)
            for one in late:
                one.client.close()
        print(f"{holes} had a hole, {within} sessions began in a gap", flush=True)
        self.assertGreater(holes, 0, "it has read all, or nothing, each time")
        self.assertGreater(within, 0, "no session began in a gap")

    @staticmethod
    def overflows(client):
        return sum(one["overflows"] for one in client.status()["filesystems"])

    def newcomers(self, daemon, overflows):
        """Sessions that begin when the daemon has read of the overflow, and read the tree later
        than that."""
        client = daemon.connect()
        self.addCleanup(client.close)
        end = time.monotonic() + 4
        while self.overflows(client) == overflows and time.monotonic() < end:
            time.sleep(0.01)
        clients = [client]
        for _ in range(2):
            clients.append(daemon.connect())
            self.addCleanup(clients[-1].close)
        for client in clients:
            granted(client, self.share, TREE)
        return [TreeModel(client, self.share) for client in clients]


class SharedQueue(LossTest):
    """One user's sessions share a limit; who reads does not pay for who does not."""

    def test_beside_sessions_that_do_not_read(self):
        daemon = self.start(config=table(
            daemon={"socket_mode": "0666"}, limits={"queue_per_user": "1MiB"}))
        os.chmod(self.share, 0o755)
        paths = [self.path(f"f{number}") for number in range(3000)]
        for path in paths:
            touch(path)

        def session(**fields):
            client = daemon.unprivileged()
            self.addCleanup(client.close)
            fd = os.open(self.share, os.O_RDONLY | os.O_DIRECTORY)
            client.init(fd=fd, **fields)
            os.close(fd)
            for at in range(0, len(paths), 250):
                fds = [os.open(path, os.O_RDONLY) for path in paths[at:at + 250]]
                self.assertFalse(any(client.register(
                    [register_entry(10 + at + number, 3) for number in range(len(fds))], fds)))
                for fd in fds:
                    os.close(fd)
            return client

        stuck, reader = [session() for _ in range(2)], session()
        admin = daemon.session(self.share)
        self.addCleanup(admin.close)
        time.sleep(_TICK)
        reader.sync()

        def is_full():
            return all(one["dropped"] for one in admin.status()["sessions"]
                       if one["id"] in [client.granted.session for client in stuck])

        mode, told = 0, []
        while not is_full():
            mode += 1
            for path in paths[:500]:
                os.chmod(path, 0o600 + mode % 8)
            admin.sync()
            told += reader.sync()
            self.assertLess(mode, 200)
        # The share is used up, and the reader goes on.
        for turn in range(20):
            for path in paths[500:600]:
                os.chmod(path, 0o600 + turn % 8)
            told += reader.sync()
        self.assertFalse([one for one in told if isinstance(one, Lost)])
        self.assertGreaterEqual({one.node for one in told if isinstance(one, Record)},
                                {(10 + number, 3) for number in range(500, 600)})
        # It loses something itself, and all it holds has changed.
        for path in paths:
            os.chmod(path, 0o640)
        admin.sync()
        for path in paths:
            os.chmod(path, 0o600)
        admin.sync()
        taken = reader.wait_for(Lost)
        # Nor does it cost anything while nobody reads.
        before = self.cpu(daemon)
        time.sleep(0.5)
        self.assertLess(self.cpu(daemon) - before, 0.25)
        taken += reader.sync()
        self.assertEqual([type(one) for one in taken if not isinstance(one, Record)],
                         [Lost, Resynced])
        looked = [one.node for one in taken if isinstance(one, Record) and one.flags & RECHECK]
        # It may lose again while it is resynced, but it does not begin again for ever.
        self.assertGreaterEqual(set(looked), {(10 + number, 3) for number in range(len(paths))})
        self.assertLess(len(looked), 3 * len(paths))
        self.assertEqual(taken[-1].checked, len(paths) + 1)
        for client in stuck:
            self.assertTrue(any(isinstance(one, Lost) for one in client.sync()))

    @staticmethod
    def cpu(daemon):
        """Seconds that it has used."""
        with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class StandingQueue(LossTest):
    def test_a_client_whose_queue_is_never_empty(self):
        """It keeps pace, and is resynced."""
        daemon = self.start()
        # More than half a queue and the socket's buffer hold.
        paths = [self.path(f"f{number}") for number in range(12000)]
        for path in paths:
            touch(path)
        slow = daemon.session(self.share, queue_limit=1 << 20)
        self.addCleanup(slow.close)
        self.registered(slow, paths)
        other = daemon.session(self.share)
        self.addCleanup(other.close)
        time.sleep(_TICK)
        slow.sync()

        def storm(first, count, mode):
            for path in paths[first:first + count]:
                os.chmod(path, mode)
            other.sync()
            return next(one for one in other.status()["sessions"]
                        if one["id"] == slow.granted.session)

        turn = 0
        while not storm(0, 12000, 0o600 + turn % 8)["dropped"]:
            turn += 1
        storm(0, 12000, 0o640)
        slow.wait_for(Lost)
        # What waits is kept between nothing and half.
        end = time.monotonic() + 30
        while not any(isinstance(one, Resynced) for one in slow.inbox):
            self.assertLess(time.monotonic(), end, "it is not resynced")
            turn += 1
            if storm(11990, 10, 0o600 + turn % 8)["queue_bytes"] > 1 << 18:
                slow.receive()


class QueueOverARestart(LossTest):
    def test_a_queue_that_stays_as_it_was_is_said(self):
        self.addCleanup(write, SYSCTL, read_limit().encode())
        config = scratch.new_path("config")
        write(config, table(daemon={"queue_events": 5000}).encode())
        manager = Manager(scratch.new_path("manager"),
                          [binary(), "--config", config, "--log-target", "stderr"],
                          os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"})
        self.addCleanup(manager.close)
        write(SYSCTL, b"5000")
        manager.start()
        client = granted(Client(manager.socket), self.share, NODES)
        self.addCleanup(client.close)

        def limits():
            return [one["queue_limit"] for one in client.status()["filesystems"]]

        self.assertEqual(limits(), [5000])
        manager.restart()
        self.assertEqual(limits(), [5000])
        self.assertNotIn("its queue holds", manager.log())
        write(SYSCTL, b"6000")
        manager.restart()
        self.assertEqual(limits(), [5000])
        self.assertIn("its queue holds 5000 events", manager.log())


class SecondLoss(LossTest):
    def test_second_overflow(self):
        """An overflow while the resync runs: one LOST, one RESYNCED, and all is said
        again that changed since the first."""
        daemon = self.small_queue()
        os.mkdir(self.path("d"))
        paths = [self.path("d", str(number)) for number in range(20000)]
        for path in paths:
            touch(path)
        client = daemon.session(self.share)
        self.addCleanup(client.close)
        nodes = self.registered(client, paths)
        for attempt in range(5):
            time.sleep(_TICK)
            client.sync()
            stop(daemon)
            self.fill_queue()
            first = paths[attempt * 20:attempt * 20 + 10]
            second = paths[-attempt * 20 - 10:][:10]
            for path in first:
                os.chmod(path, 0o600 + attempt)
            daemon.signal(signal.SIGCONT)
            taken = client.wait_for(Lost)
            stop(daemon)
            # Early in the order of the nodes, so that the first pass has looked at some.
            for path in second + first[:5]:
                os.chmod(path, 0o640 + attempt)
            self.fill_queue()
            for path in second + first[:5]:
                os.chmod(path, 0o600 + attempt)
            early = client.inbox + self.pending(client)
            client.inbox = []
            daemon.signal(signal.SIGCONT)
            taken += early + client.sync()
            if any(isinstance(one, Resynced) for one in early):
                continue
            kinds = [type(one) for one in taken if not isinstance(one, Record)]
            self.assertEqual(kinds, [Lost, Resynced])
            after = [one for one in taken[len(early) + 1:] if isinstance(one, Record)]
            looked = {one.node for one in after if one.flags & RECHECK}
            wanted = {nodes[path] for path in second + first[:5]}
            self.assertLessEqual(wanted, looked)
            told = {one.node for one in taken
                    if isinstance(one, Record) and one.flags & RECHECK}
            self.assertEqual(told, {nodes[path] for path in first + second})
            resynced = next(one for one in taken if isinstance(one, Resynced))
            self.assertEqual(resynced.checked, len(nodes) + 1)
            with daemon.connect() as other:
                self.assertEqual(sum(one["overflows"] for one in other.status()["filesystems"]),
                                 2 * attempt + 2)
            daemon.stop()
            return
        self.fail("the resync was always quicker")

    @staticmethod
    def pending(client):
        """What has come and was not read."""
        while select.select([client], [], [], 0)[0]:
            client.receive()
        return client.take()
