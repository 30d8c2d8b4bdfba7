# SPDX-License-Identifier: Apache-2.0
"""File handles by ctypes: identities computed without asking the daemon."""

import ctypes
import errno
import os

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
_libc = ctypes.CDLL(None, use_errno=True)


class _FileHandle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int),
                ("data", ctypes.c_ubyte * 128)]


_mount_id = ctypes.c_int()


def handle_at(dirfd, name=b""):
    """(type, bytes) of the object itself; a final symlink is not followed."""
    handle = _FileHandle(128)
    if _libc.name_to_handle_at(dirfd, name, ctypes.byref(handle),
                               ctypes.byref(_mount_id), 0 if name else AT_EMPTY_PATH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return handle.type, bytes(handle.data[:handle.bytes])


def handle_of(path):
    return handle_at(AT_FDCWD, os.fsencode(path))


def open_handle(mount_fd, handle, flags=os.O_PATH):
    """A descriptor of the object; OSError with ESTALE when it is gone."""
    kind, data = handle
    raw = _FileHandle(len(data), kind)
    ctypes.memmove(raw.data, data, len(data))
    for _ in range(1000):
        fd = _libc.open_by_handle_at(mount_fd, ctypes.byref(raw), flags | os.O_CLOEXEC)
        # A directory that moves or goes while it is being connected: again.
        if fd != -1 or ctypes.get_errno() != errno.ENOMEM:
            break
    if fd == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def identity(handle):
    """(inode number, generation) out of a handle of ext4, tmpfs, xfs or btrfs."""
    kind, data = handle

    def number(at, size):
        return int.from_bytes(data[at:at + size], "little")

    if kind == 0x01 and len(data) == 8:  # ext4
        return number(0, 4), number(4, 4)
    if kind == 0x01 and len(data) == 12:  # tmpfs
        return number(4, 8), number(0, 4)
    if kind == 0x81 and len(data) == 12:  # xfs
        return number(0, 8), number(8, 4)
    if kind in (0x4d, 0x4e, 0x4f) and len(data) >= 20:  # btrfs
        return number(0, 8), number(16, 4)
    raise ValueError(f"handle type {kind:#x} of {len(data)} bytes")


def identity_of(path):
    return identity(handle_of(path))


_RENAME_EXCHANGE = 2


def exchange(a, b):
    """RENAME_EXCHANGE of two paths."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b),
                       _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def link_descriptor(fd, path):
    """Gives an O_TMPFILE object a name."""
    source = f"/proc/self/fd/{fd}".encode()
    if _libc.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(path), 0x400):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
