# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: its socket, configuration, signals and mounts."""

import os
import signal
import subprocess
import time
import unittest

import scratch
from daemon import Daemon, DaemonTest, binary, table, touch, write
from fusefs import wait_until
from hostwatch import (ACCESS, CREATE, DEFAULT, DELETE_SELF, OPEN, TREE, Detached, Lost,
                       Record, Refused)
from model import NodesModel, TreeModel


class ProcessTest(DaemonTest):
    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("needs root")
        cls.mount = scratch.shared("ext4")

    def start(self, *arguments, **fields):
        daemon = Daemon(*arguments, **fields)
        self.addCleanup(daemon.kill)
        return daemon

    def ends_with(self, status, daemon):
        daemon.spawn()
        self.assertEqual(daemon.wait(), status, daemon.log())
        return daemon.log()


class Socket(ProcessTest):
    def test_stop(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            daemon = self.start({"s": self.share})
            self.assertTrue(os.path.exists(daemon.socket))
            daemon.signal(number)
            self.assertEqual(daemon.wait(), 0, daemon.log())
            self.assertFalse(os.path.exists(daemon.socket))

    def test_one_daemon_per_socket(self):
        first = self.start()
        client = first.session(self.share)
        self.addCleanup(client.close)
        second = Daemon(socket_path=first.socket, start=False)
        self.addCleanup(second.kill)
        self.assertIn(first.socket, self.ends_with(69, second))
        client.sync()
        with first.session(self.share) as another:
            another.sync()
        first.stop()

    def test_many_at_once(self):
        """However they race, exactly one serves the socket."""
        path = scratch.new_path("contended")
        daemons = [Daemon(socket_path=path, start=False) for _ in range(6)]
        for daemon in daemons:
            self.addCleanup(daemon.kill)
            daemon.spawn()
        served, ended = [], []
        for daemon in daemons:
            try:
                daemon.wait_notified("READY=1")
                served.append(daemon)
            except AssertionError:
                ended.append(daemon.exit_status)
        self.assertEqual((len(served), ended), (1, [69] * 5))
        with served[0].session(self.share) as client:
            client.sync()

    def test_killed(self):
        """kill -9 leaves the socket's file, and nothing that stops the next."""
        first = self.start({"s": self.share})
        client = first.session(mode=TREE, share="s")
        self.addCleanup(client.close)
        first.kill()
        client.wait_hang_up()
        self.assertTrue(os.path.exists(first.socket))
        second = self.start({"s": self.share}, socket_path=first.socket)
        with second.session(mode=TREE, share="s") as again:
            touch(self.path("f"))
            self.assertEqual(again.records()[0].name, b"f")
        second.stop()

    def test_not_a_socket(self):
        """A file that is no socket is not removed."""
        path = scratch.new_path("file")
        touch(path)
        daemon = Daemon(socket_path=path, start=False)
        self.addCleanup(daemon.kill)
        daemon.spawn()
        self.assertNotEqual(daemon.wait(), 0)
        self.assertTrue(os.path.isfile(path))


class Configuration(ProcessTest):
    WRONG = {
        # what is wrong: (text, the line it is in, the key that is named)
        "an unknown key": ('[daemon]\nlog-levle = "info"\n', 2, "log-levle"),
        "an unknown table": ('[deamon]\n', 1, "deamon"),
        "a wrong type": ('[limits]\n\nsessions = "many"\n', 3, "sessions"),
        "a wrong level": ('[daemon]\nlog-level = "loud"\n', 2, "log-level"),
        "a wrong mode": ('[daemon]\n# x\nsocket-mode = "rw"\n', 3, "socket-mode"),
        "a wrong duration": ('[daemon]\nmax-delay = "soon"\n', 2, "max-delay"),
        "a negative limit": ('[limits]\nsessions = -1\n', 2, "sessions"),
        "a wrong size": ('[limits]\nqueue-per-session = "4 elephants"\n', 2,
                         "queue-per-session"),
        "a share without a path": ('[[share]]\nname = "s"\n', 1, "path"),
        "a share without a name": ('[[share]]\npath = "/"\n', 1, "name"),
        "a relative path": ('[[share]]\nname = "s"\npath = "x/y"\n', 3, "path"),
        "a name twice": ('[[share]]\nname = "s"\npath = "/"\n[[share]]\nname = "s"\n'
                         'path = "/"\n', 5, "name"),
        "an unknown user": ('[[share]]\nname = "s"\npath = "/"\n'
                            'allow-users = ["no such user"]\n', 4, "allow-users"),
        "an unknown event": ('[[share]]\nname = "s"\npath = "/"\nevents = ["sneeze"]\n', 4,
                             "events"),
        "no TOML": ('[daemon\n', 1, ""),
    }

    def test_wrong(self):
        for name, (text, line, key) in self.WRONG.items():
            with self.subTest(name):
                daemon = Daemon(config=text, start=False)
                log = self.ends_with(78, daemon)
                self.assertIn(f"{daemon.config}:{line}:", log)
                self.assertIn(key, log)

    def test_check(self):
        right = table(share=[{"name": "s", "path": self.share}])
        daemon = Daemon(config=right, start=False, arguments=["--check-config"])
        self.ends_with(0, daemon)
        self.assertFalse(os.path.exists(daemon.socket))
        text, line, key = self.WRONG["an unknown key"]
        daemon = Daemon(config=text, start=False, arguments=["--check-config"])
        self.assertIn(f"{daemon.config}:{line}:", self.ends_with(78, daemon))

    def test_missing(self):
        daemon = Daemon(start=False, arguments=["--config", scratch.new_path("missing.toml")])
        self.ends_with(78, daemon)

    def test_usage(self):
        for arguments in (["--no-such-option"], ["--share", "no-path"], ["surplus"]):
            with self.subTest(arguments):
                self.ends_with(64, Daemon(start=False, arguments=arguments))

    def test_version(self):
        done = subprocess.run([binary(), "--version"], stdout=subprocess.PIPE, check=True)
        self.assertTrue(done.stdout.strip())

    def test_reload(self):
        first = [{"name": "a", "path": self.share}]
        daemon = self.start(config=table(share=first))
        client = daemon.session(mode=TREE, share="a")
        self.addCleanup(client.close)
        # A new share.
        daemon.write_config(table(share=first + [{"name": "b", "path": self.outside}]))
        daemon.signal(signal.SIGHUP)
        daemon.wait_notified("READY=1")
        daemon.session(mode=TREE, share="b").close()
        # A wrong file: the old one stays in force.
        daemon.write_config("[daemon]\nnonsense = 1\n")
        daemon.signal(signal.SIGHUP)
        daemon.wait_notified("READY=1")
        self.assertIn(f"{daemon.config}:2:", daemon.log())
        daemon.session(mode=TREE, share="b").close()
        touch(self.path("f"))
        self.assertEqual(client.records()[0].name, b"f")
        # A share goes.
        daemon.write_config(table(share=[{"name": "b", "path": self.outside}]))
        daemon.signal(signal.SIGHUP)
        self.assertEqual(client.wait_for(Detached)[-1], Detached(2))
        client.wait_hang_up()
        with daemon.connect() as again, self.assertRaises(Refused):
            again.init(TREE, share="a")
        daemon.stop()


class Shutdown(ProcessTest):
    def test_everything_before_comes_first(self):
        daemon = self.start({"s": self.share})
        tree = daemon.session(mode=TREE, share="s")
        nodes = daemon.session(self.share)
        self.addCleanup(tree.close)
        self.addCleanup(nodes.close)
        for number in range(3000):
            touch(self.path(str(number)))
        daemon.signal(signal.SIGTERM)
        for client in (tree, nodes):
            taken = client.wait_for(Detached)
            self.assertEqual(taken[-1], Detached(3))
            names = {record.name for record in taken[:-1] if record.mask & CREATE}
            self.assertEqual(names, {str(number).encode() for number in range(3000)})
            client.wait_hang_up()
        self.assertEqual(daemon.wait(), 0)

    def test_one_that_does_not_read(self):
        """A client that stopped reading does not hold the end up."""
        daemon = self.start({"s": self.share})
        client = daemon.session(mode=TREE, share="s", queue_limit=65536)
        self.addCleanup(client.close)
        for number in range(5000):
            touch(self.path(f"{number}-{'x' * 100}"))
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)


class Loss(ProcessTest):
    exclusive = True  # of the sysctl
    SYSCTL = "/proc/sys/fs/fanotify/max_queued_events"

    def test_kernel_overflow(self):
        """The kernel's queue overflows: LOST 1, and the models are true again."""
        with open(self.SYSCTL, encoding="ascii") as file:
            former = file.read()
        self.addCleanup(write, self.SYSCTL, former.encode())
        write(self.SYSCTL, b"2000")
        daemon = self.start(config=table(daemon={"queue_events": 2000}))
        tree = TreeModel(daemon.session(self.share, TREE), self.share)
        nodes = NodesModel(daemon.session(self.share), self.share)
        self.addCleanup(tree.client.close)
        self.addCleanup(nodes.client.close)
        self.addCleanup(nodes.close)
        os.mkdir(self.path("d"))
        touch(self.path("d/early"))
        for model in (tree, nodes):
            self.assertEqual(model.check(), "")
        daemon.signal(signal.SIGSTOP)
        for number in range(3000):
            touch(self.path("d", str(number)))
        os.unlink(self.path("d/early"))
        os.rename(self.path("d"), self.path("e"))
        daemon.signal(signal.SIGCONT)
        for model in (tree, nodes):
            self.assertEqual(model.check(), "")
            lost = [one.reason for one in model.history if isinstance(one, Lost)]
            self.assertEqual(lost, [1])
        touch(self.path("e/after"))
        for model in (tree, nodes):
            self.assertEqual(model.check(), "")
        daemon.stop()

    def test_slow_client(self):
        """A queue that overflows: LOST 2, RESYNCED, and the model is true."""
        daemon = self.start({"s": self.share})
        client = daemon.session(mode=TREE, share="s", queue_limit=65536, max_packet=4096)
        quick = daemon.session(mode=TREE, share="s")
        self.addCleanup(client.close)
        self.addCleanup(quick.close)
        model = TreeModel(client, self.share)
        for number in range(6000):
            touch(self.path(f"{number}-{'x' * 100}"))
        for number in range(0, 6000, 3):
            os.unlink(self.path(f"{number}-{'x' * 100}"))
        created = [one for one in quick.records() if one.mask & CREATE]
        self.assertEqual(len(created), 6000)
        self.assertEqual(model.check(), "")
        self.assertEqual({one.reason for one in model.history if isinstance(one, Lost)}, {2})
        touch(self.path("after"))
        self.assertEqual(model.check(), "")
        daemon.stop()

    def test_slow_nodes_client(self):
        daemon = self.start()
        os.mkdir(self.path("d"))
        client = daemon.session(self.share, queue_limit=65536, max_packet=4096)
        self.addCleanup(client.close)
        for number in range(100):
            touch(self.path(str(number)))
            self.assertEqual(client.register_path(self.path(str(number)), 10 + number), 0)
        self.assertEqual(client.register_path(self.path("d"), 5), 0)
        client.sync()
        with daemon.session(self.share) as other:
            for _ in range(30):
                for number in range(100):
                    os.chmod(self.path(str(number)), 0o600)
                    write(self.path(str(number)))
                other.sync()
        for number in range(50):
            os.unlink(self.path(str(number)))
        touch(self.path("d/x"))
        taken = client.sync()
        kinds = [type(one).__name__ for one in taken if not isinstance(one, Record)]
        self.assertEqual(kinds, ["Lost", "Resynced"])
        ended = {one.node[0] for one in taken if isinstance(one, Record) and one.mask & DELETE_SELF}
        self.assertEqual(ended, set(range(10, 60)))
        told = {one.node[0] for one in taken if isinstance(one, Record)}
        self.assertLessEqual(set(range(60, 110)), told)
        daemon.stop()


class Mounts(ProcessTest):
    def setUp(self):
        super().setUp()
        self.own = scratch.Mount("ext4", "1G")
        self.addCleanup(self.own.remove)
        self.own_share = os.path.join(self.own.path, "share")
        os.mkdir(self.own_share)

    def test_unmount(self):
        """Unmounting is not blocked; sessions learn it; the share comes back."""
        daemon = self.start({"s": self.own_share, "other": self.share})
        clients = [daemon.session(mode=TREE, share="s"), daemon.session(self.own_share)]
        other = daemon.session(mode=TREE, share="other")
        for client in clients + [other]:
            self.addCleanup(client.close)
        touch(os.path.join(self.own_share, "f"))
        self.own.unmount()
        for client in clients:
            taken = client.wait_for(Detached)
            self.assertEqual(taken[-1], Detached(1))
            self.assertIn(b"f", [one.name for one in taken[:-1]])
            client.wait_hang_up()
        touch(self.path("f"))
        self.assertEqual(other.records()[0].name, b"f")
        with daemon.connect() as client, self.assertRaises(Refused):
            client.init(TREE, share="s")
        self.assertEqual(os.listdir(self.own.path), [])
        # Nothing holds the filesystem, once a helper has closed the last of it: its image can
        # be checked.
        wait_until(lambda: subprocess.run(
            ["fsck.ext4", "-fn", self.own.image], stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, check=False).returncode == 0, "the image is clean")

        self.own.mount()
        client = self.until_back(daemon)
        self.addCleanup(client.close)
        touch(os.path.join(self.own_share, "g"))
        self.assertEqual(client.records()[0].name, b"g")
        daemon.stop()

    def until_back(self, daemon):
        """The mount table's change has been seen when STATUS was answered after
        it, or soon after; each try is an exchange with the daemon."""
        for _ in range(2000):
            try:
                return daemon.session(mode=TREE, share="s")
            except Refused:
                daemon.connect().close()
        raise AssertionError(f"the share does not come back:\n{daemon.log()}")

    def test_missing_at_start(self):
        """A share that is not there yet does not keep the others from starting."""
        self.own.unmount()
        daemon = self.start({"s": self.own_share, "other": self.share})
        daemon.session(mode=TREE, share="other").close()
        self.own.mount()
        self.until_back(daemon).close()
        daemon.stop()

    def test_mark_shrinks(self):
        """What no session asks for is not in the mark, so that it costs nobody."""
        daemon = self.start()
        plain = daemon.session(self.own_share)
        self.addCleanup(plain.close)
        (_, narrow), = daemon.marks()
        self.assertFalse(narrow & (OPEN | ACCESS))
        wide = daemon.session(self.own_share, events=DEFAULT | OPEN | ACCESS)
        (_, mask), = daemon.marks()
        self.assertTrue(mask & OPEN and mask & ACCESS)
        wide.close()
        plain.sync()
        self.assertEqual(self.marks_after(daemon, plain, narrow), narrow)
        daemon.stop()

    def marks_after(self, daemon, client, wanted):
        end = time.monotonic() + 10
        while True:  # the hang-up and this request race
            client.sync()
            (_, mask), = daemon.marks()
            if mask == wanted or time.monotonic() > end:
                return mask
            time.sleep(0.005)
