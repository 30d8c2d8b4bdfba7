# SPDX-License-Identifier: Apache-2.0
"""The C client library, built as a shared one, with the methods of hostwatch.Client
that a model needs. It reconnects by itself."""

import ctypes
import errno
import os
import shutil
import struct
import traceback
import unittest

import scratch
from hostwatch import Lost, Record, Resynced

RECONNECT = 1
EVENT, LOST, RESYNCED, DETACHED, DISCONNECTED, CONNECTED, FAILED, OUT_OF_STEP, IN_STEP = range(1, 10)

_library = None


class Node(ctypes.Structure):
    _fields_ = [("nodeid", ctypes.c_uint64), ("generation", ctypes.c_uint64)]


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64)]


_reregister = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Timespec),
                               ctypes.c_void_p)


class Options(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("socket_path", ctypes.c_char_p),
        ("share", ctypes.c_char_p), ("root_fd", ctypes.c_int), ("mode", ctypes.c_uint32),
        ("options", ctypes.c_uint32), ("max_packet", ctypes.c_uint32),
        ("events", ctypes.c_uint64), ("queue_limit", ctypes.c_uint32),
        ("max_delay_us", ctypes.c_uint32), ("echo_pid", ctypes.c_uint32),
        ("timeout_ms", ctypes.c_int), ("flags", ctypes.c_uint32),
        ("sync_interval_ms", ctypes.c_uint32), ("reregister", _reregister),
        ("argument", ctypes.c_void_p)]


class Event(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("sequence", ctypes.c_uint64),
        ("mask", ctypes.c_uint64), ("dir", Node), ("node", Node), ("new_dir", Node),
        ("origin", ctypes.c_uint64), ("pid", ctypes.c_int32), ("error", ctypes.c_int32),
        ("name", ctypes.c_void_p), ("new_name", ctypes.c_void_p), ("path", ctypes.c_void_p),
        ("new_path", ctypes.c_void_p), ("name_size", ctypes.c_uint32),
        ("new_name_size", ctypes.c_uint32), ("path_size", ctypes.c_uint32),
        ("new_path_size", ctypes.c_uint32), ("reason", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32), ("nodes_checked", ctypes.c_uint64),
        ("nodes_reported", ctypes.c_uint64), ("text", ctypes.c_char_p),
        ("reserved_for_growth", ctypes.c_uint64 * 4)]


def library():
    """The shared library, built once."""
    global _library
    if _library is None:
        if not shutil.which("cc"):
            raise unittest.SkipTest("cc is missing")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)),
                              "../../Sources/CHostWatch")
        path = scratch.new_path("libhostwatch.so")
        scratch.run("cc", "-std=c11", "-O2", "-shared", "-fPIC", "-pthread",
                    f"-I{source}/include", "-o", path,
                    *(f"{source}/{name}" for name in sorted(os.listdir(source))
                      if name.endswith(".c")))
        _library = ctypes.CDLL(path)
        _library.hostwatch_error_text.restype = ctypes.c_char_p
    return _library


def _bytes(at, size):
    return ctypes.string_at(at, size) if size else b""


class LibraryClient:
    """`again(since)` registers everything; nanoseconds. It is called by next()."""

    def __init__(self, socket_path, root, again):
        self.library = library()
        self.again = again
        self.error = None
        self.marks = []  # IN_STEP and OUT_OF_STEP as they came
        options = Options()
        self.library.hostwatch_options_init(ctypes.byref(options), ctypes.sizeof(options))
        self.callback = _reregister(self._called)
        options.socket_path = socket_path.encode()
        options.root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        options.flags = RECONNECT
        options.sync_interval_ms = 50
        options.reregister = self.callback
        self.handle = ctypes.c_void_p()
        try:
            self._check(self.library.hostwatch_open(ctypes.byref(options),
                                                    ctypes.byref(self.handle)))
        finally:
            os.close(options.root_fd)

    def _check(self, result):
        if result < 0:
            raise OSError(-result, self.library.hostwatch_error_text().decode())
        return result

    def _called(self, _handle, since, _argument):
        moment = since.contents.seconds * 1000000000 + since.contents.nanoseconds
        try:
            self.again(moment)
        except OSError as error:
            return -error.errno
        except BaseException as error:  # it must not go through the library
            traceback.print_exc()
            self.error = error
            return -errno.EIO
        return 0

    def close(self):
        if self.handle:
            self.library.hostwatch_close(self.handle)
            self.handle = None

    def register(self, entries, fds):
        count = len(fds)
        statuses = (ctypes.c_int32 * count)()
        try:
            self._check(self.library.hostwatch_register_many(
                self.handle, b"".join(entries), (ctypes.c_int * count)(*fds),
                ctypes.c_size_t(count), statuses))
        except ConnectionResetError:
            # The caller enters them into its table; again() comes, and finds them there.
            return [0] * count
        return list(statuses)

    def forget(self, *nodes):
        # A node of a lost session is forgotten with it.
        self.library.hostwatch_forget(
            self.handle, b"".join(struct.pack("<QQ", *node) for node in nodes),
            ctypes.c_size_t(len(nodes)))

    def next(self, timeout=0):
        """The next event; None if none comes."""
        event = Event()
        got = self.library.hostwatch_next(self.handle, ctypes.byref(event),
                                          int(timeout * 1000))
        if self.error:
            raise self.error
        return event if self._check(got) else None

    def notification(self, event):
        """An event as hostwatch.Client has it, or None."""
        if event.kind in (OUT_OF_STEP, IN_STEP):
            self.marks.append(event.kind)
        if event.kind == LOST:
            return Lost(event.reason, event.sequence)
        if event.kind == RESYNCED:
            return Resynced(event.sequence, event.nodes_checked, event.nodes_reported)
        if event.kind != EVENT:
            return None
        return Record(
            event.flags, event.sequence, event.mask,
            *((node.nodeid, node.generation) for node in (event.dir, event.node, event.new_dir)),
            event.origin, event.pid, _bytes(event.name, event.name_size),
            _bytes(event.new_name, event.new_name_size), _bytes(event.path, event.path_size),
            _bytes(event.new_path, event.new_path_size))

    def take(self, kind=None, timeout=20, model=None):
        """What has come; with a kind, all up to an event of that kind. Applied to the
        model at once: again() sees its nodes as they are after the events before it."""
        taken = []
        while event := self.next(timeout if kind else 0):
            one = self.notification(event)
            if one:
                taken.append(one)
                if model:
                    model.apply_all([one])
            if kind and event.kind == kind:
                return taken
            if kind is None and not model and event.kind == DISCONNECTED:
                break  # the next call reconnects: again() must not come before these are applied
        assert kind is None, f"no event of kind {kind} in {timeout} s"
        return taken

    def sync(self):
        """Everything up to the answer."""
        self._check(self.library.hostwatch_sync(self.handle))
        return self.take()
