# SPDX-License-Identifier: Apache-2.0
"""On a mount, the host's changes raise the events that they raise natively.

Each operation is done twice on one filesystem: in a directory that is watched there, and
in an exported one that is watched on the mount. The streams of inotify and of
fanotify's inode marks have to be equal, line by line, with the mount's caches cold
and with everything looked up before; and what the mount shows afterwards has to be
what the host has.

    HOSTWATCH_EQUALITY=btrfs Tests/SystemTests/run test_equality    # on another filesystem
"""

import itertools
import os
import shutil
import stat
import time
import unittest

import daemon
import mounts
import operations
import scratch
from streams import Fanotify, Inotify

QUIET = 0.06  # seconds; what the server settles comes within


def without(*words):
    """The lines but for these events; what is left of a merged one stays."""
    def apply(lines):
        kept = []
        for line in lines:
            label, colon, rest = line.rpartition(": ") if ": " in line else ("", "", line)
            masks, separator, tail = rest.partition(" ") if colon else rest.partition(",")
            left = [mask for mask in masks.split("|") if mask not in words]
            if left and left != ["ISDIR"]:
                kept.append(label + colon + "|".join(left) + separator + tail)
        return kept
    return apply


def once(lines):
    """The lines without those that were there before."""
    return list(dict.fromkeys(lines))


def nothing(_lines):
    return []


def without_nameless(lines):
    return [line for line in lines if "'#" not in line]


# What differs, and why: docs/replay.md has the same list with more words. Each is
# applied to both streams, so that all the rest has to be equal.
LATE_OPEN = without("OPEN")  # to raise CLOSE_WRITE the mount opens, too: OPEN comes then
MERGED = once  # fanotify merges MODIFYs of the host, before and after another event
UNTOLD = nothing  # reading is not asked for: every open of the server would be told
NAMELESS = without_nameless  # the daemon does not tell the name of an O_TMPFILE object
EXECUTABLE = without("OPEN", "CLOSE_WRITE")  # an open writer makes execve fail
LOCAL = nothing  # what flows through a fifo stays where it flows
DEVIATIONS = {
    "copy_file_range": LATE_OPEN, "fallocate": LATE_OPEN, "git_lock": LATE_OPEN,
    "rename_over_open": LATE_OPEN, "unlink_while_open": LATE_OPEN,
    "write_through_open_descriptor": LATE_OPEN,
    "open_truncating": MERGED,
    "read": UNTOLD, "list_directories": UNTOLD, "execute": UNTOLD,
    "tmpfile_linked": NAMELESS,
    "write_executable": EXECUTABLE,
    "write_fifo": LOCAL,
}


def reading(lines):
    """With -o access reading is asked for, opening still is not; several reads are merged."""
    return once(without("OPEN", "OPEN_EXEC", "CLOSE_NOWRITE")(lines))


ACCESS_DEVIATIONS = {"read": reading, "list_directories": reading, "execute": reading}

_serial = itertools.count()  # directories of their own for each try


class Watched:
    """The streams of a directory from now on."""

    def __init__(self, directory, names):
        self.inotify, self.fanotify = Inotify(), Fanotify()
        for name in names.split():
            self.inotify.watch(os.path.join(directory, name), name)
            self.fanotify.watch(os.path.join(directory, name), name)

    def end(self):
        lines = self.inotify.lines(), self.fanotify.lines()
        self.inotify.close()
        self.fanotify.close()
        return lines


def native(operation, base):
    """What the operation raises on the filesystem itself."""
    place = operations.Place(os.path.join(base, "in"), os.path.join(base, "out"))
    os.makedirs(place.path)
    os.mkdir(place.out)
    steps = operation(place)
    watched = Watched(place.path, next(steps))
    for _ in steps:
        pass
    return watched.end(), names_below(place.path)


def names_below(directory):
    return [os.path.relpath(os.path.join(folder, name), directory)
            for folder, folders, files in os.walk(directory) for name in folders + files]


def picture(directory):
    """Everything a program can see below a directory, but its inode numbers."""
    found = {}
    for name in [".", *names_below(directory)]:
        path = os.path.join(directory, name)
        status = os.lstat(path)
        contents = None
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                contents = file.read()
        elif stat.S_ISLNK(status.st_mode):
            contents = os.readlink(path)
        found[name] = (status.st_mode, status.st_nlink, status.st_uid, status.st_gid,
                       status.st_rdev, status.st_mtime_ns, contents)
        if not stat.S_ISDIR(status.st_mode):
            found[name] += (status.st_size,)
    return found


def look_everywhere(directory, names):
    """Fills the mount's caches, with the names that are not there yet as well."""
    picture(directory)
    for name in names:
        try:
            os.lstat(os.path.join(directory, name))
        except (FileNotFoundError, NotADirectoryError):
            pass


def difference(wanted, got):
    width = max([len(line) for line in wanted + ["native"]])
    rows = []
    for at in range(max(len(wanted), len(got))):
        left = wanted[at] if at < len(wanted) else "-"
        right = got[at] if at < len(got) else "-"
        rows.append(f"  {'  ' if left == right else '! '}{left:{width}} | {right}")
    return "\n".join([f"    {'native':{width}} | mount", *rows])


class Equality(unittest.TestCase):
    attempts = 3  # see runner.py
    limit = 300
    kind = os.environ.get("HOSTWATCH_EQUALITY", "ext4")
    options = ""
    deviations = DEVIATIONS

    @classmethod
    def setUpClass(cls):
        if os.geteuid() != 0:
            raise unittest.SkipTest("needs root")
        cls.base = os.path.join(
            scratch.shared(cls.kind).path, os.path.basename(scratch.new_path("equality")))
        cls.addClassCleanup(shutil.rmtree, cls.base, ignore_errors=True)
        os.makedirs(os.path.join(cls.base, "native"))
        os.makedirs(os.path.join(cls.base, "outside"))
        source = os.path.join(cls.base, "source")
        os.makedirs(os.path.join(source, "mark"))
        cls.daemon = daemon.Daemon()
        cls.addClassCleanup(cls.daemon.stop)
        cls.addClassCleanup(cls.daemon.drain_notifications)  # nobody else reads them
        cls.mount = mounts.Mounted(source, cls.daemon.socket, cls.options)
        cls.addClassCleanup(cls.mount.stop)
        cls.mark = Inotify()
        cls.mark.watch(os.path.join(cls.mount.path, "mark"), "mark")
        cls.marks = 0

    def seen(self):
        """Waits until the mount has told everything that was done before."""
        type(self).marks += 1
        name = str(self.marks)
        os.mkdir(os.path.join(self.mount.source, "mark", name))
        self.told = self.mark.wait_for(name.encode(), 2)

    def settled(self):
        """And until it would have put right what it had told wrong."""
        self.seen()
        time.sleep(QUIET)
        self.seen()

    def on_mount(self, operation, name, warm, names):
        place = operations.Place(os.path.join(self.mount.source, name),
                                 os.path.join(self.base, "outside", name))
        guest = os.path.join(self.mount.path, name)
        os.mkdir(place.path)
        os.mkdir(place.out)
        steps = operation(place)
        watch = next(steps)
        if warm:
            look_everywhere(guest, names)
        self.settled()
        watched = Watched(guest, watch)
        self.seen()  # what was just looked up is registered meanwhile
        for _ in steps:
            self.seen()
        self.settled()
        streams = watched.end()
        if not self.told:
            self.fail("the mount tells nothing:\n" + self.mount.log())
        self.assertEqual(picture(guest), picture(place.path), "what the mount shows is not true")
        return streams

    def check(self, operation, warm):
        """A dozen times at most, as long as nothing differs but when an OPEN came: a
        writer that is held up between its write and its close looks like two."""
        name = f"{operation.__name__}-{'warm' if warm else 'cold'}-{next(_serial)}"
        wanted, names = native(operation, os.path.join(self.base, "native", name))
        self.assertTrue(wanted[0], "nothing was told natively")
        for attempt in range(12):
            got = self.on_mount(operation, f"{name}-{attempt}", warm, names)
            deviation = self.deviations.get(operation.__name__, list)
            pairs = [(kind, deviation(left), deviation(right)) for kind, left, right
                     in zip(("inotify", "fanotify"), wanted, got)]
            if all(left == right for _, left, right in pairs):
                return
            if any(LATE_OPEN(left) != LATE_OPEN(right) for _, left, right in pairs):
                break
        self.fail("\n".join(f"{kind}:\n{difference(left, right)}" for kind, left, right in pairs))


def _add(case, operation, warm):
    def test(self):
        self.check(operation, warm)
    name = f"test_{operation.__name__}_{'warm' if warm else 'cold'}"
    test.__name__ = name
    setattr(case, name, test)


class EqualityTest(Equality):
    """Everything."""


class AccessTest(Equality):
    """What is read on the host, with -o access."""

    options = "access"
    deviations = DEVIATIONS | ACCESS_DEVIATIONS


class XfsTest(Equality):
    kind = "xfs"


class BtrfsTest(Equality):
    kind = "btrfs"


class TmpfsTest(Equality):
    kind = "tmpfs"


# One of each sort, where another filesystem may have other handles or another order.
SOME = [getattr(operations, _name) for _name in (
    "create_and_write", "mkdir_chain", "symlink", "link_other_directory", "unlink_while_open",
    "unlink_one_of_two_links", "remove_tree", "rename_over", "rename_directory_elsewhere",
    "exchange_file_and_directory", "move_in_directory", "move_out_and_back", "append",
    "truncate", "setxattr", "chmod_directory", "editor_saves")]

for _operation in operations.ALL:
    _add(EqualityTest, _operation, False)
    _add(EqualityTest, _operation, True)
for _operation in (operations.read, operations.list_directories, operations.execute, *SOME):
    _add(AccessTest, _operation, False)
    _add(AccessTest, _operation, True)
for _operation in SOME:
    for _case in (XfsTest, BtrfsTest, TmpfsTest):
        _add(_case, _operation, True)
