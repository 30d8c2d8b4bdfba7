# SPDX-License-Identifier: Apache-2.0
"""Random histories of a filesystem: their writers, their replay, and how a failing
one is made small."""

import os
import select
import shutil
import signal
import stat
import subprocess
import time
import unittest

import handles
import scratch
from hostwatch import NOBODY, NODES, ROOT, TIMEOUT, TREE, Lost, Record, register_entry
from model import NodesModel, TreeModel, walk

_GONE = (FileNotFoundError, NotADirectoryError)
_binary = None


def churn():
    """The writer's program, compiled once."""
    global _binary
    if _binary is None:
        if not shutil.which("cc"):
            raise unittest.SkipTest("cc is missing")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "churn.c")
        path = scratch.new_path("churn")
        scratch.run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source)
        _binary = path
    return _binary


class Writer:
    """A process that changes the filesystem as it is told."""

    def __init__(self, base, seed=1, names="abc/pqr", controls=0, trace=""):
        self.process = subprocess.Popen(
            [churn(), base, str(seed), names, str(controls), trace],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def fileno(self):
        return self.process.stdout.fileno()

    def begin(self, *words):
        self.process.stdin.write((" ".join(words) + "\n").encode())
        self.process.stdin.flush()

    def end(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"a writer ended with {self.process.wait()}")
        return int(line)

    def command(self, *words):
        """0 or the errno."""
        self.begin(*words)
        return self.end()

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.kill()
        self.process.wait()


class Relay(TreeModel):
    """A TREE client that remembers in its history what it read, and when."""

    def apply_all(self, notifications):
        if notifications:
            self.history.append(f"at {time.monotonic_ns()}")
        super().apply_all(notifications)

    def _read_open(self, directory, fd):
        super()._read_open(directory, fd)
        self.history.append(f"{time.monotonic_ns()} read {directory}: {self.entries[directory]}")


def story(model, nodes):
    """What a model was told about some objects."""
    return "\n".join(f"    {one}" for one in model.history
                     if isinstance(one, str) and any(str(node) in one for node in nodes)
                     or isinstance(one, Record)
                     and any(node in (one.dir, one.node, one.new_dir) for node in nodes))


class Server(NodesModel):
    """A FUSE server that keeps its objects' attributes, too: what it was not told
    has changed must not have changed."""

    def __init__(self, client, path):
        self.attributes = {}  # node → what it knows, or None where it would ask
        super().__init__(client, path)

    @staticmethod
    def _attributes(fd):
        status = os.stat(fd)
        if stat.S_ISDIR(status.st_mode):
            return status.st_mode
        return status.st_mode, status.st_size, status.st_nlink

    def _send(self, batch, fds):
        known = [self._attributes(fd) for fd in fds]
        new = super()._send(batch, fds)
        for (_, node, _, _), attributes in zip(batch, known):
            self.attributes[node] = attributes
        return new

    def apply(self, record):
        super().apply(record)
        for node in (record.node, record.dir, record.new_dir):
            if node != NOBODY:
                self.attributes[node] = None

    def reconnect(self, client, since):
        """Registers everything again with a new daemon, as unchanged since that
        moment (nanoseconds); the nodes that it found gone itself."""
        self.client = client
        lost = self.register_again(since)
        # Nobody says whether the root has changed: INIT has no `since`.
        self.read(ROOT)
        self.attributes[ROOT] = None
        return lost

    def register_again(self, since):
        client = self.client
        lost = set()
        batch, fds = [], []

        def send():
            if batch:
                assert not any(client.register(batch, fds))
            for fd in fds:
                os.close(fd)
            batch.clear()
            fds.clear()

        for handle, node in list(self.nodes.items()):
            if node == ROOT:
                continue
            try:
                fds.append(handles.open_handle(self.mount_fd, handle))
            except OSError:
                del self.nodes[handle]
                self.ended.add(node)
                lost.add(node)
                continue
            batch.append(register_entry(*node, since=divmod(since, 1000000000)))
            if len(batch) == 250:
                send()
        send()
        return lost

    def _stale(self):
        for node in set(self.flat().values()):
            if node in self.ended or node not in self.handle:
                continue
            try:
                fd = handles.open_handle(self.mount_fd, self.handle[node])
            except OSError:
                continue  # the comparison of names says it
            try:
                now = self._attributes(fd)
            finally:
                os.close(fd)
            if self.attributes.get(node) not in (None, now):
                yield (f"  {node}: kept {self.attributes[node]}, is {now}\n"
                       f"{story(self, [node])}")
            self.attributes[node] = now

    def check(self):
        return super().check() or "\n".join(self._stale())


class Watch:
    """A TREE and a NODES session on `base`/share with a model each."""

    def __init__(self, daemon, base, **fields):
        self.share = os.path.join(base, "share")
        self.clients = []
        self.models = []
        try:
            for mode, model in ((TREE, Relay), (NODES, Server)):
                client = daemon.session(self.share, mode, **fields)
                self.clients.append(client)
                self.models.append(model(client, self.share))
        except BaseException:
            self.close()
            raise

    def close(self):
        for client in self.clients:
            client.close()
        for model in self.models:
            if isinstance(model, NodesModel):
                model.close()

    def read(self, writers, follows, sleeps=False):
        """Until every writer has answered: reads the sockets unless it sleeps, and if it
        follows applies the records while things go on changing."""
        errors = []
        waiting = list(writers)
        clients = [] if sleeps else self.clients
        while waiting:
            ready, _, _ = select.select([*waiting, *clients], [], [], TIMEOUT)
            if not ready:
                raise AssertionError(f"nothing happens in {TIMEOUT} s")
            for model in self.models:
                if model.client in ready:
                    model.client.receive()
                    if follows:
                        model.apply_all(model.client.take())
            for writer in waiting[:]:
                if writer in ready:
                    errors.append(writer.end())
                    waiting.remove(writer)
        return errors

    def check(self):
        """'' or what is wrong."""
        wrong = []
        for model in self.models:
            try:
                differences = model.check()
            except AssertionError as error:
                differences = f"{error}"
            if differences:
                wrong.append(f"{type(model).__name__}: {differences}{self._why(model)}")
        return "\n".join(wrong)

    @staticmethod
    def _why(model):
        """The records about the first objects that are elsewhere."""
        if isinstance(model, TreeModel):
            truth = walk(model.path, handles.identity)
        else:
            truth = walk(model.path, lambda handle: model.nodes.get(handle, ("?", handle)))
        kept = model.flat()
        wrong = [path for path in sorted(kept.keys() | truth.keys())
                 if kept.get(path) != truth.get(path)][:2]
        return "".join(
            f"\n  all about {node}, of {path!r}:\n{story(model, [node])}" for path in wrong
            for node in {kept.get(path), truth.get(path),
                         truth.get(os.path.dirname(path), ROOT)} - {None})

    def dump(self, path):
        """Writes down all that the models were told."""
        for model in self.models:
            with open(f"{path}.{type(model).__name__}", "w", encoding="utf-8") as file:
                file.writelines(f"{one}\n" for one in model.history)

    @property
    def losses(self):
        return sum(isinstance(one, Lost) for model in self.models for one in model.history)


def make_base(base):
    for name in ("share", "outside"):
        os.makedirs(os.path.join(base, name))


def stop(daemon):
    """Stops the daemon until SIGCONT."""
    daemon.signal(signal.SIGSTOP)
    while True:
        with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as file:
            if file.read().rpartition(")")[2].split()[0] == "T":
                return


def read_traces(paths, marks=()):
    """One list of (time, writer, operation, path, path) in order."""
    lines = list(marks)
    for writer, path in enumerate(paths):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):
                    continue  # the writer was killed in the midst of it
                time, *words = line.split()
                lines.append((int(time), writer, *words))
    lines.sort(key=lambda line: line[0])
    return lines


def replay(daemon, base, operations):
    """Does the operations one after the other in a new `base`: '' if the models
    are true after each `check` and at the end."""
    make_base(base)
    daemon.drain_notifications()
    writers = {}
    watch = Watch(daemon, base)
    try:
        for writer, *words in operations:
            if words[0] == "check":
                wrong = watch.check()
                if wrong:
                    return wrong
                continue
            if writer not in writers:
                writers[writer] = Writer(base, controls=daemon.pid)
            writers[writer].command(*(word for word in words if word != "-"))
        daemon.signal(signal.SIGCONT)
        return watch.check()
    finally:
        daemon.signal(signal.SIGCONT)
        for writer in writers.values():
            writer.close()
        watch.close()
        shutil.rmtree(base, ignore_errors=True)


CONTROLS = ("stop", "continue", "pause", "check")


def reduce(fails, operations):
    """A list of operations that still fails, from which none can be left out. Stops
    and continues of the daemon stay where they are, as do checks."""
    size = max(1, len(operations) // 2)
    while True:
        at, removed = 0, False
        while at < len(operations):
            controls = [one for one in operations[at:at + size] if one[1] in CONTROLS]
            shorter = operations[:at] + controls + operations[at + size:]
            if len(shorter) < len(operations) and fails(shorter):
                operations, removed = shorter, True
            else:
                at += size
        if size == 1 and not removed:
            return operations
        size = max(1, size // 2) if not removed or size > 1 else 1


def show(operations):
    return "\n".join(f"    {writer} {' '.join(word for word in words if word != '-')}"
                     for writer, *words in operations)
