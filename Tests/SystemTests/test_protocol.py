# SPDX-License-Identifier: Apache-2.0
"""Every packet that is not as the protocol has it, limits, and who may do what."""

import contextlib
import errno
import grp
import json
import os
import random
import socket
import struct
import time

import scratch
from daemon import Daemon, DaemonTest, table, touch, write
from hostwatch import (ATTRIB, CREATE, DEFAULT, DELETE, EXPLICIT_INTEREST,
                       FORGET, INIT, INTEREST, ISDIR, NODES, OPEN, REGISTER, RENAME,
                       REPLY, ROOT, STATUS, SUPPRESS_ECHO, SYNC, TREE, WANT_PATH, WANT_PID,
                       HungUp, Refused, batch, init_body, message, register_entry)

PAIR = struct.pack("<QQ", 5, 5)
INTEREST_ENTRY = struct.pack("<QQQ", 1, 0, DEFAULT)


class ProtocolTest(DaemonTest):
    def raw(self, packet, fds=(), session=True, mode=NODES):
        """Sends one packet to a session of its own: (reply, is it still open)."""
        client = self.session(mode) if session else self.daemon.connect()
        self.addCleanup(client.close)
        client.send_raw(packet, fds)
        client.receive()
        reply = client.replies.pop()
        if not session:
            client.unique = 50
        try:
            client.unique += 100
            client.call(STATUS, struct.pack("<II", 0, 0))
            return reply, True
        except (HungUp, BrokenPipeError, ConnectionResetError):
            return reply, False

    def refused(self, number, call, *arguments, **fields):
        with self.assertRaises(Refused) as caught:
            call(*arguments, **fields)
        self.assertEqual(errno.errorcode.get(caught.exception.errno),
                         errno.errorcode[number], caught.exception)
        return caught.exception.reply


class Malformed(ProtocolTest):
    def test_unparsable(self):
        """-EPROTO, and the session is closed."""
        path = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, path)
        entry = register_entry(5)
        cases = {
            # name: (packet, descriptors, type and unique of the answer)
            "shorter than a header": (b"\x08\0\0\0\x05\0\0\0", (), None),
            "one byte": (b"x", (), None),
            "size too large": (message(SYNC, unique=7, size=24), (), (SYNC, 7)),
            "size too small": (message(SYNC, unique=7, size=8), (), (SYNC, 7)),
            "unknown type": (message(7, unique=7), (), (7, 7)),
            "type 0": (message(0, unique=7), (), (0, 7)),
            "a notification": (message(0x4001, bytes(8), unique=7), (), (0x4001, 7)),
            "a reply": (message(SYNC | REPLY, bytes(8), unique=7), (), (SYNC | REPLY, 7)),
            "surplus bytes in SYNC": (message(SYNC, bytes(8), unique=7), (), (SYNC, 7)),
            "surplus bytes in STATUS": (message(STATUS, bytes(16), unique=7), (), (STATUS, 7)),
            "STATUS without a body": (message(STATUS, unique=7), (), (STATUS, 7)),
            "REGISTER without a body": (message(REGISTER, unique=7), (), (REGISTER, 7)),
            "REGISTER lacks an entry":
                (message(REGISTER, batch([entry], count=2), 7), (path, path), (REGISTER, 7)),
            "REGISTER has one entry too many":
                (message(REGISTER, batch([entry, entry], count=1), 7), (path,), (REGISTER, 7)),
            "REGISTER cut within an entry":
                (message(REGISTER, batch([entry[:-8]], count=1), 7), (path,), (REGISTER, 7)),
            "REGISTER lacks a descriptor":
                (message(REGISTER, batch([entry, entry]), 7), (path,), (REGISTER, 7)),
            "REGISTER without descriptors":
                (message(REGISTER, batch([entry]), 7), (), (REGISTER, 7)),
            "REGISTER has a descriptor too many":
                (message(REGISTER, batch([entry]), 7), (path, path), (REGISTER, 7)),
            "SYNC with a descriptor": (message(SYNC, unique=7), (path,), (SYNC, 7)),
            "FORGET lacks a pair": (message(FORGET, batch([PAIR], count=2), 7), (), (FORGET, 7)),
            "FORGET has a pair too many":
                (message(FORGET, batch([PAIR, PAIR], count=1), 7), (), (FORGET, 7)),
            "FORGET with a count beyond all":
                (message(FORGET, batch([PAIR], count=0xffffffff), 7), (), (FORGET, 7)),
            "INTEREST lacks an entry":
                (message(INTEREST, batch([INTEREST_ENTRY], count=2), 7), (), (INTEREST, 7)),
            "larger than a packet may be":
                (message(FORGET, batch([PAIR] * 8191), 7), (), (FORGET, 7)),
            "INTEREST with a descriptor":
                (message(INTEREST, batch([INTEREST_ENTRY]), 7), (path,), (INTEREST, 7)),
        }
        for name, (packet, fds, answer) in cases.items():
            with self.subTest(name):
                reply, still_open = self.raw(packet, fds)
                self.assertEqual(errno.errorcode.get(-reply.error), "EPROTO")
                self.assertTrue(reply.text.strip())
                kind, unique = answer or (None, 0)
                self.assertEqual(reply.type, REPLY if answer is None else kind | REPLY)
                self.assertEqual(reply.unique, unique)
                self.assertFalse(still_open)

    def test_unparsable_before_init(self):
        path = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, path)
        cases = {
            "SYNC first": (message(SYNC, unique=7), ()),
            "REGISTER first": (message(REGISTER, batch([register_entry(5)]), 7), (path,)),
            "FORGET first": (message(FORGET, batch([PAIR]), 7), ()),
            "INTEREST first": (message(INTEREST, batch([INTEREST_ENTRY]), 7), ()),
            "INIT cut": (message(INIT, init_body()[:-8], 7), (path,)),
            "INIT without a body": (message(INIT, unique=7), (path,)),
            "INIT lacks the share": (message(INIT, init_body(share=b"abc", padding=b""), 7), ()),
            "INIT with surplus bytes": (message(INIT, init_body() + bytes(8), 7), (path,)),
            "INIT with neither share nor descriptor": (message(INIT, init_body(), 7), ()),
            "INIT with both":
                (message(INIT, init_body(share=b"abcdefgh"), 7), (path,)),
            "INIT with two descriptors": (message(INIT, init_body(), 7), (path, path)),
        }
        for name, (packet, fds) in cases.items():
            with self.subTest(name):
                reply, still_open = self.raw(packet, fds, session=False)
                self.assertEqual(errno.errorcode.get(-reply.error), "EPROTO")
                self.assertEqual(reply.unique, 7)
                self.assertFalse(still_open)

    def test_invalid(self):
        """-EINVAL, and the session stays."""
        path = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, path)
        cases = {
            "unique 0": (message(SYNC, unique=0), ()),
            "flags": (message(SYNC, unique=7, flags=1), ()),
            "STATUS of what": (message(STATUS, struct.pack("<II", 1, 0), 7), ()),
            "STATUS reserved": (message(STATUS, struct.pack("<II", 0, 1), 7), ()),
            "REGISTER reserved":
                (message(REGISTER, batch([register_entry(5)], reserved=1), 7), (path,)),
            "INTEREST reserved":
                (message(INTEREST, batch([INTEREST_ENTRY], reserved=1), 7), ()),
            "FORGET reserved": (message(FORGET, batch([PAIR], reserved=1), 7), ()),
            "a second INIT": (message(INIT, init_body(), 7), (path,)),
        }
        for name, (packet, fds) in cases.items():
            with self.subTest(name):
                reply, still_open = self.raw(packet, fds)
                self.assertEqual(errno.errorcode.get(-reply.error), "EINVAL")
                self.assertTrue(reply.text.strip())
                self.assertTrue(still_open)

    def test_counts(self):
        """A count out of its range is refused, one way or the other."""
        path = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, path)
        for count in (0, 251):
            with self.subTest(count=count):
                entries = [register_entry(10 + number) for number in range(count)]
                reply, still_open = self.raw(message(REGISTER, batch(entries), 7),
                                             (path,) * count)
                self.assertIn(-reply.error, (errno.EINVAL, errno.EPROTO))
                self.assertEqual(still_open, -reply.error == errno.EINVAL)

    def test_invalid_entries(self):
        touch(self.path("f"))
        client = self.session()
        for fields in ({"nodeid": 0}, {"nodeid": 1}, {"nodeid": 5, "reserved": 1},
                       {"nodeid": 5, "since": (1, 1000000000)}):
            with self.subTest(fields):
                nodeid = fields.pop("nodeid")
                try:
                    status = client.register_path(self.path("f"), nodeid, **fields)
                except Refused as refused:
                    status = -refused.errno
                self.assertEqual(status, -errno.EINVAL)
        self.assertEqual(client.register_path(self.path("f"), 5), 0)

    def test_invalid_init(self):
        """A refused INIT may be repeated on the same connection."""
        client = self.daemon.connect()
        self.addCleanup(client.close)
        fd = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, fd)
        file = os.open(self.path("f"), os.O_CREAT | os.O_RDWR)
        self.addCleanup(os.close, file)
        for fields in ({"mode": 0}, {"mode": 3}, {"reserved": 1}, {"options": 0x10}):
            with self.subTest(fields):
                self.refused(errno.EINVAL, client.init, fd=fd, **fields)
        self.refused(errno.EINVAL, client.init, share=b"a\0b")
        self.refused(errno.EINVAL, client.init, share=b"abc", padding=b"\0\0\0\0x")
        for fields, number in (
                ({"share": b"no-such-share"}, errno.ENOENT), ({"fd": file}, errno.ENOTDIR),
                ({"share": b"\xff\xfe"}, errno.EINVAL),
                ({"fd": fd, "options": SUPPRESS_ECHO, "echo_pid": 0x7fffffff}, errno.ESRCH),
                ({"fd": fd, "options": SUPPRESS_ECHO, "echo_pid": 0xffffffff}, errno.ESRCH),
                # Of another version nothing else is looked at.
                ({"fd": fd, "major": 2}, errno.EPROTONOSUPPORT),
                ({"fd": fd, "major": 2, "options": 0x10, "mode": 7, "padding": b"12345"},
                 errno.EPROTONOSUPPORT),
                ({"major": 0}, errno.EPROTONOSUPPORT)):
            with self.subTest(fields):
                self.refused(number, client.init, **fields)
        client.init(fd=fd)
        self.refused(errno.EINVAL, client.init, fd=fd)
        client.sync()

    def test_empty_packet(self):
        client = self.session()
        client.send_raw(b"")
        client.wait_hang_up()
        self.session().sync()

    def test_tree_has_no_nodes(self):
        client = self.session(TREE)
        touch(self.path("f"))
        for call in (lambda: client.register_path(self.path("f"), 5),
                     lambda: client.interest((1, 0, DEFAULT))):
            self.refused(errno.EINVAL, call)
        client.forget((5, 5))
        client.receive()
        reply = client.replies.pop()
        self.assertEqual((reply.type, reply.error), (FORGET | REPLY, -errno.EINVAL))

    def test_random_bytes(self):
        """Whatever comes in, the daemon answers or hangs up, and lives."""
        dice = random.Random(7)
        for _ in range(300):
            client = self.session() if dice.random() < 0.5 else self.daemon.connect()
            kind = dice.choice((0, 1, 2, 3, 4, 5, 6, 9, 0x8001))
            body = dice.randbytes(8 * dice.randrange(12))
            client.send_raw(message(kind, body, dice.randrange(3)))
            try:
                client.send_raw(message(STATUS, struct.pack("<II", 0, 0), 9))
                while not any(reply.unique == 9 for reply in client.replies):
                    client.receive()
            except (HungUp, BrokenPipeError):
                pass
            client.close()
        self.session().sync()


class Descriptors(ProtocolTest):
    def setUp(self):
        super().setUp()
        # Its own, so that no session of another test is just being closed.
        self.daemon = Daemon()
        self.addCleanup(self.daemon.kill)

    def check_descriptors(self, client, expected):
        """The daemon holds as many descriptors as it did; a connection that was
        closed here is closed there a little later."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            client.sync()
            now = self.daemon.descriptors()
            if len(now) == len(expected):
                return
            time.sleep(0.005)
        self.fail(f"{expected} before, {now} after")

    def test_refused_ones_are_closed(self):
        client = self.session()
        touch(self.path("f"))
        client.sync()
        before = self.daemon.descriptors()
        other = os.open(scratch.base(), os.O_PATH)
        proc = os.open("/proc/self", os.O_PATH)
        read_end, write_end = os.pipe()
        left, right = socket.socketpair()
        good = os.open(self.path("f"), os.O_PATH)
        fds = [other, proc, read_end, left.fileno(), good]
        statuses = client.register([register_entry(10 + number)
                                    for number in range(len(fds))], fds)
        self.assertEqual(statuses[0], -errno.EXDEV)
        self.assertIn(statuses[1], (-errno.EXDEV, -errno.EOPNOTSUPP))
        self.assertIn(statuses[2], (-errno.EXDEV, -errno.EOPNOTSUPP))
        self.assertIn(statuses[3], (-errno.EXDEV, -errno.EOPNOTSUPP))
        self.assertEqual(statuses[4], 0)
        # Surplus ones come with a connection that ends.
        second = self.session()
        second.send_raw(message(SYNC, unique=9), fds)
        second.wait_hang_up()
        third = self.daemon.connect()
        third.send_raw(message(INIT, init_body(), 9), fds[:2])
        third.wait_hang_up()
        fourth = self.daemon.connect()
        for fd in fds[1:]:
            with self.assertRaises(Refused):
                fourth.init(fd=fd)
        fourth.close()
        for fd in (other, proc, read_end, write_end, good):
            os.close(fd)
        left.close()
        right.close()
        self.check_descriptors(client, before)

    def test_root_on_proc(self):
        client = self.daemon.connect()
        self.addCleanup(client.close)
        fd = os.open("/proc", os.O_PATH)
        self.addCleanup(os.close, fd)
        with self.assertRaises(Refused):
            client.init(fd=fd)

    def test_no_descriptor_is_kept(self):
        """Registered objects cost the daemon no descriptors."""
        client = self.session()
        client.sync()
        before = self.daemon.descriptors()
        for number in range(20):
            touch(self.path(str(number)))
            self.assertEqual(client.register_path(self.path(str(number)), number + 2), 0)
        self.check_descriptors(client, before)


class Session(ProtocolTest):
    def test_granted(self):
        client = self.daemon.connect()
        self.addCleanup(client.close)
        fd = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, fd)
        granted = client.init(fd=fd, events=DEFAULT | 0x4000 | 1 << 40, options=SUPPRESS_ECHO)
        self.assertEqual(granted.events, DEFAULT)
        self.assertEqual(granted.options, SUPPRESS_ECHO)
        self.assertEqual(granted.max_packet, 65536)
        self.assertEqual(granted.queue_limit, 4194304)
        self.assertEqual(granted.max_nodes, 4194304)
        self.assertGreater(granted.session, 0)

    def test_clamps(self):
        for fields, packet, queue in (
                ({"max_packet": 1, "queue_limit": 1}, 4096, 65536),
                ({"max_packet": 1 << 31, "queue_limit": 1 << 31}, 131072, 4194304),
                ({"max_packet": 8192, "queue_limit": 100000}, 8192, 100000)):
            with self.subTest(fields):
                granted = self.session(**fields).granted
                self.assertEqual((granted.max_packet, granted.queue_limit), (packet, queue))
        granted = self.session(TREE, max_packet=4096, options=WANT_PATH).granted
        self.assertEqual(granted.max_packet, 16384)
        self.assertEqual(granted.options, WANT_PATH)

    def test_small_packets(self):
        client = self.session(TREE, max_packet=4096)
        for number in range(200):
            touch(self.path("n" * 200 + str(number)))
        created = [record for record in client.records() if record.mask & CREATE]
        self.assertEqual(len(created), 200)

    def test_sessions_differ(self):
        ids = {self.session().granted.session for _ in range(5)}
        self.assertEqual(len(ids), 5)

    def test_pipelining(self):
        """Replies come in the order of the requests."""
        client = self.session()
        touch(self.path("f"))
        fd = os.open(self.path("f"), os.O_PATH)
        self.addCleanup(os.close, fd)
        sent = []
        for number in range(50):
            sent.append((REGISTER, client.send(
                REGISTER, batch([register_entry(10 + number)]), [fd])))
            sent.append((SYNC, client.send(SYNC)))
            sent.append((STATUS, client.send(STATUS, struct.pack("<II", 0, 0))))
            client.forget((10 + number, 0))
        for kind, unique in sent:
            reply = client.wait_reply(unique)
            self.assertEqual((reply.type, reply.error), (kind | REPLY, 0))

    def test_pipelined_init(self):
        client = self.daemon.connect()
        self.addCleanup(client.close)
        fd = os.open(self.share, os.O_PATH)
        self.addCleanup(os.close, fd)
        client.send_raw(message(INIT, init_body(), 1), [fd])
        client.send_raw(message(SYNC, unique=2))
        self.assertEqual([client.wait_reply(1).error, client.wait_reply(2).error], [0, 0])

    def test_sync_is_a_barrier(self):
        client = self.session(TREE)
        for number in range(200):
            touch(self.path(f"f{number}"))
            names = {record.name for record in client.records()}
            self.assertEqual(names, {f"f{number}".encode()})

    def test_init_timeout(self):
        """Closed without a packet after 5 s, STATUS or not."""
        started = time.monotonic()
        clients = [self.daemon.connect() for _ in range(3)]
        clients[1].status()
        with self.assertRaises(Refused):
            clients[2].init(share=b"no-such-share")
        for client in clients:
            with self.assertRaises(HungUp):
                client.receive(20)
            self.assertGreater(time.monotonic() - started, 4.5)
            client.close()
        self.assertLess(time.monotonic() - started, 20)

    def test_forget(self):
        """In force for every record after the next reply."""
        touch(self.path("f"))
        client = self.session()
        self.assertEqual(client.register_path(self.path("f"), 5, 5), 0)
        client.sync()
        client.forget((5, 5), (5, 6), (99, 0), ROOT)
        client.sync()
        write(self.path("f"))
        records = client.records()
        self.assertTrue(records)
        for record in records:
            self.assertEqual((record.dir, record.node), (ROOT, (0, 0)))
        touch(self.path("g"))
        self.assertEqual(client.register_path(self.path("g"), 5, 5), 0)

    def test_root(self):
        client = self.session()
        self.assertEqual(client.register_path(self.share, 7, 7), -errno.EEXIST)
        client.forget(ROOT)
        client.sync()
        touch(self.path("f"))
        self.assertEqual(client.records()[0].dir, ROOT)
        self.assertEqual(client.interest((1, 0, DELETE)), [0])
        touch(self.path("g"))
        os.unlink(self.path("g"))
        self.assertEqual({record.mask for record in client.records()}, {DELETE})

    def test_interest(self):
        os.mkdir(self.path("d"))
        touch(self.path("d/f"))
        client = self.session()
        self.assertEqual(client.register_path(self.path("d"), 5, interest=CREATE), 0)
        self.assertEqual(client.register_path(self.path("d/f"), 6, interest=ATTRIB), 0)
        client.sync()
        write(self.path("d/f"))
        os.unlink(self.path("d/f"))
        os.mkdir(self.path("d/e"))
        masks = [(record.mask, record.node) for record in client.records()]
        self.assertEqual([mask for mask in masks if mask[0] != ATTRIB],
                         [(CREATE | ISDIR, (0, 0))], masks)
        self.assertEqual(client.interest((5, 0, DELETE), (77, 0, DELETE)),
                         [0, -errno.ENOENT])
        os.rmdir(self.path("d/e"))
        self.assertEqual([record.mask for record in client.records()], [DELETE | ISDIR])
        self.assertEqual(client.interest((5, 0, 0)), [0])
        os.mkdir(self.path("d/e"))
        self.assertEqual(client.records(), [])

    def test_explicit_interest(self):
        os.mkdir(self.path("d"))
        client = self.session(options=EXPLICIT_INTEREST)
        self.assertEqual(client.granted.options, EXPLICIT_INTEREST)
        self.assertEqual(client.register_path(self.path("d"), 5), 0)
        client.sync()
        touch(self.path("f"))
        touch(self.path("d/f"))
        self.assertEqual(client.records(), [])
        self.assertEqual(client.interest((5, 0, CREATE)), [0])
        touch(self.path("g"))
        touch(self.path("d/g"))
        self.assertEqual([(record.mask, record.dir, record.name)
                          for record in client.records()], [(CREATE, (5, 0), b"g")])
        self.assertEqual(client.interest((1, 0, RENAME)), [0])
        os.rename(self.path("g"), self.path("h"))
        self.assertEqual([record.mask for record in client.records()], [RENAME])

    def test_events_asked_for(self):
        write(self.path("f"))
        client = self.session(events=OPEN | CREATE)
        self.assertEqual(client.granted.events, OPEN | CREATE)
        with open(self.path("f"), "rb") as file:
            file.read()
        masks = {record.mask for record in client.records()}
        self.assertEqual(masks, {OPEN})

    def test_echo(self):
        """SUPPRESS_ECHO leaves out what this server did, for itself alone."""
        mine = self.session(TREE, options=SUPPRESS_ECHO | WANT_PID)
        other = self.session(TREE, options=WANT_PID)
        touch(self.path("f"))
        scratch.run("touch", self.path("g"))
        names = {record.name for record in mine.records()}
        self.assertEqual(names, {b"g"})
        for record in other.records():
            if record.name == b"f":
                self.assertEqual((record.origin, record.pid),
                                 (mine.granted.session, os.getpid()))
            else:
                self.assertEqual(record.origin, 0)
                self.assertNotIn(record.pid, (0, os.getpid()))

    def test_max_nodes(self):
        daemon = Daemon(config=table(limits={"nodes_per_session": 3}))
        self.addCleanup(daemon.kill)
        with daemon.session(self.share) as client:
            self.assertEqual(client.granted.max_nodes, 3)
            statuses = []
            for number in range(5):
                touch(self.path(str(number)))
                statuses.append(client.register_path(self.path(str(number)), 10 + number))
            self.assertEqual(statuses, [0, 0, 0, -errno.ENOSPC, -errno.ENOSPC])
            client.forget((10, 0))
            client.sync()
            self.assertEqual(client.register_path(self.path("3"), 13), 0)
        daemon.stop()

    def test_status(self):
        client = self.session()
        status = client.status()
        self.assertIsInstance(status, dict)
        with self.daemon.connect() as before_init:
            self.assertIsInstance(before_init.status(), dict)


class Rights(ProtocolTest):
    """A peer that is not root."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.open_share = os.path.join(cls.mount.path, "open-share")
        cls.closed_share = os.path.join(cls.mount.path, "closed-share")
        for path in (cls.open_share, cls.closed_share):
            os.makedirs(path, exist_ok=True)
        cls.daemon.stop()
        cls.daemon = Daemon(config=table(
            daemon={"socket_mode": "0666"}, limits={"sessions_per_user": 4},
            share=[{"name": "open", "path": cls.open_share, "allow_users": ["nobody"]},
                   {"name": "group", "path": cls.open_share, "allow_groups": ["games"]},
                   {"name": "closed", "path": cls.closed_share, "allow_users": ["root"]}]))

    def peer(self, **fields):
        client = self.daemon.unprivileged(**fields)
        self.addCleanup(client.close)
        return client

    def opened(self, flags, path=None):
        fd = os.open(path or self.share, flags)
        self.addCleanup(os.close, fd)
        return fd

    def test_nodes(self):
        touch(self.path("f"))
        client = self.peer()
        root_by_path = self.opened(os.O_PATH)
        with self.assertRaises(Refused):
            client.init(fd=root_by_path)
        granted = client.init(fd=self.opened(os.O_RDONLY), options=WANT_PID)
        self.assertEqual(granted.options, 0)
        self.assertEqual(granted.max_nodes, 65536)
        fds = [self.opened(os.O_PATH, self.path("f")), self.opened(os.O_WRONLY, self.path("f")),
               self.opened(os.O_RDONLY, self.path("f"))]
        self.assertEqual(client.register([register_entry(10 + number) for number in range(3)], fds),
                         [-errno.EACCES, -errno.EACCES, 0])
        client.sync()
        write(self.path("f"))
        self.assertEqual({record.node for record in client.records()}, {(12, 0)})

    def test_tree(self):
        client = self.peer()
        self.refused(errno.EPERM, client.init, TREE, fd=self.opened(os.O_RDONLY))
        self.refused(errno.EACCES, client.init, TREE, share="closed")
        self.refused(errno.EACCES, client.init, NODES, share="closed")
        self.refused(errno.EACCES, client.init, TREE, share="group")
        client.init(TREE, share="open", options=WANT_PATH)
        name = os.path.basename(self.base)
        touch(os.path.join(self.open_share, name))
        self.assertEqual(client.records()[0].name, name.encode())

    def test_group(self):
        games = grp.getgrnam("games").gr_gid
        self.peer(groups=[games]).init(TREE, share="group")
        self.peer(gid=games).init(TREE, share="group")

    def test_root_may(self):
        for share in ("open", "closed", "group"):
            self.session_by_name(share)

    def session_by_name(self, share):
        client = self.daemon.session(mode=TREE, share=share)
        self.addCleanup(client.close)

    def test_echo_pid(self):
        client = self.peer()
        fd = self.opened(os.O_RDONLY)
        self.refused(errno.EPERM, client.init, fd=fd, options=SUPPRESS_ECHO,
                     echo_pid=self.daemon.pid)
        granted = client.init(fd=fd, options=SUPPRESS_ECHO, echo_pid=client.peer_pid)
        self.assertEqual(granted.options, SUPPRESS_ECHO)

    def test_sessions_per_user(self):
        fd = self.opened(os.O_RDONLY)
        clients = [self.peer() for _ in range(4)]
        for client in clients:
            client.init(fd=fd)
        # Refused at INIT, or not even let in.
        try:
            fifth = self.peer()
            self.refused(errno.EUSERS, fifth.init, fd=fd)
        except (HungUp, BrokenPipeError, ConnectionResetError):
            pass
        other = self.peer(uid=65533)
        other.init(fd=fd)
        clients[0].close()
        for _ in range(200):  # the hang-up and the next connection race
            again = self.peer()
            try:
                again.init(fd=fd)
                break
            except (Refused, HungUp, BrokenPipeError):
                again.close()
                other.sync()
        else:
            self.fail("the place of a session that ended stays taken")

    def test_status(self):
        """Totals and the peer's own sessions, no one else's."""
        mine = self.session(root=self.outside)
        client = self.peer()
        granted = client.init(fd=self.opened(os.O_RDONLY))
        status = client.status()
        self.assertEqual([session["id"] for session in status["sessions"]], [granted.session])
        self.assertEqual((status["filesystems"], status["shares"]), ([], []))
        self.assertGreaterEqual(status["totals"]["sessions"], 2)
        self.assertNotIn(self.outside, json.dumps(status))
        everything = mine.status()
        self.assertIn("closed", [share["name"] for share in everything["shares"]])
        self.assertGreaterEqual(len(everything["sessions"]), 2)
        self.assertGreaterEqual(len(everything["filesystems"]), 1)
        mine.close()

    def test_max_nodes(self):
        daemon = Daemon(config=table(
            daemon={"socket_mode": "0666"}, limits={"nodes_per_session_unprivileged": 2}))
        self.addCleanup(daemon.kill)
        client = daemon.unprivileged()
        self.addCleanup(client.close)
        self.assertEqual(client.init(fd=self.opened(os.O_RDONLY)).max_nodes, 2)
        fds = []
        for number in range(4):
            touch(self.path(str(number)))
            fds.append(self.opened(os.O_RDONLY, self.path(str(number))))
        entries = [register_entry(10 + number) for number in range(4)]
        self.assertEqual(client.register(entries, fds),
                         [0, 0, -errno.ENOSPC, -errno.ENOSPC])
        daemon.stop()


class InAll(ProtocolTest):
    """What all peers together may have, and what is kept for root."""

    ENDED = (HungUp, BrokenPipeError, ConnectionResetError)

    def setUp(self):
        super().setUp()
        os.chmod(self.share, 0o755)
        self.root = os.open(self.share, os.O_RDONLY)
        self.addCleanup(os.close, self.root)
        self.small = Daemon(config=table(
            daemon={"socket_mode": "0666"}, limits={"sessions": 3, "sessions_per_user": 2}))
        self.addCleanup(self.small.stop)

    def connection(self, uid=0):
        client = self.small.unprivileged(uid) if uid else self.small.connect()
        self.addCleanup(client.close)
        return client

    def admitted(self, uid, wanted):
        """How many of so many new connections are answered."""
        count = 0
        for _ in range(wanted):
            with contextlib.suppress(*self.ENDED):
                self.connection(uid).status()
                count += 1
        return count

    def test_sessions(self):
        for uid in (65534, 65534, 65533):
            self.connection(uid).init(fd=self.root)
        for uid in (65533, 0):
            reply = self.refused(errno.EUSERS, self.connection(uid).init, fd=self.root)
            self.assertIn("limits.sessions.", reply.text)

    def test_connections(self):
        self.assertEqual(self.admitted(65534, 6), 4)  # twice what a user may have
        self.assertIn("has 4 connections already", self.small.log())
        self.assertEqual(self.admitted(65533, 3), 2)  # twice what there may be in all
        self.assertEqual(self.admitted(0, 66), 64)
