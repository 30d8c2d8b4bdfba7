# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm beside one that does not: it misses nothing, and the
daemon is afterwards what it was before."""

import os
import random
import re
import socket
import subprocess
import sys
import time

from daemon import Daemon, DaemonTest, table, touch
from histories import Watch, Writer
from hostwatch import SYNC
from test_convergence import number

SECONDS = 8.0
SOAK_SECONDS = 60.0
GROWTH_KIB = 8192


class Hostile(DaemonTest):
    config = table(daemon={"socket_mode": "0666"})
    limit = 300

    def resident(self):
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])

    def settled(self, client):
        """(descriptors, KiB) once the daemon has noticed every hang-up."""
        for _ in range(200):
            status = client.status()
            if len(status["sessions"]) == 2 and len(status["filesystems"]) == 1:
                connected = sum("socket:" in one for one in self.daemon.descriptors().values())
                if connected <= self.connected:
                    break
            time.sleep(0.05)
        return sorted(re.sub(r"\d+", "", one) for one in self.daemon.descriptors().values()), \
            self.resident()

    def attack(self, watch, writer, seconds, seed):
        """Runs hostile clients, one of them without privilege, and checks all the while
        what the well-behaved sessions are told."""
        here = os.path.dirname(os.path.abspath(__file__))
        attackers = [subprocess.Popen(
            [sys.executable, os.path.join(here, "hostile.py"), self.daemon.socket, self.share,
             str(seed + at), str(seconds), str(uid)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for at, uid in enumerate((0, 65534))]
        checks, longest = 0, 0.0
        while any(one.poll() is None for one in attackers):
            writer.begin("run", "200")
            watch.read([writer], True)
            began = time.monotonic()
            wrong = watch.check()
            longest = max(longest, time.monotonic() - began)
            if wrong:
                watch.dump("/var/tmp/hostwatch-hostile")
                self.fail(f"seed {seed}, all of it in /var/tmp/hostwatch-hostile.*:\n{wrong}")
            self.assertIsNone(self.daemon.process.poll(), self.daemon.log()[-4000:])
            self.daemon.drain_notifications()
            checks += 1
        for one in attackers:
            output = one.stdout.read().decode()
            one.stdout.close()
            self.assertEqual(one.wait(), 0, output)
            print(f"hostile: {output.strip()}", flush=True)
        return checks, longest

    def test_beside_hostile_clients(self):
        seed = number("HOSTWATCH_SEED") or random.randrange(1 << 32)
        seconds = SOAK_SECONDS if number("HOSTWATCH_SOAK_MINUTES") else SECONDS
        os.chmod(self.base, 0o755)
        watch = Watch(self.daemon, self.base)
        self.addCleanup(watch.close)
        writer = Writer(self.base, seed, "abc/pq")
        self.addCleanup(writer.close)
        client = watch.clients[1]
        self.connected = sum("socket:" in one for one in self.daemon.descriptors().values())
        # What is kept for the next clients is there after the first.
        self.attack(watch, writer, seconds / 4, seed + 10)
        descriptors, resident = self.settled(client)
        checks, longest = self.attack(watch, writer, seconds * 3 / 4, seed)
        after, kib = self.settled(client)
        print(f"hostile: {checks} checks, the longest {longest:.2f} s; {len(descriptors)} "
              f"descriptors, then {len(after)}; {resident} KiB, then {kib}", flush=True)
        self.assertEqual(after, descriptors)
        self.assertLess(kib, resident + GROWTH_KIB, f"seed {seed}")
        self.assertEqual(watch.losses, 0)
        self.assertEqual(watch.check(), "")


class StalledServiceManager(DaemonTest):
    """What the service manager does not read must not keep the daemon from reading."""

    def test_not_read(self):
        daemon = Daemon()
        self.addCleanup(daemon.kill)
        client = daemon.session(self.share)
        self.addCleanup(client.close)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as full:
            full.setblocking(False)
            full.connect(os.path.join(daemon.directory, "notify"))
            try:
                while True:
                    full.send(b"X=1")
            except BlockingIOError:
                pass
        end = time.monotonic() + 2.5  # a STATUS= comes at most once a second
        while time.monotonic() < end:
            touch(os.path.join(self.share, "f"))
            client.wait_reply(client.send(SYNC), timeout=5)
            time.sleep(0.1)
        daemon.stop()
