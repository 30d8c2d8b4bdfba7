# SPDX-License-Identifier: Apache-2.0
"""What a program that watches is told: an inotify instance and a fanotify group
with inode marks, read when all is over.

Streams are lists of comparable lines. Objects are named by the labels under which
they were watched, cookies by the order in which they came, and what nobody watched
by the order in which it was first named, so that the streams of two filesystems
can be compared line by line. Both are read only once, at the end: what the kernel
merges in its queue then depends on the order of the events and on nothing else.
"""

import ctypes
import os
import select
import struct
import time

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64,
                                ctypes.c_int, ctypes.c_char_p]

IN_ALL = 0xFFF
IN_ONLYDIR, IN_DONT_FOLLOW, IN_MASK_ADD = 0x01000000, 0x02000000, 0x20000000
NAMES = {
    0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x10: "CLOSE_NOWRITE",
    0x20: "OPEN", 0x40: "MOVED_FROM", 0x80: "MOVED_TO", 0x100: "CREATE", 0x200: "DELETE",
    0x400: "DELETE_SELF", 0x800: "MOVE_SELF", 0x1000: "OPEN_EXEC", 0x2000: "UNMOUNT",
    0x4000: "OVERFLOW", 0x8000: "IGNORED", 0x10000000: "RENAME", 0x40000000: "ISDIR",
}

FAN_INIT = 0x200 | 0xC00 | 0x1000 | 0x3  # FID, DFID_NAME, TARGET_FID; CLOEXEC, NONBLOCK
FAN_MARK_ADD, FAN_MARK_DONT_FOLLOW = 0x1, 0x4
FAN_SELF = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x400 | 0x800 | 0x1000
FAN_DIRECTORY = FAN_SELF | 0x40 | 0x80 | 0x100 | 0x200 | 0x10000000 | 0x40000000 | 0x08000000
AT_HANDLE_FID, AT_FDCWD, O_LARGEFILE = 0x200, -100, 0


def mask_text(mask):
    known = [name for bit, name in NAMES.items() if mask & bit]
    rest = mask & ~sum(NAMES)
    return "|".join(known + ([hex(rest)] if rest else []))


def _check(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


class Inotify:
    def __init__(self):
        self.fd = _check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify_init1")
        self.labels = {}
        self.cookies = {}

    def watch(self, path, label, mask=IN_ALL | IN_DONT_FOLLOW):
        number = _check(_libc.inotify_add_watch(self.fd, os.fsencode(path), mask),
                        f"inotify_add_watch {path}")
        self.labels[number] = label

    def read(self):
        """(label, mask, cookie, name) of every event that is queued."""
        found = []
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, mask, cookie, size = struct.unpack_from("=iIII", data, at)
                name = data[at + 16:at + 16 + size].rstrip(b"\0")
                at += 16 + size
                found.append((self.labels.get(number, f"wd {number}"), mask, cookie, name))

    def lines(self):
        lines = []
        for label, mask, cookie, name in self.read():
            pair = self.cookies.setdefault(cookie, len(self.cookies) + 1) if cookie else 0
            lines.append(f"{label}: {mask_text(mask)}"
                         + (f" {os.fsdecode(name)!r}" if name else "")
                         + (f" cookie {pair}" if pair else ""))
        return lines

    def wait_for(self, name, timeout):
        """Whether an event with this name came in time; others are dropped."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            select.select([self.fd], [], [], left)
            if any(event[3] == name for event in self.read()):
                return True
        return False

    def close(self):
        os.close(self.fd)


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int),
                ("data", ctypes.c_ubyte * 128)]


def fid(path):
    """The handle by which fanotify names the object; needs no export support."""
    handle, mount = _Handle(128), ctypes.c_int()
    _check(_libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle),
                                   ctypes.byref(mount), AT_HANDLE_FID),
           f"name_to_handle_at {path}")
    return handle.type, bytes(handle.data[:handle.bytes])


class Fanotify:
    INFO = {1: "object", 2: "in", 3: "in", 10: "from", 12: "to"}

    def __init__(self):
        self.fd = _check(_libc.fanotify_init(FAN_INIT, os.O_RDONLY), "fanotify_init")
        self.labels = {}
        self.unknown = 0

    def watch(self, path, label):
        directory = os.path.isdir(path) and not os.path.islink(path)
        _check(_libc.fanotify_mark(self.fd, FAN_MARK_ADD | FAN_MARK_DONT_FOLLOW,
                                   FAN_DIRECTORY if directory else FAN_SELF, AT_FDCWD,
                                   os.fsencode(path)), f"fanotify_mark {path}")
        self.labels[fid(path)] = label

    def _label(self, handle):
        if handle not in self.labels:
            self.unknown += 1
            self.labels[handle] = f"object {self.unknown}"
        return self.labels[handle]

    def lines(self):
        lines = []
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return lines
            at = 0
            while at < len(data):
                size, _version, _, start, mask, _fd, _pid = struct.unpack_from("=IBBHQii", data, at)
                parts = [mask_text(mask)]
                here = at + start
                while here < at + size:
                    kind, _, length = struct.unpack_from("=BBH", data, here)
                    bytes_, type_ = struct.unpack_from("=Ii", data, here + 12)
                    handle = type_, data[here + 20:here + 20 + bytes_]
                    name = data[here + 20 + bytes_:here + length].split(b"\0")[0]
                    parts.append(f"{self.INFO.get(kind, kind)} {self._label(handle)}"
                                 + (f" {os.fsdecode(name)!r}" if name else ""))
                    here += length
                lines.append(", ".join(parts))
                at += size

    def close(self):
        os.close(self.fd)
