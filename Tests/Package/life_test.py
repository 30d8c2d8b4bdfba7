# SPDX-License-Identifier: Apache-2.0
"""The life of the package in a clean root: installed, upgraded under load,
removed, purged. Run by `run` beside systemd, whose pid INIT is; the root's files
are below /proc/INIT/root, and its /srv has the packages.

The tests follow each other: what one leaves is where the next begins.
"""

import hashlib
import os
import pathlib
import re
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "SystemTests"))
from wire import CREATE, DETACHED, EVENTS, LOST, REPLY, SYNC, TREE, Client  # noqa: E402

INIT = os.environ["INIT"]
ROOT = pathlib.Path("/proc", INIT, "root")
SOCKET = "/run/hostwatchd/hostwatchd.sock"
SERVICE = "hostwatchd.service"
SHARE = "/srv/share"
CONFIG = "/etc/hostwatchd/hostwatchd.toml"
# What belongs to dpkg, the package manager's log, and systemd at work.
NOT_OURS = re.compile(
    r"/(proc|sys|dev|run|tmp|srv)$|/var/lib/dpkg$|/var/log/(dpkg|alternatives)\.log|/var/log/journal"
    r"|/etc/(passwd|group|shadow|gshadow)-$|/etc/\.pwd\.lock$|/var/cache/ldconfig"
    r"|/var/lib/systemd/(catalog/database|random-seed|timesync)|/etc/ld\.so\.cache")


def inside(*command, check=True):
    done = subprocess.run(["nsenter", "-t", INIT, "-m", "--wd=/", *command],
                          capture_output=True, text=True,
                          env=dict(os.environ, DEBIAN_FRONTEND="noninteractive"))
    if check and done.returncode:
        journal = subprocess.run(["nsenter", "-t", INIT, "-m", "journalctl", "-n", "20"],
                                 capture_output=True, text=True).stdout
        raise AssertionError(f"{command}: {done.returncode}: {done.stderr}{done.stdout}{journal}")
    return done


def show(name, unit=SERVICE):
    return inside("systemctl", "show", "-P", name, unit).stdout.strip()


def packages(following):
    """The daemon's and the library's packages, the first or those that follow. The
    one for development needs a C library's, which the root does not have."""
    names = [p.name for p in (ROOT / "srv").glob("*.deb") if "-dev_" not in p.name]
    return [f"/srv/{name}" for name in sorted(names) if ("+next_" in name) == following]


def snapshot():
    """Every file of the root with what it holds; the names are the root's."""
    found = {}
    for directory, names, files in os.walk(ROOT):
        here = "/" + os.path.relpath(directory, ROOT).removeprefix(".")
        names[:] = [n for n in names if not NOT_OURS.match(os.path.join(here, n))]
        for name in names + files:
            path = os.path.join(here, name)
            whole = f"{ROOT}{path}"
            if NOT_OURS.match(path):
                continue
            if os.path.islink(whole):
                found[path] = os.readlink(whole)
            elif os.path.isfile(whole):
                found[path] = hashlib.sha256(pathlib.Path(whole).read_bytes()).hexdigest()
            else:
                found[path] = ""
    return found


class Follower(threading.Thread):
    """A TREE session on the share: collects what is created, and looks at each
    sequence number. After a hang-up it attaches again, if `again` says so."""

    def __init__(self):
        super().__init__(daemon=True)
        self.created, self.sessions, self.detached, self.lost = [], 0, [], 0
        self.error = None
        self.synced = threading.Event()
        self.attach()

    def attach(self):
        end = time.monotonic() + 20
        while True:
            try:
                self.client = Client(f"{ROOT}{SOCKET}", timeout=30)
                error, _ = self.client.init("src", mode=TREE, events=CREATE)
                assert error == 0, error
                break
            except (ConnectionError, EOFError):
                if time.monotonic() > end:
                    raise
        self.sessions += 1
        self.sequence = 0

    def run(self):
        try:
            while not self.synced.is_set():
                kind, body = self.client.receive()
                if kind is None:
                    self.client.socket.close()
                    self.attach()
                elif kind == EVENTS:
                    self.records(body)
                elif kind == DETACHED:
                    self.detached.append(struct.unpack_from("=I", body)[0])
                elif kind == LOST:
                    self.lost += 1
                elif kind == SYNC | REPLY:
                    self.synced.set()
        except BaseException as error:  # for the test's own thread to raise
            self.error = error
            self.synced.set()

    def records(self, body):
        (count,) = struct.unpack_from("=I", body)
        offset = 8
        for _ in range(count):
            size, _, sequence, mask = struct.unpack_from("=IIQQ", body, offset)
            (name_size,) = struct.unpack_from("=H", body, offset + 84)
            assert sequence == self.sequence + 1, f"{sequence} follows {self.sequence}"
            self.sequence = sequence
            if mask & CREATE:
                self.created.append(body[offset + 96:offset + 96 + name_size].decode())
            offset += size

    def finish(self):
        """Everything that was complete before has been collected."""
        self.client.send(SYNC, b"")
        self.synced.wait(30)
        if self.error:
            raise self.error
        assert self.synced.is_set(), "no answer to SYNC"
        self.client.socket.close()


class Life(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        inside("mkdir", SHARE)
        inside("journalctl", "--update-catalog")
        cls.before = snapshot()

    def test_1_installs_and_starts(self):
        inside("dpkg", "-i", *packages(following=False))
        for unit in (SERVICE, "hostwatchd.socket"):
            self.assertEqual(show("ActiveState", unit), "active")
            self.assertEqual(inside("systemctl", "is-enabled", unit).stdout.strip(), "enabled")
        group = re.search(r"^hostwatch:x:(\d+):", (ROOT / "etc/group").read_text(), re.M)
        socket = os.stat(f"{ROOT}{SOCKET}")
        self.assertEqual((socket.st_mode & 0o777, socket.st_gid), (0o660, int(group[1])))
        version = inside("dpkg-query", "-W", "-f", "${Version}", "hostwatchd").stdout
        for program in ("hostwatchctl", "hostwatchd", "hostwatchfs"):
            self.assertIn(version, inside(program, "--version").stdout)
        self.assertIn('"version"', inside("hostwatchctl", "status", "--json").stdout)
        self.assertEqual(inside("dpkg", "--verify", "hostwatchd", "hostwatchfs", "libhostwatch0").stdout, "")
        Life.messages = set()
        for catalog in (ROOT / "usr/lib/systemd/catalog").glob("hostwatch*.catalog"):
            Life.messages |= set(re.findall(r"^-- ([0-9a-f]{32})$", catalog.read_text(), re.M))
        listed = inside("journalctl", "--list-catalog").stdout
        self.assertEqual({message for message in Life.messages if message not in listed}, set())

    def test_2_serves_what_the_administrator_configures(self):
        with open(f"{ROOT}{CONFIG}", "a", encoding="utf-8") as file:
            file.write(f'\n[[share]]\nname = "src"\npath = "{SHARE}"\n')
        inside("systemctl", "restart", SERVICE)
        follower = Follower()
        follower.start()
        (ROOT / SHARE[1:] / "first").touch()
        follower.finish()
        self.assertEqual(follower.created, ["first"])

    def test_3_upgrades_under_load(self):
        pid, socket = show("MainPID"), os.stat(f"{ROOT}{SOCKET}").st_ino
        restarts = self.starts()
        configuration = pathlib.Path(f"{ROOT}{CONFIG}").read_text()
        follower = Follower()
        follower.start()
        written, stop = [], threading.Event()

        def write():
            share = ROOT / SHARE[1:]
            while not stop.is_set() or len(written) < 2000:
                (share / f"load-{len(written)}").touch()
                written.append(f"load-{len(written)}")
                # The kernel's queue, which cannot be raised here, has to hold what
                # happens while no daemon reads, however slow the machine is.
                time.sleep(0.0005)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            inside("dpkg", "-i", *packages(following=True))
            done = len(written)  # what comes later is told by the new daemon in any case
        finally:
            stop.set()
            writer.join()
        self.assertEqual(show("ActiveState"), "active")
        self.assertNotEqual(show("MainPID"), pid)
        self.assertEqual(self.starts() - restarts, 1, "one start of the service")
        self.assertEqual(os.stat(f"{ROOT}{SOCKET}").st_ino, socket, "the socket stayed")
        program = os.readlink(f"/proc/{self.host_pid()}/exe")
        self.assertEqual(program, "/usr/sbin/hostwatchd")  # not "(deleted)"
        self.assertIn("+next", inside("dpkg-query", "-W", "-f", "${Version}", "hostwatchd").stdout)
        self.assertEqual(pathlib.Path(f"{ROOT}{CONFIG}").read_text(), configuration)
        follower.finish()

        print(f"upgrade: {done} files made meanwhile, {len(written)} in all, "
              f"{len(follower.created)} told in {follower.sessions} session(s)", flush=True)
        self.assertGreater(done, 0)
        self.assertEqual(len(set(follower.created)), len(follower.created), "an event came twice")
        if int(show("FileDescriptorStoreMax")) > 0:
            # The session was handed over: nothing of the upgrade can be seen in it.
            self.assertEqual((follower.sessions, follower.detached, follower.lost), (1, [], 0))
            self.assertEqual(follower.created, written)
        else:
            # The session was ended in order, and a new one is told all from then on.
            self.assertEqual((follower.sessions, follower.detached), (2, [3]))
            missing = sorted(set(written) - set(follower.created), key=lambda n: int(n[5:]))
            if missing:  # one piece: between the two sessions
                first = written.index(missing[0])
                self.assertEqual(missing, written[first:first + len(missing)])
                self.assertLess(first + len(missing), len(written))

    def test_4_stopped_stays_stopped(self):
        inside("systemctl", "stop", SERVICE)
        inside("dpkg", "-i", *packages(following=False))  # a downgrade runs the same scripts
        self.assertEqual(show("ActiveState"), "inactive")
        self.assertEqual(show("ActiveState", "hostwatchd.socket"), "active")
        Client(f"{ROOT}{SOCKET}").socket.close()  # starts it again
        for _ in range(500):
            if show("ActiveState") == "active":
                break
            time.sleep(0.02)
        self.assertEqual(show("ActiveState"), "active")

    def test_5_removed_but_its_configuration(self):
        inside("dpkg", "-r", "hostwatchfs", "hostwatchd")
        self.assertFalse(os.path.lexists(f"{ROOT}/run/hostwatchd"))
        self.assertIn('name = "src"', pathlib.Path(f"{ROOT}{CONFIG}").read_text())
        self.assertEqual(inside("systemctl", "--failed", "-q", "--plain").stdout, "")
        running = inside("systemctl", "list-units", "-q", "--plain", "hostwatchd*").stdout
        self.assertEqual(running, "")

    def test_6_purged_without_leftovers(self):
        inside("dpkg", "-P", "hostwatchfs", "hostwatchd", "libhostwatch0")
        after = snapshot()
        self.assertEqual(sorted(after.keys() - self.before.keys()), [])
        self.assertEqual(sorted(self.before.keys() - after.keys()), [])
        changed = [path for path in after if after[path] != self.before[path]]
        self.assertEqual(changed, [])
        self.assertNotIn("hostwatch", (ROOT / "etc/group").read_text())
        listed = inside("journalctl", "--list-catalog").stdout
        self.assertEqual({message for message in Life.messages if message in listed}, set())
        self.assertEqual(inside("dpkg", "--audit").stdout, "")

    def starts(self):
        """How often the service was started, by the manager's own messages."""
        text = inside("journalctl", "-o", "json", "_PID=1",
                      "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf").stdout
        return sum('"UNIT":"hostwatchd.service"' in line for line in text.splitlines())

    def host_pid(self):
        """The daemon's pid where this test sees /proc."""
        with open(f"/proc/{INIT}/root/proc/1/comm", encoding="ascii") as file:
            assert file.read().strip() == "systemd"
        for name in os.listdir("/proc"):
            try:
                with open(f"/proc/{name}/status", encoding="ascii", errors="replace") as file:
                    text = file.read()
            except OSError:
                continue
            if "Name:\thostwatchd\n" in text and \
                    f"\t{show('MainPID')}\n" in re.search("NSpid:.*\n", text)[0] and \
                    os.stat(f"/proc/{name}/ns/pid").st_ino == os.stat(f"/proc/{INIT}/ns/pid").st_ino:
                return name
        raise AssertionError("the daemon is not in /proc")


if __name__ == "__main__":
    unittest.main(verbosity=2, failfast=True)
