# SPDX-License-Identifier: Apache-2.0
"""Restart without loss, under a real systemd: run by `systemd`, inside the sandbox."""

import collections
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import unittest

import systemd_test
from hostwatch import (CORRECTED, CREATE, DELETE, DELETE_SELF, NODES, RECHECK, RENAME, SYNC, TREE,
                       Client, Detached, Lost, Record, Resynced, read_while, register_entry)
from model import TreeModel
from systemd_test import (CONFIG, DAEMON, SERVICE, SOCKET, SystemdTest, drop_in, eventually,
                          run, show, systemctl)

STAND_IN = pathlib.Path(__file__).resolve().with_name("stand_in.py")
FILES = 30000
RESTARTS = 6
MANY = 12000

systemd_test.MESSAGE_IDS |= {
    "handed over": "9056c0b0a3e54d6ea6a0b5eece5443b3",
    "taken up": "657ab81f3d924cf9b0c8bed0f3ec56a0",
    "hand-over failed": "5ff59932666b4cfd9feca5a0cc93cb25",
    "store limited": "d43d8202139b43e9b19fc405902c7d04",
    "store cleared": "1a3f239f0dac449e9df82c1a8c5e3e85",
}

# A round of the storm for each line read: files that are made, written and renamed, every
# third of them removed; and a directory that moves while files are made in it.
STORM = """
import os, sys
os.chdir(sys.argv[1])
count = int(sys.argv[2])
for line in sys.stdin:
    k = int(line)
    os.mkdir(f"x{k}")
    for i in range(count):
        name = f"b{k}/f{i}"
        with open(name + ".tmp", "w") as file:
            file.write("x")
        os.rename(name + ".tmp", name)
        if i % 3 == 0:
            os.unlink(name)
        if i == count // 2:
            os.rename(f"x{k}", f"b{k}/y{k}")
        if i % 100 == 0:
            place = f"x{k}" if i < count // 2 else f"b{k}/y{k}"
            open(f"{place}/g{i}", "w").close()
"""


def setUpModule():
    systemd_test.setUpModule()


class RestartTest(SystemdTest):
    def setUp(self):
        super().setUp()
        self.configure("[limits]\nqueue-per-session = \"64MiB\"\n")
        self.clients = []

    def tearDown(self):
        for client in self.clients:
            client.close()
        super().tearDown()

    def client(self, mode=TREE, **fields):
        client = Client(SOCKET)
        self.clients.append(client)
        client.init(mode, "src", **fields)
        return client

    def path(self, *parts):
        return os.path.join(self.share, *parts)

    def stand_in(self, how):
        """The next process of the service is no hostwatchd."""
        drop_in(f"[Service]\nExecStart=\nExecStart={STAND_IN} {how}\n")
        systemctl("restart", SERVICE)

    def real(self):
        drop_in(f"[Service]\nExecStart=\nExecStart={DAEMON}\n")
        systemctl("restart", SERVICE)

    def assert_hung_up(self, client):
        client.wait_hang_up()
        self.assertFalse([one for one in client.inbox if isinstance(one, Detached)])

    def losing_client(self):
        """A NODES session that is in a resync, with a SYNC that waits for it: it stopped
        reading, lost records, and stopped reading again once it was told so."""
        os.mkdir(self.path("many"))
        for i in range(MANY):
            open(self.path("many", str(i)), "w").close()
        client = self.client(NODES, queue_limit=65536)
        for start in range(0, MANY, 250):
            fds = [os.open(self.path("many", str(i)), os.O_PATH)
                   for i in range(start, start + 250)]
            entries = [register_entry(i + 2, 1) for i in range(start, start + 250)]
            self.assertEqual(set(client.register(entries, fds)), {0})
            for fd in fds:
                os.close(fd)
        client.take()
        # ctimes have to be later than the last moment at which nothing was missing.
        time.sleep(0.02)
        for i in range(MANY):
            os.chmod(self.path("many", str(i)), 0o600)
        # All of that is read before the client reads: it loses once.
        self.client().sync()
        before = client.wait_for(Lost)
        return client, client.send(SYNC), {r.node for r in before if isinstance(r, Record)}


class Storm(RestartTest):
    def start_storm(self, files):
        process = subprocess.Popen([sys.executable, "-c", STORM, self.share, str(files)],
                                   stdin=subprocess.PIPE, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def assert_once(self, records, files):
        """Each file's CREATE, RENAME and DELETE, once. What the daemon worked out itself
        may come beside the kernel's own record, restarted or not."""
        records = [r for r in records if not r.flags & CORRECTED]
        for kind, name, wanted in (
                (CREATE, lambda r: r.name.startswith(b"f"), files),
                (RENAME, lambda r: r.name.startswith(b"f"), files),
                (DELETE, lambda r: r.name.startswith(b"f"), (files // RESTARTS + 2) // 3 * RESTARTS)):
            seen = collections.Counter(
                (r.dir, r.name) for r in records if r.mask & kind and name(r))
            self.assertEqual(len(seen), wanted, kind)
            twice = [key for key, count in seen.items() if count > 1]
            story = [str(r) for r in records if (r.dir, r.name) in twice[:2]]
            self.assertFalse(twice, f"{len(twice)} of {len(seen)}: {story}")

    def test_six_restarts(self):
        systemctl("start", SERVICE)
        for k in range(RESTARTS):
            os.mkdir(self.path(f"b{k}"))
        tree = TreeModel(self.client(), self.share)
        nodes = self.client(NODES, queue_limit=1 << 26)
        slow = self.client(NODES, queue_limit=1 << 26)
        for client in nodes, slow:
            for k in range(RESTARTS):
                self.assertEqual(client.register_path(self.path(f"b{k}"), 10 + k), 0)
        losing, unique, before = self.losing_client()
        storm = self.start_storm(FILES // RESTARTS)
        pids = {self.pid()}
        for k in range(RESTARTS):
            storm.stdin.write(f"{k}\n")
            storm.stdin.flush()
            restart = subprocess.Popen(["systemctl", "restart", SERVICE])
            self.assertEqual(read_while(restart, tree.client, nodes), 0)
            pids.add(self.pid())
        self.assertEqual(len(pids), RESTARTS + 1)
        storm.stdin.close()
        self.assertEqual(read_while(storm, tree.client, nodes), 0)
        self.assertEqual(tree.check(), "")
        self.assert_once([r for r in tree.history if isinstance(r, Record)], FILES)
        # Sequences without a gap are the client's own assertion.
        for client in nodes, slow:
            records = client.records()
            self.assert_once(records, FILES)
            self.assertFalse([r for r in records if r.flags & RECHECK])
        reply = losing.wait_reply(unique, 60)
        self.assertEqual(reply.error, 0)
        end = losing.inbox[-1]
        self.assertIsInstance(end, Resynced)
        self.assertEqual(end.checked, MANY + 1)
        told = [r.node for r in losing.inbox if isinstance(r, Record) and r.flags & RECHECK]
        # A second loss before the restarts starts it over, and tells some twice.
        self.assertGreaterEqual(len(told), end.reported)
        self.assertGreaterEqual(before | set(told), {(i + 2, 1) for i in range(MANY)})
        eventually(lambda: len(self.journal.entries("taken up")) == RESTARTS)
        self.assertEqual(self.journal.entries("hand-over failed"), [])

    def crash(self, end):
        """Whoever holds files is told, after a crash, which of them changed."""
        drop_in("[Service]\nWatchdogSec=2s\nRestartSec=100ms\n")
        systemctl("start", SERVICE)
        for k in range(RESTARTS):
            os.mkdir(self.path(f"b{k}"))
        for i in range(200):
            open(self.path(str(i)), "w").close()
        client = self.client(NODES)
        client.sync()
        before = divmod(time.clock_gettime_ns(time.CLOCK_REALTIME) - 1, 1000000000)
        time.sleep(0.02)
        storm = self.start_storm(2000)
        storm.stdin.write("0\n1\n")
        storm.stdin.flush()
        pid = self.pid()
        end(pid)
        for i in range(0, 200, 2):
            os.chmod(self.path(str(i)), 0o600)
        eventually(lambda: self.pid() not in (0, pid) and show("ActiveState") == "active")
        self.assert_hung_up(client)
        storm.stdin.close()
        self.assertEqual(storm.wait(), 0)
        client = self.client(NODES)
        fds = [os.open(self.path(str(i)), os.O_PATH) for i in range(200)]
        statuses = client.register(
            [register_entry(i + 2, 1, since=before) for i in range(200)], fds)
        for fd in fds:
            os.close(fd)
        self.assertEqual(set(statuses), {0})
        told = {r.node[0] - 2 for r in client.records() if r.flags & RECHECK}
        self.assertEqual(told, set(range(0, 200, 2)))
        self.assertEqual(TreeModel(self.client(), self.share).check(), "")
        # What the killed process had stored is of no use; the new group is in its place.
        self.assertEqual(show("NFileDescriptorStore"), "1")

    def test_killed(self):
        self.crash(lambda pid: os.kill(pid, signal.SIGKILL))

    def test_hanging(self):
        self.crash(lambda pid: os.kill(pid, signal.SIGSTOP))


class HandOver(RestartTest):
    def test_what_happens_while_nobody_is_there(self):
        systemctl("start", SERVICE)
        os.makedirs(self.path("a/b"))
        tree = TreeModel(self.client(), self.share)
        echoing = self.client(TREE, options=1)
        self.stand_in("keep")
        os.rename(self.path("a/b"), self.path("c"))
        open(self.path("c/new"), "w").close()
        os.mkdir(self.path("a/b"))
        os.rename(self.path("a"), self.path("c/a"))
        open(self.path("c/a/b/deep"), "w").close()
        tree.client.send(SYNC)
        self.real()
        tree.client.wait_reply(tree.client.unique)
        self.assertEqual(tree.check(), "")
        made = [r.name for r in tree.history if isinstance(r, Record) and r.mask & CREATE]
        self.assertEqual(made, [b"new", b"b", b"deep"])
        # The process whose changes are its own still is this one.
        self.assertEqual([r for r in echoing.records() if not r.flags & RECHECK], [])

    def test_the_group_is_lost_while_one_is_resynced(self):
        """What happened meanwhile is looked for from when the last process had read all."""
        systemctl("start", SERVICE)
        open(self.path("f"), "w").close()
        other = self.client(NODES)
        self.assertEqual(other.register_path(self.path("f"), 9, 1), 0)
        _, unique, _ = losing = self.losing_client()
        other.sync()
        self.stand_in("lose-group")
        os.chmod(self.path("f"), 0o600)
        time.sleep(0.05)  # well before the next process begins
        self.real()
        told = other.sync()
        self.assertEqual([one.reason for one in told if isinstance(one, Lost)], [3])
        self.assertIn((9, 1), {one.node for one in told
                               if isinstance(one, Record) and one.flags & RECHECK})
        self.assertEqual(losing[0].wait_reply(unique, 60).error, 0)

    def test_an_end_that_waits_for_its_delete(self):
        """It is told by the next process, whatever else happens."""
        systemctl("start", SERVICE)
        client = self.client(NODES)
        with open(self.path("f"), "w"):
            self.assertEqual(client.register_path(self.path("f"), 9, 1), 0)
            os.unlink(self.path("f"))
            client.sync()
            os.kill(self.pid(), signal.SIGSTOP)
        systemctl("restart", SERVICE)  # with the SIGTERM goes a SIGCONT
        last = []
        while not any(one.mask & DELETE_SELF for one in last):
            client.receive(10)
            last += [one for one in client.take() if isinstance(one, Record)]
        self.assertEqual(last[-1].node, (9, 1))

    def test_a_rate_is_of_its_own_process(self):
        systemctl("start", SERVICE)
        client = self.client()
        for i in range(2000):
            open(self.path(str(i)), "w").close()
        client.sync()
        systemctl("restart", SERVICE)
        status = self.client().status()
        totals = status["totals"]
        self.assertGreaterEqual(totals["kernel_events"], 2000)
        self.assertLess(totals["events_per_second"] * status["uptime_seconds"], 100)

    def test_totals_are_also_of_a_share_without_sessions(self):
        def totals():
            with Client(SOCKET) as client:
                return client.status()["totals"]

        systemctl("start", SERVICE)
        client = self.client()
        for i in range(100):
            open(self.path(str(i)), "w").close()
        client.sync()
        client.close()
        eventually(lambda: totals()["sessions"] == 0)
        before = totals()
        self.assertGreaterEqual(before["delivered"], 100)
        systemctl("restart", SERVICE)
        after = totals()
        for key in ("kernel_events", "delivered", "corrected"):
            self.assertGreaterEqual(after[key], before[key], key)

    def test_stop_is_told_and_empties_the_store(self):
        systemctl("start", SERVICE)
        client = self.client()
        self.assertEqual(show("NFileDescriptorStore"), "1")
        open(self.path("last"), "w").close()
        systemctl("stop", SERVICE)
        told = client.wait_for(Detached)
        self.assertEqual(told[-1].reason, 3)
        self.assertIn(b"last", [r.name for r in told if isinstance(r, Record)])
        self.assertEqual(show("NFileDescriptorStore"), "0")

    def fallback(self, how, sentence):
        systemctl("start", SERVICE)
        client = self.client()
        self.stand_in(how)
        self.real()
        self.assert_hung_up(client)
        self.assertIn(sentence, self.journal.wait("hand-over failed")[0]["MESSAGE"])
        self.client().sync()
        self.assertEqual(show("NFileDescriptorStore"), "1")

    def test_damaged_state(self):
        self.fallback("damage", "checksum is wrong")

    def test_state_of_another_version(self):
        self.fallback("version", "version 3; this daemon reads version 2")

    def test_state_that_is_not_sealed(self):
        self.fallback("unsealed", "not sealed")

    def test_unknown_descriptors_are_removed(self):
        self.stand_in("litter")
        self.assertEqual(show("NFileDescriptorStore"), "3")
        self.real()
        self.client().sync()
        self.assertEqual(show("NFileDescriptorStore"), "1")
        eventually(lambda: len(self.journal.entries("store cleared")) == 3)

    def test_store_too_small_for_the_groups(self):
        drop_in("[Service]\nFileDescriptorStoreMax=1\n", "50-store")
        systemctl("start", SERVICE)
        self.assertEqual(len(self.journal.wait("store limited")), 1)
        client = self.client()
        for i in range(2):
            systemctl("restart", SERVICE)
            open(self.path(str(i)), "w").close()
        names = {r.name for r in client.records()}
        self.assertEqual(names, {b"0", b"1"})

    def test_no_store(self):
        drop_in("[Service]\nFileDescriptorStoreMax=0\n", "50-store")
        systemctl("start", SERVICE)
        client = self.client()
        systemctl("restart", SERVICE)
        self.assertEqual(client.wait_for(Detached)[-1].reason, 3)

    def test_share_that_left_the_configuration(self):
        systemctl("start", SERVICE)
        client = self.client()
        CONFIG.write_text("")
        systemctl("restart", SERVICE)
        self.assertEqual(client.wait_for(Detached)[-1].reason, 2)

    def test_filesystem_unmounted_meanwhile(self):
        run("mount", "-t", "tmpfs", "tmpfs", self.share)
        self.addCleanup(run, "umount", "-q", self.share, check=False)
        systemctl("start", SERVICE)
        client = self.client()
        self.stand_in("keep")
        run("umount", self.share)
        self.real()
        self.assertEqual(client.wait_for(Detached)[-1].reason, 1)

    def test_own_socket_keeps_what_waits(self):
        # Without the socket unit the daemon binds the socket itself.
        CONFIG.write_text(CONFIG.read_text() + '[daemon]\nsocket = "/run/own.sock"\n')
        unit = systemd_test.UNITS / "hostwatchd.socket"
        aside = unit.with_name("aside")
        unit.rename(aside)
        self.addCleanup(aside.rename, unit)
        systemctl("daemon-reload")
        systemctl("start", SERVICE)
        self.assertEqual(show("NFileDescriptorStore"), "2")
        old = Client("/run/own.sock")
        old.init(TREE, "src")
        self.stand_in("keep")
        waiting = Client("/run/own.sock")
        self.real()
        waiting.init(TREE, "src")
        open(self.path("x"), "w").close()
        for client in old, waiting:
            self.assertIn(b"x", {r.name for r in client.records()})
            client.close()


class Asleep(RestartTest, systemd_test.MountTest):
    """A helper that waits in close(2), which no signal ends, has the daemon's descriptors
    also when that is gone. Clients see the end of their connections all the same."""

    @contextlib.contextmanager
    def helper(self):
        """While such a helper sleeps."""
        systemctl("start", self.unit)
        server = int(show("MainPID", self.unit))
        ours, theirs = socket.socketpair()
        child = os.fork()  # its end waits for the server as well
        if child == 0:
            try:
                ours.close()
                client = Client(SOCKET)
                client.init(NODES, "src")
                fd = os.open(pathlib.Path(self.mount, "file"), os.O_RDWR)
                theirs.send(b"x")
                theirs.recv(1)
                client.register([register_entry(10)], [fd])
            finally:
                os._exit(0)
        theirs.close()
        self.assertEqual(ours.recv(1), b"x")
        os.kill(server, signal.SIGSTOP)
        try:
            ours.close()
            children = pathlib.Path(f"/proc/{self.pid()}/task/{self.pid()}/children")
            found = eventually(lambda: children.read_text().split())[0]
            yield
            self.assertTrue(os.path.exists(f"/proc/{found}"))
        finally:
            os.kill(server, signal.SIGCONT)
            os.waitpid(child, 0)

    def test_damaged_state(self):
        systemctl("start", SERVICE)
        client = self.client()
        with self.helper():
            self.stand_in("damage")
            self.real()
            self.assert_hung_up(client)
        self.assertIn("checksum is wrong", self.journal.wait("hand-over failed")[0]["MESSAGE"])
        self.client().sync()


if __name__ == "__main__":
    unittest.main(verbosity=2)
