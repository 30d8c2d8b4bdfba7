# SPDX-License-Identifier: Apache-2.0
"""Shares that come, go and hide, and a loop that does not read, under a real systemd:
run by `systemd`, inside the sandbox."""

import contextlib
import ctypes
import os
import pathlib
import re
import shutil
import struct
import tempfile
import time
import unittest

import systemd_test
from systemd_test import (CONFIG, CTL, ROOT, SERVICE, SystemdTest, drop_in, eventually, run, show,
                          systemctl)
from wire import DETACHED, EVENTS, TREE, Client

systemd_test.MESSAGE_IDS |= {
    "share ready": "66cb54e4cfe341b1a8304217dd1f4482",
    "share unavailable": "d5c97e913fe0475cad6dcedd15f9b038",
    "share detached": "4ea25aff06a54b74a9518f9a101d4706",
    "not progressing": "232bd5265389458b8bc0ecfa66e2c033",
}
SHARES = 15  # more of a kind at once are not logged one by one
PIDFD_OPEN, PIDFD_GETFD = 434, 438
EPOLL_CTL_DEL = 2
libc = ctypes.CDLL(None, use_errno=True)


def setUpModule():
    systemd_test.setUpModule()


def share(name, path):
    return f'[[share]]\nname = "{name}"\npath = "{path}"\n'


def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


class Shares(SystemdTest):
    def tearDown(self):
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
            point = line.split()[4]
            if point.startswith(self.share + "/"):
                run("umount", "-l", point)
        super().tearDown()

    def sees(self, client, path):
        """That the client is told of a file that is made now."""
        pathlib.Path(path).touch()
        name = os.path.basename(path).encode()
        while name not in client.wait_for(EVENTS):
            pass

    def attach(self, name="src"):
        client = Client()
        self.addCleanup(client.socket.close)
        self.assertEqual(client.init(name, mode=TREE)[0], 0)
        return client

    def test_start_waits_until_every_share_is_watched(self):
        paths = [f"{self.share}/{number}" for number in range(SHARES)]
        for path in paths:
            os.mkdir(path)
            run("mount", "-t", "tmpfs", "one-of-many", path)
        CONFIG.write_text("".join(share(f"s{i}", path) for i, path in enumerate(paths)))
        # The two clocks' distance, for journald and systemd tell different ones.
        distance = (time.clock_gettime_ns(time.CLOCK_REALTIME)
                    - time.clock_gettime_ns(time.CLOCK_MONOTONIC)) // 1000
        systemctl("start", SERVICE)
        with Client() as client:
            states = {one["name"]: one["state"] for one in client.status()["shares"]}
        self.assertEqual(states, {f"s{i}": "ready" for i in range(SHARES)})
        ready = self.journal.wait("share ready")
        self.assertEqual({one["HOSTWATCH_SHARE"] for one in ready}, set(states))
        last = max(int(one["_SOURCE_REALTIME_TIMESTAMP"]) for one in ready) - distance
        self.assertLess(last, int(show("ActiveEnterTimestampMonotonic")))
        self.assertGreater(last, int(show("ExecMainStartTimestampMonotonic")))

    def test_unmount_and_mount_again(self):
        for target in ("first", "second"):
            os.mkdir(f"{self.share}/{target}")
        first = f"{self.share}/first"
        run("mount", "-t", "tmpfs", "share", first)
        CONFIG.write_text(share("src", first) + share("other", f"{self.share}/second"))
        systemctl("start", SERVICE)
        client, other = self.attach(), self.attach("other")
        self.sees(client, f"{first}/before")
        pathlib.Path(first, "last").touch()
        run("umount", first)
        said = b""
        while True:
            kind, body = client.receive()
            if kind == DETACHED:
                break
            self.assertEqual(kind, EVENTS)
            said += body
        self.assertEqual(struct.unpack_from("=I", body)[0], 1)
        self.assertIn(b"last", said)
        self.assertEqual(client.receive(), (None, b""))
        self.assertEqual(self.journal.wait("share detached")[0]["HOSTWATCH_SHARE"], "src")
        run("mount", "-t", "tmpfs", "share", first)
        # What is mounted, not the empty directory below it, is watched for the share.
        number = os.stat(first).st_dev
        device = f"{os.major(number)}:{os.minor(number)}"
        with Client() as client:
            eventually(lambda: device in [one["device"] for one in client.status()["filesystems"]])
        self.sees(self.attach(), f"{first}/again")
        self.sees(other, f"{self.share}/second/unconcerned")

    def test_share_added_by_a_reload_is_used(self):
        self.configure()
        systemctl("start", SERVICE)
        client = self.attach()
        with tempfile.TemporaryDirectory(dir="/run") as added:
            with Client() as early:
                self.assertEqual(early.init("added", mode=TREE)[0], -2)
            CONFIG.write_text(CONFIG.read_text() + share("added", added))
            systemctl("reload", SERVICE)
            # Reloading is over when systemctl returns.
            self.sees(self.attach("added"), f"{added}/in-the-added")
        self.sees(client, f"{self.share}/in-the-old")

    def test_reload_with_a_hidden_share_changes_nothing(self):
        self.configure()
        systemctl("start", SERVICE)
        client = self.attach()
        with tempfile.TemporaryDirectory(dir="/tmp") as hidden:
            CONFIG.write_text(share("hidden", hidden))
            done = systemctl("reload", SERVICE, check=False)
        self.assertNotEqual(done.returncode, 0)
        entry = self.journal.wait("share hidden")[0]
        self.assertEqual(entry["HOSTWATCH_SHARE"], "hidden")
        self.assertIn("set PrivateTmp=no", entry["MESSAGE"])
        self.journal.wait("reload refused")
        self.sees(client, f"{self.share}/still-watched")
        with Client() as late:
            self.assertEqual(late.init("hidden", mode=TREE)[0], -2)
            self.assertIn("set PrivateTmp=no", late.status()["reload"]["error"])

    def test_another_root_is_refused(self):
        other = tempfile.mkdtemp(dir="/run")
        self.addCleanup(shutil.rmtree, other)
        top = "/" + ROOT.parts[1]
        binds = {"/usr", "/etc", "/opt", "/run/systemd", "/run/hostwatchd", top}
        os.makedirs("/run/hostwatchd", exist_ok=True)
        for name in os.listdir("/"):
            if os.path.islink(f"/{name}"):
                os.symlink(os.readlink(f"/{name}"), f"{other}/{name}")
            elif os.path.isdir(f"/{name}"):
                os.mkdir(f"{other}/{name}")
        for path in binds:
            os.makedirs(other + path, exist_ok=True)
        CONFIG.write_text(share("hidden", "/srv"))
        paths = " ".join(sorted(path for path in binds if os.path.isdir(path)))
        drop_in(f"[Service]\nRootDirectory={other}\nBindReadOnlyPaths={paths}\n")
        self.assertNotEqual(systemctl("start", SERVICE, check=False).returncode, 0)
        self.assertEqual(show("ExecMainStatus"), "78")
        entry = self.journal.wait("share hidden")[0]
        self.assertIn("remove RootDirectory= or RootImage=", entry["MESSAGE"])


def keys_of(value):
    """The keys of every object in a JSON value."""
    if isinstance(value, list):
        return {key for one in value for key in keys_of(one)}
    if isinstance(value, dict):
        return set(value) | keys_of(list(value.values()))
    return set()


class Traffic(SystemdTest):
    def test_share_has_the_sum_of_its_sessions(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as stays:
            self.assertEqual(stays.init("src", mode=TREE)[0], 0)
            with Client() as goes:
                self.assertEqual(goes.init("src", mode=TREE)[0], 0)
                for number in range(5):
                    pathlib.Path(self.share, f"f{number}").touch()
                self.assertEqual((stays.sync(), goes.sync()), (0, 0))
                both = stays.status()
            ended = eventually(lambda: len(stays.status()["sessions"]) == 1 and stays.status())
            pathlib.Path(self.share, "one-more").touch()
            self.assertEqual(stays.sync(), 0)
            later = stays.status()
            text = run(CTL, "metrics").stdout
        keys = ("delivered", "delivered_bytes", "corrected", "dropped", "lost", "lag_sum_us")
        for key in keys:
            self.assertEqual(
                both["shares"][0][key], sum(one[key] for one in both["sessions"]), key)
        self.assertEqual(both["sessions"][0]["delivered"], both["sessions"][1]["delivered"])
        self.assertGreaterEqual(both["sessions"][0]["delivered_bytes"], 5 * 96)
        for key in keys:
            self.assertEqual(ended["shares"][0][key], both["shares"][0][key], key)
        self.assertGreater(later["shares"][0]["delivered"], both["shares"][0]["delivered"])
        counts = later["shares"][0]["lag_counts"]
        self.assertEqual(len(counts), len(later["lag_bounds_us"]) + 1)
        self.assertGreater(sum(counts), sum(later["sessions"][0]["lag_counts"]))
        documented = (ROOT / "docs/protocol.md").read_text()
        documented = documented.partition("\n## STATUS\n")[2].partition("\n## EVENTS\n")[0]
        self.assertEqual([key for key in keys_of(later) if f"`{key}`" not in documented], [])
        delivered = re.search(
            r'^hostwatch_share_delivered_total\{share="src"\} (\d+)$', text, re.M)[1]
        self.assertEqual(int(delivered), later["shares"][0]["delivered"])

    def test_lag_of_a_client_that_does_not_read(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as reads, Client() as waits:
            for client in (reads, waits):
                self.assertEqual(client.init("src", mode=TREE)[0], 0)
            # More than the socket takes.
            while not next(one for one in reads.status()["sessions"]
                           if one["id"] == 2)["queue_bytes"]:
                for number in range(100):
                    path = pathlib.Path(self.share, f"{'n' * 200}{number}")
                    path.touch()
                    path.unlink()
                self.assertEqual(reads.sync(), 0)
            time.sleep(0.3)  # what is to be seen as lag
            self.assertEqual(waits.sync(), 0)
            status = reads.status()
        bounds = status["lag_bounds_us"] + [float("inf")]
        lags = [[bound for bound, count in zip(bounds, one["lag_counts"]) if count]
                for one in sorted(status["sessions"], key=lambda one: one["id"])]
        self.assertGreaterEqual(max(lags[1]), 1_000_000)
        self.assertLess(max(lags[0]), max(lags[1]))


class Watchdog(SystemdTest):
    def test_a_loop_that_turns_but_does_not_read_is_ended(self):
        self.configure()
        drop_in("[Service]\nWatchdogSec=4s\nRestartSec=0\n")
        systemctl("start", SERVICE)
        pid = self.pid()
        with Client() as client:
            # Without a session the mark asks for nothing.
            self.assertEqual(client.init("src", mode=TREE)[0], 0)
            self.unhook_group(pid)
            pathlib.Path(self.share, "never-read").touch()
            # The loop turns all the while; it answers.
            self.journal.wait("not progressing")
            with Client() as other:
                status = other.status()
            self.assertEqual((status["pid"], status["filesystems"][0]["queue_events"] > 0),
                             (pid, True))
        eventually(lambda: show("NRestarts") == "1" and self.pid() not in (0, pid), 60)
        entries = self.journal.entries("not progressing")
        self.assertEqual(len(entries), 1, entries)
        self.assertIn("are not read", entries[0]["MESSAGE"])
        self.assertEqual(entries[0]["_PID"], str(pid))

    def unhook_group(self, pid):
        """Takes the group out of the loop's epoll set from outside, as a lost
        registration would."""
        links = {}
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                links[int(number)] = os.readlink(f"/proc/{pid}/fd/{number}")
        group = [n for n, link in links.items() if link == "anon_inode:[fanotify]"]
        loops = [n for n, link in links.items() if link == "anon_inode:[eventpoll]"]
        self.assertEqual(len(group), 1, links)
        process = checked(libc.syscall(PIDFD_OPEN, pid, 0))
        stolen = checked(libc.syscall(PIDFD_GETFD, process, group[0], 0))
        # The set knows a file by its number, too: it has to be the same here.
        removed = 0
        for number in loops:
            loop = checked(libc.syscall(PIDFD_GETFD, process, number, 0))
            removed += self.remove(loop, stolen, group[0])
            os.close(loop)
        os.close(process)
        os.close(stolen)
        self.assertEqual(removed, 1)

    @staticmethod
    def remove(loop, file, number):
        """In a process of its own, whose descriptors may be overwritten."""
        child = os.fork()
        if child == 0:
            keep = os.dup2(loop, 900)
            os.dup2(file, number)
            os._exit(1 if libc.epoll_ctl(keep, EPOLL_CTL_DEL, number, None) == 0 else 0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def test_reads_that_are_held_back_feed_it(self):
        self.configure('[daemon]\nmax-delay = "1s"\n')
        drop_in("[Service]\nWatchdogSec=1s\n")
        systemctl("start", SERVICE)
        pid = self.pid()
        with Client() as client:
            self.assertEqual(client.init("src", mode=TREE, max_delay=1_000_000)[0], 0)
            end = time.monotonic() + 4
            number = 0
            while time.monotonic() < end:
                pathlib.Path(self.share, str(number)).touch()
                number += 1
                time.sleep(0.01)  # so that something is queued at every look
            self.assertEqual(client.sync(), 0)
        self.assertEqual((show("NRestarts"), self.pid()), ("0", pid))
        self.assertEqual(self.journal.entries("not progressing"), [])


if __name__ == "__main__":
    unittest.main(verbosity=2)
