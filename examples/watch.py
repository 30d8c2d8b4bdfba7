#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints what happens below a directory, as it happens: a whole client of
hostwatchd in plain Python, written from docs/protocol.md.

    examples/watch.py DIRECTORY [SOCKET]      as uid 0
    examples/watch.py share:NAME [SOCKET]     as anybody the share allows

A FUSE server would say NODES in place of TREE and register what its kernel has
looked up; the records are the same.
"""

import array
import os
import socket
import struct
import sys

INIT, REPLY = 1, 0x8000
EVENTS, LOST, RESYNCED, DETACHED = 0x4001, 0x4002, 0x4003, 0x4004
TREE, WANT_PATH, DEFAULT_EVENTS = 2, 0x8, 0x1000070E
NAMES = {0x1: "ACCESS", 0x2: "MODIFY", 0x4: "ATTRIB", 0x8: "CLOSE_WRITE", 0x100: "CREATE",
         0x200: "DELETE", 0x400: "DELETE_SELF", 0x10000000: "RENAME", 0x40000000: "ISDIR"}
RECHECK, MOVED_OUT, MOVED_IN = 0x1, 0x2, 0x4
RECORD = struct.Struct("=IIQQQQQQQQQiHHII")  # struct hw_record, 96 bytes


def open_session(what, path):
    """INIT: a share by its name, or a directory by a descriptor of it."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    share, ancillary, directory = b"", [], -1
    if what.startswith("share:"):
        share = os.fsencode(what.removeprefix("share:"))
    else:
        directory = os.open(what, os.O_RDONLY | os.O_DIRECTORY)
        rights = array.array("i", [directory])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
    body = struct.pack("=HHIQIIIIHHI", 1, 0, WANT_PATH, DEFAULT_EVENTS, 0, 0, 0, 0, TREE,
                       len(share), 0) + share + bytes(-len(share) % 8)
    connection.sendmsg([struct.pack("=IHHQ", 16 + len(body), INIT, 0, 1) + body], ancillary)
    if directory >= 0:
        os.close(directory)
    _, reply = receive(connection)
    error, _ = struct.unpack_from("=iI", reply)
    if error:
        raise OSError(-error, reply[8:].decode(errors="replace"))
    return connection


def receive(connection):
    """One packet: its type, and what follows the header."""
    packet = connection.recv(131072)
    if not packet:
        raise EOFError("hostwatchd closed the connection")
    size, kind, _, _ = struct.unpack_from("=IHHQ", packet)
    if size != len(packet):
        raise EOFError(f"a packet of {len(packet)} bytes says it has {size}")
    return kind, packet[16:]


def records(body):
    """The records of an EVENTS packet: (mask, flags, node, path, new path)."""
    count, _ = struct.unpack_from("=II", body)
    at = 8
    for _ in range(count):
        (size, flags, _, mask, dir_, _, node, _, new_dir, _, _, _, name_size, new_name_size,
         path_size, new_path_size) = RECORD.unpack_from(body, at)
        strings, start = [], at + RECORD.size
        for length in (name_size, new_name_size, path_size, new_path_size):
            strings.append(body[start:start + length])
            start += length
        name, new_name, path, new_path = strings
        yield mask, flags, node, join(dir_, path, name), join(new_dir, new_path, new_name)
        at += size


def join(directory, path, name):
    """A path that is too long is not given."""
    known = path or directory <= 1
    return ascii(os.fsdecode(os.path.join(path if known else b"?", name) or b"."))


def describe(mask, flags, node, path, new_path):
    if flags & RECHECK:
        return f"look again at inode {node}"
    what = "|".join(name for bit, name in NAMES.items() if mask & bit)
    if mask & 0x10000000:
        old = "(outside)" if flags & MOVED_IN else path
        new = "(outside)" if flags & MOVED_OUT else new_path
        return f"{what} {old} -> {new}"
    return f"{what} {path}"


def main():
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    path = sys.argv[2] if len(sys.argv) > 2 else "/run/hostwatchd/hostwatchd.sock"
    connection = open_session(sys.argv[1], path)
    print("watching", flush=True)
    while True:
        kind, body = receive(connection)
        if kind == EVENTS:
            for record in records(body):
                print(describe(*record), flush=True)
        elif kind == LOST:
            print("events were lost", flush=True)
        elif kind == RESYNCED:
            print("read the whole tree again now", flush=True)
        elif kind == DETACHED:
            sys.exit("the session has ended: reason %d" % struct.unpack_from("=I", body))


if __name__ == "__main__":
    try:
        main()
    except (OSError, EOFError) as problem:
        sys.exit(f"watch.py: {problem}")
    except KeyboardInterrupt:
        pass
