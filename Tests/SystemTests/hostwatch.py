# SPDX-License-Identifier: Apache-2.0
"""A client of the hostwatch protocol, version 1, written from docs/protocol.md.

It is strict where a real client may be lenient: every reserved field, padding
byte, size and sequence number that the daemon sends is checked, and a violation
is an AssertionError in whatever test is running.
"""

import array
import errno
import json
import os
import select
import socket
import struct
import time
from dataclasses import dataclass, replace

INIT, REGISTER, FORGET, INTEREST, SYNC, STATUS = range(1, 7)
EVENTS, LOST, RESYNCED, DETACHED = range(0x4001, 0x4005)
REPLY = 0x8000

NODES, TREE = 1, 2

SUPPRESS_ECHO, EXPLICIT_INTEREST, WANT_PID, WANT_PATH = 1, 2, 4, 8

ACCESS, MODIFY, ATTRIB, CLOSE_WRITE = 0x1, 0x2, 0x4, 0x8
CLOSE_NOWRITE, OPEN, CREATE, DELETE = 0x10, 0x20, 0x100, 0x200
DELETE_SELF, OPEN_EXEC, RENAME, ISDIR = 0x400, 0x1000, 0x10000000, 0x40000000
DEFAULT = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | DELETE_SELF | RENAME
ALL = DEFAULT | ACCESS | CLOSE_NOWRITE | OPEN | OPEN_EXEC
NAMESPACE = CREATE | DELETE | RENAME

RECHECK, MOVED_OUT, MOVED_IN, CORRECTED, REPLACED = 1, 2, 4, 8, 16

MASK_NAMES = {
    CREATE: "CREATE", MODIFY: "MODIFY", ATTRIB: "ATTRIB",
    CLOSE_WRITE: "CLOSE_WRITE", DELETE: "DELETE", DELETE_SELF: "DELETE_SELF",
    RENAME: "RENAME", ACCESS: "ACCESS", OPEN: "OPEN",
    CLOSE_NOWRITE: "CLOSE_NOWRITE", OPEN_EXEC: "OPEN_EXEC", ISDIR: "ISDIR",
}
FLAG_NAMES = {
    RECHECK: "RECHECK", MOVED_OUT: "MOVED_OUT", MOVED_IN: "MOVED_IN",
    CORRECTED: "CORRECTED", REPLACED: "REPLACED",
}

ROOT = (1, 0)
NOBODY = (0, 0)
TIMEOUT = 30.0

_uint = struct.Struct("<IHHQ")
_record = struct.Struct("<IIQQ" + "QQ" * 3 + "QiHHII")
assert _record.size == 96


def mask_text(mask, names=MASK_NAMES):
    text = "|".join(name for bit, name in names.items() if mask & bit)
    rest = mask & ~sum(names)
    return text + (f"|{rest:#x}" if rest else "")


@dataclass(frozen=True)
class Record:
    flags: int
    sequence: int
    mask: int
    dir: tuple
    node: tuple
    new_dir: tuple
    origin: int
    pid: int
    name: bytes
    new_name: bytes
    path: bytes
    new_path: bytes

    def __str__(self):
        text = f"#{self.sequence} {mask_text(self.mask) or '0'} {self.dir}/{self.name!r}"
        if self.mask & RENAME:
            text += f" > {self.new_dir}/{self.new_name!r}"
        text += f" ={self.node}"
        return text + (f" {mask_text(self.flags, FLAG_NAMES)}" if self.flags else "")


@dataclass(frozen=True)
class Lost:
    reason: int
    sequence: int


@dataclass(frozen=True)
class Resynced:
    sequence: int
    checked: int
    reported: int


@dataclass(frozen=True)
class Detached:
    reason: int


@dataclass(frozen=True)
class Reply:
    type: int
    unique: int
    error: int
    detail: int
    body: bytes  # after the 24 bytes that every reply has

    @property
    def text(self):
        return self.body.decode("utf-8")

    def statuses(self):
        """The status list of REGISTER and INTEREST."""
        size = 4 * self.detail
        assert len(self.body) == (size + 7) // 8 * 8, self
        assert not any(self.body[size:]), "padding is not zero"
        return list(struct.unpack_from(f"<{self.detail}i", self.body))


@dataclass(frozen=True)
class Granted:
    options: int
    events: int
    session: int
    max_packet: int
    queue_limit: int
    max_nodes: int


class Refused(Exception):
    """The daemon answered with an error."""

    def __init__(self, reply):
        name = errno.errorcode.get(-reply.error, reply.error)
        super().__init__(f"{name}: {reply.text}")
        self.reply = reply
        self.errno = -reply.error


class HungUp(Exception):
    """The daemon closed the connection."""


def pad(data):
    return data + bytes(-len(data) % 8)


def message(kind, body=b"", unique=1, flags=0, size=None):
    size = 16 + len(body) if size is None else size
    return _uint.pack(size, kind, flags, unique) + body


def init_body(mode=NODES, share=b"", options=0, events=DEFAULT, max_packet=0,
              queue_limit=0, max_delay_us=0, echo_pid=0, major=1, minor=0,
              share_size=None, reserved=0, padding=None):
    share = share.encode() if isinstance(share, str) else share
    fixed = struct.pack("<HHIQIIIIHHI", major, minor, options, events, max_packet,
                        queue_limit, max_delay_us, echo_pid, mode,
                        len(share) if share_size is None else share_size, reserved)
    return fixed + (pad(share) if padding is None else share + padding)


def register_entry(nodeid, generation=0, interest=0, since=(0, 0), reserved=0):
    return struct.pack("<QQQqII", nodeid, generation, interest, since[0], since[1],
                       reserved)


def batch(entries, count=None, reserved=0):
    """The body of REGISTER, FORGET and INTEREST: a count, then packed entries."""
    count = len(entries) if count is None else count
    return struct.pack("<II", count, reserved) + b"".join(entries)


class Client:
    """One connection. Notifications wait in `inbox` in the order they came."""

    def __init__(self, path=None, sock=None):
        if sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.settimeout(TIMEOUT)
            sock.connect(path)
        self.sock = sock
        self.sock.settimeout(TIMEOUT)
        self.inbox = []
        self.replies = []
        self.unique = 0
        self.sequence = 0
        self.granted = None
        self.resyncing = False
        self.closed = False

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def close(self):
        self.sock.close()

    def fileno(self):
        return self.sock.fileno()

    # Packets

    def send_raw(self, packet, fds=()):
        rights = []
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        self.sock.sendmsg([packet], rights)

    def send(self, kind, body=b"", fds=()):
        self.unique += 1
        self.send_raw(message(kind, body, self.unique), fds)
        return self.unique

    def receive(self, timeout=TIMEOUT):
        """Takes one packet in: a reply is put aside, notifications into `inbox`."""
        self.sock.settimeout(timeout)
        try:
            packet, ancillary, flags, _ = self.sock.recvmsg(
                131072 + 8, socket.CMSG_SPACE(256))
        except ConnectionResetError:
            packet, ancillary, flags = b"", [], 0
        assert not ancillary, "the daemon passed descriptors"
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC), flags
        if not packet:
            self.closed = True
            raise HungUp("the daemon closed the connection")
        assert len(packet) >= 16, packet
        size, kind, header_flags, unique = _uint.unpack_from(packet)
        assert size == len(packet), (size, len(packet))
        assert header_flags == 0, header_flags
        if kind & REPLY:
            assert len(packet) >= 24, packet
            error, detail = struct.unpack_from("<iI", packet, 16)
            assert error <= 0, error
            self.replies.append(Reply(kind, unique, error, detail, packet[24:]))
            return
        assert unique == 0, "a notification has unique 0"
        if self.granted:
            assert size <= self.granted.max_packet, size
        if kind == EVENTS:
            self._take_events(packet)
        elif kind == LOST:
            reason, zero, sequence = struct.unpack("<IIQ", packet[16:])
            assert reason in (1, 2, 3) and zero == 0, packet
            assert sequence == self.sequence, (sequence, self.sequence)
            assert not self.resyncing, "LOST within a resync"
            self.resyncing = True
            self.inbox.append(Lost(reason, sequence))
        elif kind == RESYNCED:
            resynced = Resynced(*struct.unpack("<QQQ", packet[16:]))
            assert self.resyncing, "RESYNCED without LOST"
            assert resynced.sequence == self.sequence, (resynced, self.sequence)
            self.resyncing = False
            self.inbox.append(resynced)
        elif kind == DETACHED:
            reason, zero = struct.unpack("<II", packet[16:])
            assert zero == 0
            self.inbox.append(Detached(reason))
        else:
            raise AssertionError(f"unknown notification {kind:#x}")

    def _take_events(self, packet):
        count, zero = struct.unpack_from("<II", packet, 16)
        assert count > 0 and zero == 0, (count, zero)
        at = 24
        for _ in range(count):
            record, at = self._take_record(packet, at)
            self.inbox.append(record)
        assert at == len(packet), "bytes after the last record"

    def _take_record(self, packet, at):
        (size, flags, sequence, mask, d1, d2, n1, n2, w1, w2, origin, pid, name_size,
         new_name_size, path_size, new_path_size) = _record.unpack_from(packet, at)
        assert size % 8 == 0 and size >= 96, size
        assert sequence == self.sequence + 1, (sequence, self.sequence)
        self.sequence = sequence
        place = at + 96
        texts = []
        for length in (name_size, new_name_size, path_size, new_path_size):
            texts.append(packet[place:place + length])
            place += length
        end = at + size
        assert place <= end < place + 8, (place, end)
        assert not any(packet[place:end]), "padding is not zero"
        record = Record(flags, sequence, mask, (d1, d2), (n1, n2), (w1, w2), origin,
                        pid, *texts)
        self._check_record(record)
        return record, end

    def _check_record(self, record):
        def holds(condition):
            assert condition, str(record)

        mask, flags = record.mask, record.flags
        holds(not mask & ~(ALL | ISDIR))
        holds(not flags & ~31)
        for text in (record.name, record.new_name, record.path, record.new_path):
            holds(b"\0" not in text)
        for name in (record.name, record.new_name):
            holds(b"/" not in name and name not in (b".", b"..") and len(name) <= 255)
        if flags & RECHECK:
            holds(mask in (0, ISDIR) and flags == RECHECK)
            holds(record.dir == NOBODY and record.new_dir == NOBODY)
            holds(record.node != NOBODY and not record.name)
            return
        holds(mask & ALL)
        if mask & NAMESPACE:  # rule 1: each stands alone
            holds(mask & ~ISDIR in (CREATE, DELETE, RENAME))
        if not mask & RENAME:
            holds(record.new_dir == NOBODY and not record.new_name)
            holds(not flags & (MOVED_IN | MOVED_OUT | REPLACED))
        if not mask & NAMESPACE:
            holds(not flags)
        if record.name:
            holds(record.dir != NOBODY)
        if record.new_name:
            holds(record.new_dir != NOBODY)
        if mask & (CREATE | DELETE):  # a name comes with its directory only
            holds(bool(record.name) == (record.dir != NOBODY))
        if mask & RENAME:
            holds(bool(flags & MOVED_IN) == (record.dir == NOBODY))
            holds(bool(flags & MOVED_OUT) == (record.new_dir == NOBODY))
            holds(bool(record.name) == (record.dir != NOBODY))
            holds(bool(record.new_name) == (record.new_dir != NOBODY))
        if self.granted:
            holds(not mask & ~ISDIR & ~self.granted.events)
            if not self.granted.options & WANT_PID:
                holds(record.pid == 0)
            if not self.granted.options & WANT_PATH:
                holds(not record.path and not record.new_path)

    # Requests

    def wait_reply(self, unique, timeout=TIMEOUT):
        end = time.monotonic() + timeout
        while not self.replies:
            self.receive(max(0.001, end - time.monotonic()))
        reply = self.replies.pop(0)
        assert reply.unique == unique, f"replies out of order: {reply}, not {unique}"
        return reply

    def call(self, kind, body=b"", fds=()):
        reply = self.wait_reply(self.send(kind, body, fds))
        assert reply.type == kind | REPLY, reply
        if reply.error:
            assert reply.text.strip(), "an error without a sentence"
            raise Refused(reply)
        return reply

    def init(self, mode=NODES, share=b"", fd=None, **fields):
        reply = self.call(INIT, init_body(mode, share, **fields),
                          () if fd is None else (fd,))
        assert reply.detail == 0
        (major, minor, options, events, session, nodeid, generation, max_packet,
         queue_limit, max_nodes, reserved) = struct.unpack("<HHIQQQQIIII", reply.body)
        assert (major, minor, reserved) == (1, 0, 0), reply
        assert (nodeid, generation) == ROOT, (nodeid, generation)
        self.granted = Granted(options, events, session, max_packet, queue_limit,
                               max_nodes)
        return self.granted

    def register(self, entries, fds):
        """Entries from register_entry(); the reply's status list."""
        return self.call(REGISTER, batch(entries), fds).statuses()

    def register_path(self, path, nodeid, generation=0, **fields):
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return self.register([register_entry(nodeid, generation, **fields)], [fd])[0]
        finally:
            os.close(fd)

    def forget(self, *nodes):
        self.send(FORGET, batch([struct.pack("<QQ", *node) for node in nodes]))

    def interest(self, *entries):
        """Entries (nodeid, generation, mask); the reply's status list."""
        return self.call(INTEREST, batch([struct.pack("<QQQ", *entry)
                                          for entry in entries])).statuses()

    def status(self):
        reply = self.call(STATUS, struct.pack("<II", 0, 0))
        return json.loads(reply.text)

    def sync(self):
        """Everything since the last call, up to the SYNC reply."""
        reply = self.call(SYNC)
        assert not reply.body
        return self.take()

    def take(self):
        taken, self.inbox = self.inbox, []
        return taken

    def records(self):
        taken = self.sync()
        assert all(isinstance(one, Record) for one in taken), taken
        return taken

    def wait_for(self, kind, timeout=TIMEOUT):
        """Receives until a notification of this class is there; all up to it."""
        end = time.monotonic() + timeout
        while True:
            for at, one in enumerate(self.inbox):
                if isinstance(one, kind):
                    taken = self.inbox[:at + 1]
                    self.inbox = self.inbox[at + 1:]
                    return taken
            self.receive(max(0.001, end - time.monotonic()))

    def wait_hang_up(self, timeout=TIMEOUT):
        try:
            while True:
                self.receive(timeout)
        except HungUp:
            pass


def read_while(process, *clients):
    """Keeps reading the clients' sockets until a subprocess.Popen ends, so that
    no session's queue overflows meanwhile; its exit status."""
    pidfd = os.pidfd_open(process.pid)
    try:
        while True:
            ready, _, _ = select.select([pidfd, *clients], [], [], TIMEOUT)
            for client in clients:
                if client in ready:
                    client.receive()
            if pidfd in ready:
                return process.wait()
    finally:
        os.close(pidfd)


def merge_changes(records):
    """Adjacent change records of one object OR-ed: the protocol leaves it to the
    daemon whether it says MODIFY and CLOSE_WRITE in one record or in two."""
    merged = []
    for record in records:
        last = merged[-1] if merged else None
        if (last and not (last.mask | record.mask) & NAMESPACE
                and not (last.flags | record.flags)
                and (last.dir, last.name, last.node, last.origin, last.pid)
                == (record.dir, record.name, record.node, record.origin, record.pid)):
            merged[-1] = replace(last, mask=last.mask | record.mask)
        else:
            merged.append(record)
    return merged
