# SPDX-License-Identifier: Apache-2.0
"""Host and mount write the same names at once, with directories that move and go.
Afterwards the mount's caches are the host's truth, the names that a program has
derived from inotify are the directories', and nobody was told of an end that was
none.

    HOSTWATCH_LOAD_SECONDS=300 Tests/SystemTests/run test_mixed_load
"""

import errno
import multiprocessing
import os
import random
import shutil
import stat
import subprocess
import threading
import time
import unittest

import daemon
import handles
import mounts
import scratch
from streams import Inotify

DIRECTORIES = ("a", "b", "c", "d")
NAMES = [f"n{number}" for number in range(40)]
SECONDS = float(os.environ.get("HOSTWATCH_LOAD_SECONDS", "6"))
PHASE = 3.0
RATE = 1500  # operations a second that each of the two programs tries
SETTLED = 10.0


def churn(base, seed, stop, counter, rate):
    """Random operations below `base` until `stop` is set, `rate` a second; what fails fails."""
    choose = random.Random(seed)

    def place():
        path = os.path.join(base, choose.choice(DIRECTORIES))
        if choose.random() < 0.2:
            path = os.path.join(path, choose.choice(NAMES))  # within a directory that may move
        return os.path.join(path, choose.choice(NAMES))

    def write(path, flags):
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | flags, 0o644)
        os.write(fd, os.urandom(choose.randrange(1, 200)))
        os.close(fd)

    operations = (
        (6, lambda: write(place(), os.O_CREAT)),
        (3, lambda: write(place(), os.O_APPEND)),
        (4, lambda: os.unlink(place())),
        (4, lambda: os.rename(place(), place())),
        (2, lambda: os.mkdir(place())),
        (1, lambda: os.rmdir(place())),
        (1, lambda: shutil.rmtree(place())),
        (2, lambda: os.link(place(), place())),
        (1, lambda: os.symlink("n0", place())),
        (1, lambda: os.mknod(place(), stat.S_IFSOCK | 0o600)),
        (2, lambda: os.chmod(place(), choose.choice((0o600, 0o640, 0o644)))),
        (1, lambda: os.truncate(place(), choose.randrange(100))),
    )
    weights = [weight for weight, _ in operations]
    began = time.monotonic()
    while not stop.is_set():
        if counter.value > (time.monotonic() - began) * rate:
            time.sleep(0.002)
            continue
        _, operation = choose.choices(operations, weights)[0]
        try:
            operation()
        except OSError:
            pass
        counter.value += 1


class Names:
    """What a program knows that watches some directories, and objects in them."""

    def __init__(self, mount):
        self.inotify = Inotify()
        self.mount = mount
        self.names = {}
        self.ends = []
        for name in DIRECTORIES:
            path = os.path.join(mount, name)
            self.inotify.watch(path, name)
            self.names[name] = set(os.listdir(path))
        self.read()

    def read(self):
        for label, mask, _, name in self.inotify.read():
            name = os.fsdecode(name)
            if mask & 0x4000:
                raise AssertionError("inotify's queue overflowed")
            if label.startswith("object "):
                if mask & 0x400:
                    self.ends.append(label)
            elif mask & (0x100 | 0x80):
                self.names[label].add(name)
            elif mask & (0x200 | 0x40):
                self.names[label].discard(name)


def truth(base):
    """Everything a program can see under the names of the pool."""
    found = {}
    for directory in DIRECTORIES:
        folders = [directory]
        while folders:
            folder = folders.pop()
            path = os.path.join(base, folder)
            try:
                listed = sorted(os.listdir(path))
            except OSError as error:  # it changes; or for ever, then it is not what it should be
                found[folder + "/"] = str(error.strerror)
                continue
            found[folder + "/"] = tuple(listed)
            for name in sorted({*NAMES, *listed}):
                one = os.path.join(folder, name)
                try:
                    status = os.lstat(os.path.join(base, one))
                    contents = None
                    if stat.S_ISREG(status.st_mode):
                        with open(os.path.join(base, one), "rb") as file:
                            contents = file.read()
                except FileNotFoundError:
                    found[one] = None
                    continue
                except OSError as error:
                    found[one] = str(error.strerror)
                    continue
                if stat.S_ISDIR(status.st_mode):
                    folders.append(one)
                found[one] = (status.st_mode, status.st_nlink, status.st_size,
                              status.st_mtime_ns, contents)
    return found


def differences(source, mount, names=None, seconds=SETTLED):
    """'' once the mount shows the source and the names are the directories', or what is
    wrong after so long."""
    deadline = time.monotonic() + seconds
    while True:
        wanted, got = truth(source), truth(mount)
        if names:
            names.read()
        listed = {name: set(os.listdir(os.path.join(source, name))) for name in DIRECTORIES}
        if wanted == got and (not names or names.names == listed):
            return ""
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    lines = [f"{name}: host {wanted.get(name, '-')}, mount {got.get(name, '-')}"
             for name in sorted({*wanted, *got}) if wanted.get(name) != got.get(name)]
    if names:
        lines += [f"{name}/: told {sorted(names.names[name] - listed[name])}, "
                  f"not told {sorted(listed[name] - names.names[name])}"
                  for name in DIRECTORIES if names.names[name] != listed[name]]
    return "\n".join(lines[:20])


class LoadTest(unittest.TestCase):
    limit = int(SECONDS * 4 + 120)

    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("needs root")

    def setUp(self):
        self.base = os.path.join(scratch.shared("ext4").path, os.path.basename(scratch.new_path("load")))
        self.source = os.path.join(self.base, "source")
        for name in DIRECTORIES:
            os.makedirs(os.path.join(self.source, name))
        self.addCleanup(shutil.rmtree, self.base, ignore_errors=True)
        self.daemon = daemon.Daemon()
        self.addCleanup(self.daemon.kill)
        self.mount = mounts.Mounted(self.source, self.daemon.socket)
        self.addCleanup(self.mount.stop)

    def churning(self, *bases, rate=RATE):
        stop = multiprocessing.Event()
        counters = [multiprocessing.Value("L") for _ in bases]
        processes = [
            multiprocessing.Process(
                target=churn, args=(base, random.randrange(1 << 30), stop, counter, rate))
            for base, counter in zip(bases, counters)]

        def end():
            stop.set()
            for process in processes:
                process.join(20)
                if process.is_alive():
                    process.kill()
                    process.join()
                    raise AssertionError("a program hangs")
        for process in processes:
            process.start()
        self.addCleanup(end)
        return end, counters

    def check(self, names=None, what=""):
        wrong = differences(self.source, self.mount.path, names)
        if wrong:
            self.fail(f"{what}\n{wrong}\n{self.mount.log()[-3000:]}")

    def test_mixed_load(self):
        names = Names(self.mount.path)
        steady = os.path.join(self.mount.path, "steady")
        with open(os.path.join(self.source, "steady"), "wb"):
            pass
        for phase in range(max(1, round(SECONDS / PHASE))):
            watched = self.watch_objects(names)
            end, counters = self.churning(self.source, self.mount.path)
            missing = self.look_at(steady, names, time.monotonic() + PHASE)
            end()
            self.check(names, f"phase {phase}: {[counter.value for counter in counters]} operations")
            self.assertEqual(missing, 0, "a name that is there was not found")
            self.check_ends(names, watched)

    def test_removed_objects_end(self):
        """Nothing that was removed is held open, which would keep it from its end, but
        for one or two that were removed in the moment of their use."""
        for _ in range(2):
            end, _ = self.churning(self.source, self.mount.path, rate=400)
            time.sleep(PHASE)
            end()
            for name in DIRECTORIES:
                shutil.rmtree(os.path.join(self.source, name))
                os.mkdir(os.path.join(self.source, name))
            self.check()
        daemon.write("/proc/sys/vm/drop_caches", b"2")
        deadline = time.monotonic() + SETTLED
        while len(held := self.held_open()) > 3:
            self.assertLess(time.monotonic(), deadline, f"{len(held)} are held open: {held[:5]}")
            time.sleep(0.05)

    def held_open(self):
        """Removed objects that the server has open."""
        folder = f"/proc/{self.mount.process.pid}/fd"
        found = []
        for number in os.listdir(folder):
            try:
                found.append(os.readlink(os.path.join(folder, number)))
            except FileNotFoundError:
                pass
        return [path for path in found
                if path.startswith(self.base) and path.endswith(" (deleted)")]

    def test_more_than_can_be_replayed(self):
        """What is not told one by one is told in the end."""
        names = Names(self.mount.path)
        end, counters = self.churning(self.source, rate=1e9)
        self.look_at(self.source, names, time.monotonic() + PHASE)
        end()
        self.check(names, f"{[counter.value for counter in counters]} operations")

    def look_at(self, path, names, until):
        missing = 0
        while time.monotonic() < until:
            try:
                os.stat(path)
            except FileNotFoundError:
                missing += 1
            names.read()
        return missing

    def watch_objects(self, names):
        """Watches what is there now; their handles on the host."""
        root = os.open(self.source, os.O_RDONLY)
        self.addCleanup(os.close, root)
        watched = {}
        for directory in DIRECTORIES:
            for name in os.listdir(os.path.join(self.source, directory)):
                label = f"object {directory}/{name} {len(watched)} {time.monotonic()}"
                try:
                    handle = handles.handle_of(os.path.join(self.source, directory, name))
                    names.inotify.watch(os.path.join(self.mount.path, directory, name), label,
                                        0xFFF | 0x02000000 | 0x10000000)
                except OSError:
                    continue  # another name of something that is watched
                watched[label] = root, handle
        return watched

    def check_ends(self, names, watched):
        for label in names.ends:
            if label not in watched:
                continue
            try:
                fd = handles.open_handle(*watched[label])
            except OSError:
                continue
            links = os.fstat(fd).st_nlink
            os.close(fd)
            self.assertEqual(links, 0, f"{label}: DELETE_SELF, and it lives")

    def test_execution_while_it_is_written(self):
        """Nothing that is replayed keeps a program of the mount from being executed."""
        tool, other = (os.path.join(self.source, name) for name in ("tool", "other"))
        shutil.copy("/bin/true", tool)
        guest = os.path.join(self.mount.path, "tool")
        stop = threading.Event()

        def touch():
            while not stop.is_set():
                shutil.copy("/bin/true", other)
                os.chmod(other, 0o755)
                os.rename(other, tool)
                fd = os.open(tool, os.O_WRONLY)
                os.close(fd)
                os.utime(tool)

        thread = threading.Thread(target=touch)
        thread.start()
        try:
            done = 0
            while done < 150:
                try:
                    self.assertEqual(subprocess.run([guest], check=False).returncode, 0)
                    done += 1
                except OSError as error:
                    # Replaced twice between its lookup and its open, or its mode is
                    # on its way: it was created without the right to be executed.
                    self.assertIn(error.errno, (errno.ESTALE, errno.EACCES))
        finally:
            stop.set()
            thread.join()
