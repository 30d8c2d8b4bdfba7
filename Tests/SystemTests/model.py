# SPDX-License-Identifier: Apache-2.0
"""Models of a share's namespace, kept by records alone, that must equal the
filesystem at every SYNC reply (the protocol's rule 4).

TreeModel is what a TREE client keeps. NodesModel is what a FUSE server keeps: it
registers what it has looked up, directories before their contents.
"""

import errno
import os

import handles
from hostwatch import (CORRECTED, CREATE, DELETE, DELETE_SELF, ISDIR, MOVED_IN, NOBODY,
                       RECHECK, RENAME, ROOT, Lost, Record, Resynced, register_entry)

_GONE = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
_BATCH = 250


def listing(fd):
    """The entries of an open directory: name → (handle, is a directory)."""
    found = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            try:
                found[name] = (handles.handle_at(fd, name),
                               entry.is_dir(follow_symlinks=False))
            except OSError as error:
                if error.errno not in _GONE:
                    raise
    return found


def open_directory(path, dir_fd=None):
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)


def walk(path, identify):
    """The truth: {relative path: identity} of everything below `path`."""
    found = {}

    def descend(fd, prefix):
        for name, (handle, is_dir) in listing(fd).items():
            found[prefix + name] = identify(handle)
            if is_dir:
                below = open_directory(name, dir_fd=fd)
                try:
                    descend(below, prefix + name + b"/")
                finally:
                    os.close(below)

    fd = open_directory(path)
    try:
        descend(fd, b"")
    finally:
        os.close(fd)
    return found


class Model:
    """Directories and what they hold: entries[directory][name] = node."""

    def __init__(self, client, path):
        self.client = client
        self.path = path
        self.entries = {ROOT: {}}
        self.history = []

    def set(self, directory, name, node):
        self.entries.setdefault(directory, {})[name] = node

    def remove(self, directory, name, node):
        names = self.entries.get(directory, {})
        if names.get(name) == node:
            del names[name]

    def flat(self):
        """{relative path: node} of what hangs together below the root."""
        found = {}

        def descend(directory, prefix, above):
            for name, node in self.entries.get(directory, {}).items():
                found[prefix + name] = node
                if node in self.entries and node not in above:
                    descend(node, prefix + name + b"/", above | {node})

        descend(ROOT, b"", {ROOT})
        return found

    def apply_all(self, notifications):
        for one in notifications:
            self.history.append(one)
            if isinstance(one, Record):
                self.apply(one)
            elif isinstance(one, Resynced):
                self.resynced()
            elif not isinstance(one, Lost):
                raise AssertionError(one)

    def differences(self, truth):
        kept = self.flat()
        lines = [f"  {path!r}: kept {kept.get(path)}, is {truth.get(path)}"
                 for path in sorted(kept.keys() | truth.keys())
                 if kept.get(path) != truth.get(path)]
        if not lines:
            return ""
        shown = "\n".join(lines[:12])
        last = "\n".join(f"  {one}" for one in self.history[-40:])
        return (f"{len(lines)} differences in {self.path}:\n{shown}\n"
                f"the last of {len(self.history)} notifications:\n{last}")


class TreeModel(Model):
    """nodeid is the inode number, generation the filesystem's."""

    def __init__(self, client, path):
        super().__init__(client, path)
        self.root = handles.identity_of(path)
        self.place = {}  # directory → (its directory, its name)
        self.unread = set()  # directories whose contents are not known
        self.read(ROOT)

    def _where(self, node):
        parts = []
        while node != ROOT:
            if node not in self.place or len(parts) > 4096:
                return None
            node, name = self.place[node]
            parts.append(name)
        return b"/".join([os.fsencode(self.path), *reversed(parts)])

    def read(self, directory):
        """Reads a directory and what is below it, by its path in this model. If
        something else is there by now, a later record says where it went."""
        self.unread.add(directory)
        path = self._where(directory)
        if path is None:
            return
        try:
            fd = open_directory(path)
        except OSError as error:
            if error.errno in _GONE + (errno.ELOOP,):
                return
            raise
        try:
            there = handles.identity(handles.handle_at(fd))
            if (ROOT if there == self.root else there) == directory:
                self._read_open(directory, fd)
        finally:
            os.close(fd)

    def _read_open(self, directory, fd):
        self.unread.discard(directory)
        found = listing(fd)
        self.entries[directory] = {}
        for name, (handle, is_dir) in found.items():
            node = handles.identity(handle)
            self.set(directory, name, node)
            if not is_dir:
                continue
            self.place[node] = (directory, name)
            try:
                below = open_directory(name, dir_fd=fd)
            except OSError as error:
                if error.errno not in _GONE + (errno.ELOOP,):
                    raise
                self.unread.add(node)
                continue
            try:
                if handles.identity(handles.handle_at(below)) == node:
                    self._read_open(node, below)
                else:
                    self.unread.add(node)
            finally:
                os.close(below)

    def apply(self, record):
        if record.flags & RECHECK:
            if record.mask & ISDIR:
                self.read(record.node)
            return
        if record.mask & RENAME:
            if record.dir != NOBODY:
                if record.mask & ISDIR and not self._holds(record):
                    self._forget(record.node)
                self.remove(record.dir, record.name, record.node)
            if record.new_dir != NOBODY:
                self._put(record, record.new_dir, record.new_name)
            elif record.mask & ISDIR:
                self._forget(record.node)
        elif record.mask & CREATE:
            self._put(record, record.dir, record.name)
        elif record.mask & DELETE:
            self.remove(record.dir, record.name, record.node)
            if record.mask & ISDIR and record.flags & CORRECTED:
                self._forget(record.node)

    def _holds(self, record):
        """Whether a directory leaves a place where it is known to be. It may have come
        there outside, below a directory that moved in and has not been read since."""
        return self.entries.get(record.dir, {}).get(record.name) == record.node

    def _forget(self, directory):
        """What happens in a directory outside, and below it, is not told: when one of
        them is put somewhere again it has to be read, however it came there."""
        waiting = [directory]
        while waiting:
            directory = waiting.pop()
            self.unread.add(directory)
            below = self.entries.pop(directory, {}).values()
            waiting += [node for node in below if node in self.entries]

    def _put(self, record, directory, name):
        if directory not in self.entries:
            self.unread.add(directory)
        self.set(directory, name, record.node)
        if not record.mask & ISDIR:
            return
        self.entries.setdefault(record.node, {})
        self.place[record.node] = (directory, name)
        if record.flags & (MOVED_IN | CORRECTED) or record.node in self.unread:
            self.read(record.node)

    def resynced(self):
        self.entries = {ROOT: {}}
        self.place = {}
        self.read(ROOT)

    def sync(self):
        """Applies everything up to a SYNC reply."""
        self.apply_all(self.client.sync())
        for directory in list(self.unread):
            self.read(directory)

    def check(self):
        """'' if the model equals the filesystem, else what differs."""
        self.sync()
        return self.differences(walk(self.path, handles.identity))


class NodesModel(Model):
    """A FUSE server: it numbers objects as it looks them up."""

    # What the daemon asks the filesystem may fail: then anything may be a directory.
    is_asked_in_vain = False

    def __init__(self, client, path):
        super().__init__(client, path)
        self.mount_fd = open_directory(path)
        root = handles.handle_of(path)
        self.nodes = {root: ROOT}  # handle → node
        self.handle = {ROOT: root}
        self.directories = {ROOT}
        self.ended = set()  # after DELETE_SELF
        self.last = 1
        self.read(ROOT)

    def close(self):
        os.close(self.mount_fd)

    def read(self, directory):
        """Looks up all entries of a registered directory, and of those below."""
        waiting = [directory]
        while waiting:
            directory = waiting.pop()
            fd = self._open(directory, os.O_RDONLY | os.O_DIRECTORY)
            if fd is None:
                continue
            try:
                found = listing(fd)
                new = self._register(fd, found)
            finally:
                os.close(fd)
            names = self.entries.setdefault(directory, {})
            names.clear()
            for name, (handle, _) in found.items():
                if handle in self.nodes:
                    names[name] = self.nodes[handle]
            waiting += new

    def _open(self, node, flags):
        try:
            held = handles.open_handle(self.mount_fd, self.handle[node])
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        try:
            return os.open(f"/proc/self/fd/{held}", flags)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise
        finally:
            os.close(held)

    def _register(self, fd, found):
        """Registers what is not registered yet; the new directories among it."""
        new_directories = []
        batch, fds, seen = [], [], []
        for name, (handle, _) in found.items():
            if handle in self.nodes or handle in seen:
                continue
            try:
                held = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            if handles.handle_at(held) != handle:
                os.close(held)  # another object by now; a record will say so
                continue
            status = os.stat(held)
            self.last += 1
            since = divmod(status.st_ctime_ns, 1000000000)
            is_dir = (status.st_mode & 0o170000) == 0o040000
            batch.append((handle, (self.last, 7), is_dir, since))
            seen.append(handle)
            fds.append(held)
            if len(batch) == _BATCH:
                new_directories += self._send(batch, fds)
                batch, fds, seen = [], [], []
        if batch:
            new_directories += self._send(batch, fds)
        return new_directories

    def _send(self, batch, fds):
        try:
            statuses = self.client.register(
                [register_entry(*node, since=since) for _, node, _, since in batch], fds)
        finally:
            for fd in fds:
                os.close(fd)
        new_directories = []
        for (handle, node, is_dir, _), status in zip(batch, statuses):
            assert status == 0, (status, handle, node)
            self.nodes[handle] = node
            self.handle[node] = handle
            if is_dir:
                self.directories.add(node)
                new_directories.append(node)
        return new_directories

    def look_up(self, directory, name):
        """What a FUSE server does when it is told that a name changed."""
        names = self.entries.setdefault(directory, {})
        fd = self._open(directory, os.O_PATH | os.O_DIRECTORY)
        if fd is None:
            names.pop(name, None)
            return
        try:
            try:
                handle = handles.handle_at(fd, name)
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                names.pop(name, None)
                return
            new = self._register(fd, {name: (handle, None)})
            if handle in self.nodes:
                names[name] = self.nodes[handle]
            else:
                names.pop(name, None)
        finally:
            os.close(fd)
        for directory in new:
            self.read(directory)

    def apply(self, record):
        if record.node in self.ended:
            story = [str(one) for one in self.history if isinstance(one, Record)
                     and record.node in (one.dir, one.node, one.new_dir)]
            raise AssertionError("a record after DELETE_SELF:\n" + "\n".join(story))
        for node in (record.dir, record.node, record.new_dir):
            if node != NOBODY and node not in self.handle:
                raise AssertionError(f"never registered, or forgotten: {record}")
        if record.flags & RECHECK:
            self._recheck(record)
            return
        sides = []
        if record.mask & (RENAME | DELETE):
            sides.append((record.dir, record.name, False))
        if record.mask & RENAME:
            sides.append((record.new_dir, record.new_name, True))
        if record.mask & CREATE:
            sides.append((record.dir, record.name, True))
        for directory, name, put in sides:
            if directory == NOBODY:
                continue
            if record.node == NOBODY:
                self.look_up(directory, name)
            elif put:
                self.set(directory, name, record.node)
            else:
                self.remove(directory, name, record.node)
        if record.mask & DELETE_SELF:
            self._end(record.node)

    def _recheck(self, record):
        if not (self.is_asked_in_vain and record.mask & ISDIR):
            assert bool(record.mask & ISDIR) == (record.node in self.directories), record
        for directory, names in list(self.entries.items()):
            for name in [name for name, node in names.items() if node == record.node]:
                self.look_up(directory, name)
        if record.node in self.directories:
            self.read(record.node)

    def _end(self, node):
        """DELETE_SELF: nothing more comes; the identity is given back."""
        self.ended.add(node)
        handle = self.handle[node]
        if self.nodes.get(handle) == node:
            del self.nodes[handle]
        self.client.forget(node)

    def resynced(self):
        """Every change since has come as RECHECK or DELETE_SELF."""

    def check(self):
        # A lookup can meet a change whose records come after the reply.
        while True:
            notifications = self.client.sync()
            if not notifications:
                break
            self.apply_all(notifications)
        truth = walk(self.path, lambda handle: self.nodes.get(handle, ("?", handle)))
        return self.differences(truth)
