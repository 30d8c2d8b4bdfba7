# SPDX-License-Identifier: Apache-2.0
"""A server that leaves it to the C library to stay in step: daemons that are killed."""

import os
import random
import select
import signal
import time

import handles
import scratch
from daemon import touch
from histories import Server, Writer
from hostwatch import RECHECK, ROOT, Record
from library import CONNECTED, DISCONNECTED, IN_STEP, OUT_OF_STEP, LibraryClient
from test_loss import _TICK, PopulationTest


@scratch.on_each_filesystem
class Reconnect(PopulationTest):
    exclusive = False

    def server(self, daemon):
        """A model that the library keeps in step."""
        server = []
        lost = []
        client = LibraryClient(daemon.socket, self.share,
                               lambda since: lost.append(server[0].register_again(since)))
        self.addCleanup(client.close)
        server.append(Server(client, self.share))
        self.addCleanup(server[0].close)
        return client, server[0], lost

    def test_killed(self):
        """kill -9 during a storm: at IN_STEP the model is true, by RECHECK alone, and what
        did not change was not looked at."""
        daemon = self.start()
        paths = self.population()
        client, model, lost = self.server(daemon)
        self.assertEqual(model.check(), "")
        node = {os.path.relpath(path, self.share): model.nodes[handles.handle_of(path)]
                for path in paths}
        time.sleep(_TICK)
        self.assertEqual(model.check(), "")
        time.sleep(_TICK)
        for number in range(300):
            touch(os.path.join(self.outside, f"storm{number}"))
        os.kill(daemon.pid, signal.SIGKILL)
        changed, gone = self.change(random.Random(7))
        daemon.kill()
        # Some of it may have been told.
        client.take(OUT_OF_STEP, model=model)
        self.assertIsNone(self.wait_while_away(client))
        again = self.start(socket_path=daemon.socket)
        told = client.take(IN_STEP, model=model)
        self.assertEqual(client.marks, [OUT_OF_STEP, IN_STEP])
        self.assertEqual(len(lost), 1)
        looked, ended = self.told(told)
        self.assertEqual(ended, set())
        name = {value: key for key, value in node.items()} | {ROOT: "/"}
        self.assertEqual(sorted(name[one] for one in lost[0]),
                         sorted(os.path.relpath(path, self.share) for path in gone))
        self.assertEqual(sorted(name[one] for one in looked),
                         sorted(["/", *(os.path.relpath(path, self.share) for path in changed)]))
        self.assertEqual(model.check(), "")
        os.chmod(self.path("d13", "f1"), 0o600)
        self.assertEqual(model.check(), "")
        again.stop()

    def test_killed_where_ctimes_are_whole_seconds(self):
        """A change of the root in the second of `since` looks older than that."""
        if self.kind != "ext4":
            self.skipTest("ext4 with small inodes has such")
        mount = scratch.Mount("ext4", "1G", ["-I", "128"])
        self.addCleanup(mount.remove)
        self.share = os.path.join(mount.path, "share")
        os.mkdir(self.share)
        daemon = self.start()
        moments = []
        client = LibraryClient(daemon.socket, self.share, moments.append)
        self.addCleanup(client.close)
        for _ in range(20):
            # After the first tenth of a second, and long before its end.
            while not 0.1 < time.time() % 1 < 0.3:
                time.sleep(0.01)
            client.sync()
            daemon.kill()
            touch(self.path(f"new{len(moments)}"))
            changed = os.stat(self.share).st_ctime_ns
            daemon = self.start(socket_path=daemon.socket)
            told = client.take(IN_STEP)
            if changed <= moments[-1] and changed // 10**9 == moments[-1] // 10**9:
                break
        else:
            self.fail("the second was over each time")
        self.assertEqual([(one.node, one.flags) for one in told if isinstance(one, Record)][-1:],
                         [(ROOT, RECHECK)])
        client.close()
        daemon.stop()

    @staticmethod
    def wait_while_away(client):
        """Nothing but what the loss itself is comes while there is no daemon."""
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            event = client.next(0.1)
            if event and event.kind != DISCONNECTED:
                return event.kind
        return None

    @staticmethod
    def until_in_step(client, model):
        """With the daemon that runs now: the mark may be of the one before it."""
        while True:
            client.take(IN_STEP, model=model)
            try:
                return model.apply_all(client.sync())
            except ConnectionResetError:
                pass

    def test_killed_again_and_again(self):
        """While others never stop changing things, and while it re-registers."""
        writers = [Writer(self.base, number, "abc/pq") for number in range(2)]
        for writer in writers:
            self.addCleanup(writer.close)
        daemon = self.start()
        client, model, _ = self.server(daemon)
        for turn in range(4):
            for writer in writers:
                writer.begin("run", "3000")
            model.apply_all(client.sync())
            daemon.kill()
            daemon = self.start(socket_path=daemon.socket)
            if turn % 2:
                client.take(CONNECTED, model=model)
                daemon.kill()
                daemon = self.start(socket_path=daemon.socket)
            self.until_in_step(client, model)
            for writer in writers:
                while not select.select([writer], [], [], 0)[0]:
                    model.apply_all(client.sync())
                self.assertEqual(writer.end(), 0)
            self.assertEqual(model.check(), "")
        self.assertEqual(client.marks, [OUT_OF_STEP, IN_STEP] * (len(client.marks) // 2))
        self.assertGreaterEqual(len(client.marks), 8)
        daemon.stop()
