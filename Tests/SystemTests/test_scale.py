# SPDX-License-Identifier: Apache-2.0
"""Many sessions, many nodes, and the filesystems that need more than a mark."""

import contextlib
import os
import random
import subprocess
import sys
import time

import scratch
from daemon import Daemon, DaemonTest, touch, write
from hostwatch import (CREATE, DELETE, DELETE_SELF, MODIFY, NODES, RECHECK, TREE,
                       register_entry)
from model import NodesModel, TreeModel
from soak_sizes import resident
from test_daemon import ProcessTest


RENAMES = """
import os, sys
a, b = sys.argv[1] + "/a", sys.argv[1] + "/b"
while True:
    os.rename(a, b)
    os.rename(b, a)
"""


class RenameStorm(ProcessTest):
    """Almost every read ends with a RENAME, behind which the next one is queued already."""

    def test_it_is_told_meanwhile(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        client = daemon.session(self.share, TREE)
        other = daemon.session(self.share)
        for one in (client, other):
            self.addCleanup(one.close)
        with contextlib.ExitStack() as stack:
            for name in "xyz":
                os.mkdir(self.path(name))
                touch(self.path(name, "a"))
                storm = stack.enter_context(
                    subprocess.Popen([sys.executable, "-c", RENAMES, self.path(name)]))
                stack.callback(storm.kill)
            seen = 0
            before = resident(daemon.pid)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                other.sync()
                seen += len(client.records())
            self.assertGreater(seen, 1000)
            self.assertLess(resident(daemon.pid) - before, 65536, "KiB")


class Many(ProcessTest):
    def test_thousand_sessions(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        touch(self.path("f"))
        clients = []
        for number in range(1000):
            client = daemon.session(self.share, events=CREATE | DELETE | MODIFY)
            self.addCleanup(client.close)
            clients.append(client)
        for client in clients[::10]:
            self.assertEqual(client.register_path(self.path("f"), 5, 5), 0)
        for client in clients:
            client.sync()
        write(self.path("f"))
        touch(self.path("g"))
        for number, client in enumerate(clients):
            records = client.records()
            nodes = {record.node for record in records if record.mask & MODIFY}
            self.assertEqual(nodes, {(5, 5) if number % 10 == 0 else (0, 0)})
            self.assertIn(b"g", [record.name for record in records if record.mask & CREATE])
        daemon.stop()

    def test_hundred_thousand_nodes(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        total, per_directory = 100_000, 1000
        client = daemon.session(self.share)
        self.addCleanup(client.close)
        nodeid = 1
        for directory in range(total // per_directory):
            path = self.path(f"d{directory}")
            os.mkdir(path)
            dirfd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            for number in range(per_directory - 1):
                os.mknod(str(number), dir_fd=dirfd)
            names = ["."] + [str(number) for number in range(per_directory - 1)]
            client.sync()
            for at in range(0, per_directory, 250):
                fds = [os.open(name, os.O_PATH, dir_fd=dirfd) for name in names[at:at + 250]]
                entries = []
                for _ in fds:
                    nodeid += 1
                    entries.append(register_entry(nodeid, nodeid * 7))
                self.assertFalse(any(client.register(entries, fds)))
                for fd in fds:
                    os.close(fd)
            os.close(dirfd)
        client.sync()
        self.assertEqual(nodeid, total + 1)

        def node(directory, number):  # number -1 is the directory itself
            first = 2 + directory * per_directory
            return first + number + 1, (first + number + 1) * 7

        dice = random.Random(3)
        for _ in range(300):
            directory = dice.randrange(total // per_directory)
            number = dice.randrange(per_directory - 1)
            path = self.path(f"d{directory}", str(number))
            if os.path.exists(path):
                write(path)
                records = client.records()
                self.assertTrue(records)
                for record in records:
                    self.assertEqual((record.dir, record.node, record.name),
                                     (node(directory, -1), node(directory, number),
                                      str(number).encode()))
                os.unlink(path)
                last = client.records()[-1]
                self.assertTrue(last.mask & DELETE_SELF)
                self.assertEqual(last.node, node(directory, number))
        daemon.stop()


    def test_end_of_a_large_session(self):
        """Its nodes go in slices; meanwhile others get theirs, and who comes next on
        the same objects gets its own."""
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        names = [f"f{number}" for number in range(9000)]
        for name in names:
            touch(self.path(name))
        other = daemon.session(self.share)
        self.addCleanup(other.close)
        self.assertEqual(other.register_path(self.path("f7"), 7, 1), 0)
        for generation in range(2, 5):
            large = daemon.session(self.share)
            for at in range(0, len(names), 250):
                fds = [os.open(self.path(name), os.O_PATH) for name in names[at:at + 250]]
                entries = [register_entry(at + number + 10, generation)
                           for number in range(len(fds))]
                self.assertFalse(any(large.register(entries, fds)))
                for fd in fds:
                    os.close(fd)
            write(self.path("f7"))
            # A REGISTER within a second of the last write may be answered with a RECHECK of others.
            told = {record.node for record in large.records() if not record.flags & RECHECK}
            self.assertEqual(told, {(17, generation)})
            self.assertEqual({record.node for record in other.records()}, {(7, 1)})
            large.close()
            write(self.path("f7"))
            self.assertEqual({record.node for record in other.records()}, {(7, 1)})
        daemon.stop()


class Overlay(DaemonTest):
    kind = "tmpfs"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        below = cls.mount
        cls.mount = scratch.Overlay(below)
        os.makedirs(os.path.join(cls.mount.top, "lower/old/below"))
        write(os.path.join(cls.mount.top, "lower/old/below/f"))
        cls.mount.mount()

    def test_nodes(self):
        client = self.session(root=self.mount.path)
        file = os.path.join(self.mount.path, "old/below/f")
        self.assertEqual(client.register_path(os.path.dirname(file), 4), 0)
        self.assertEqual(client.register_path(file, 5, 5), 0)
        client.sync()
        write(file)  # copied up, and still the same object
        changed = [record for record in client.records() if record.mask & MODIFY]
        self.assertTrue(changed)
        self.assertEqual({(record.node, record.name) for record in changed}, {((5, 5), b"f")})

    def test_model(self):
        model = NodesModel(self.session(root=self.share), self.share)
        self.addCleanup(model.close)
        os.makedirs(self.path("a/b"))
        touch(self.path("a/b/c"))
        self.assertEqual(model.check(), "")
        os.rename(self.path("a"), self.path("z"))
        touch(self.path("z/b/d"))
        self.assertEqual(model.check(), "")
        self.run_reading(["rm", "-rf", self.path("z")], model.client)
        self.assertEqual(model.check(), "")


class Subvolume(DaemonTest):
    """A share that is a btrfs subvolume, whose path itself refuses the mark."""

    kind = "btrfs"

    def setUp(self):
        super().setUp()
        self.volume = os.path.join(self.base, "volume")
        try:
            scratch.run("btrfs", "subvolume", "create", self.volume)
        except (RuntimeError, FileNotFoundError) as error:
            self.skipTest(str(error))
        self.addCleanup(scratch.run, "btrfs", "subvolume", "delete", self.volume)

    def test_events(self):
        tree = TreeModel(self.session(TREE, root=self.volume), self.volume)
        nodes = NodesModel(self.session(NODES, root=self.volume), self.volume)
        self.addCleanup(nodes.close)
        os.makedirs(os.path.join(self.volume, "d/e"))
        touch(os.path.join(self.volume, "d/e/f"))
        os.rename(os.path.join(self.volume, "d/e"), os.path.join(self.volume, "e"))
        touch(os.path.join(self.outside, "elsewhere"))
        for model in (tree, nodes):
            self.assertEqual(model.check(), "")

    def test_snapshot_is_another(self):
        """A snapshot repeats inode number and generation; its objects are others."""
        touch(os.path.join(self.volume, "f"))
        snapshot = os.path.join(self.base, "snapshot")
        scratch.run("btrfs", "subvolume", "snapshot", self.volume, snapshot)
        self.addCleanup(scratch.run, "btrfs", "subvolume", "delete", snapshot)
        client = self.session(NODES, root=self.volume)
        self.assertEqual(client.register_path(os.path.join(self.volume, "f"), 5), 0)
        self.assertEqual(client.register_path(os.path.join(snapshot, "f"), 6), 0)
        client.sync()
        write(os.path.join(snapshot, "f"))
        self.assertEqual({record.node for record in client.records()}, {(6, 0)})
        write(os.path.join(self.volume, "f"))
        self.assertEqual({record.node for record in client.records()}, {(5, 0)})
