# SPDX-License-Identifier: Apache-2.0
"""Peers that died, shut down one direction, or never read: what they have left in
the daemon goes, whatever lies in their sockets."""

import fcntl
import os
import select
import socket
import termios
import time

from daemon import DaemonTest, table, touch
from hostwatch import REGISTER, STATUS, HungUp, batch, message, register_entry

LIMIT = 300
PER_PACKET = 250
RIGHTS = batch([register_entry(10 + at) for at in range(PER_PACKET)])


class Stuck(DaemonTest):
    config = table(daemon={"socket_mode": "0666"}, limits={"descriptors_per_user": LIMIT})

    def setUp(self):
        super().setUp()
        os.chmod(self.base, 0o755)
        self.watch = self.session()
        # What the test before left may not have been noticed, or not be closed yet.
        end = time.monotonic() + 5
        while len(self.connections()) > 3:  # the listener, this client and its process
            self.assertLess(time.monotonic(), end, self.daemon.descriptors())
            time.sleep(0.01)
        self.before = self.count()

    def connections(self):
        return [one for one in self.daemon.descriptors().values()
                if one.startswith("socket:") or one == "anon_inode:[pidfd]"]

    def count(self):
        """Descriptors of the daemon's: what clients can make more of."""
        return len([one for one in self.daemon.descriptors().values()
                    if not one.startswith("/proc/")])

    def comes_back(self, seconds):
        """The daemon has what it had before, and still serves."""
        end = time.monotonic() + seconds
        while self.count() != self.before:
            self.assertLess(time.monotonic(), end, self.daemon.descriptors())
            self.watch.sync()
            time.sleep(0.02)
        touch(self.path("still-served"))
        self.assertTrue(self.watch.records())
        self.assertIsNone(self.daemon.process.poll(), self.daemon.log()[-2000:])

    @staticmethod
    def unread(client):
        """Whether the daemon leaves requests in the socket."""
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            left = fcntl.ioctl(client.fileno(), termios.TIOCOUTQ, bytes(4))
            if not int.from_bytes(left, "little"):
                return False
            time.sleep(0.001)
        return True

    def stall(self, client):
        """Asks and does not read, until the daemon does not read either."""
        ask = message(STATUS, bytes(8), 7)
        for _ in range(20000):
            client.send_raw(ask)
            if self.unread(client):
                return
        self.fail("the daemon reads all")

    def stalled_with(self, client, fds):
        """The same, and then so many requests with descriptors."""
        self.stall(client)
        client.sock.setblocking(False)
        for some in fds:
            client.send_raw(message(REGISTER, RIGHTS, 9), some)

    def test_unread_replies(self):
        client = self.session()
        self.stall(client)
        client.close()
        self.comes_back(10)

    def test_shut_down_for_sending(self):
        client = self.session()
        client.sock.shutdown(socket.SHUT_WR)
        with self.assertRaises(HungUp):
            client.receive(5)
        client.close()
        self.comes_back(10)

    def test_shut_down_for_sending_when_stalled(self):
        client = self.session()
        self.stall(client)
        client.sock.shutdown(socket.SHUT_WR)
        # It is not closed here: the daemon has to notice.
        self.comes_back(5)
        client.close()

    def test_shut_down_for_receiving(self):
        client = self.session()
        client.sock.shutdown(socket.SHUT_RD)
        touch(self.path("f"))
        self.comes_back(5)
        client.close()

    def test_accused_and_not_reading(self):
        client = self.session(queue_limit=65536)
        # Events fill the socket and the queue; there is room for replies left.
        for number in range(3000):
            touch(self.path(f"f{number}"))
            if number % 100 == 0:
                self.watch.sync()
                self.watch.take()
        self.watch.sync()
        self.watch.take()
        client.send_raw(b"garbage" * 4)
        self.comes_back(12)
        client.close()

    def test_descriptors_in_cycles(self):
        """Sockets that carry each other, in a request that is read."""
        client = self.session()
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(left, [b"x"], [left.fileno(), right.fileno(), client.fileno()])
        socket.send_fds(right, [b"x"], [left.fileno(), right.fileno(), client.fileno()])
        statuses = client.register([register_entry(10), register_entry(11), register_entry(12)],
                                   [left.fileno(), right.fileno(), client.fileno()])
        self.assertTrue(all(statuses), statuses)
        left.close()
        right.close()
        client.close()
        self.comes_back(10)

    def child(self, body):
        """Runs `body` in a process of its own, which then ends without a farewell."""
        pid = os.fork()
        if pid == 0:
            try:
                # Copies of other clients' sockets would keep those connected.
                os.close(self.watch.fileno())
                body()
                os._exit(0)
            except BaseException as error:
                print(f"child: {error!r}", flush=True)
                os._exit(1)
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)

    def test_own_socket_in_flight(self):
        """A dead client whose own end lies in the daemon's socket: it never hangs up."""
        def body():
            client = self.daemon.session(self.share, queue_limit=65536)
            own = [client.fileno()] * PER_PACKET
            self.stalled_with(client, [own, own])
        self.child(body)
        self.assertGreater(self.count(), self.before)
        self.comes_back(12)
        self.assertIn("descriptors", self.daemon.log())

    def test_limit_of_a_user(self):
        """Beyond the limit the client that does not read is cut off, and said to be."""
        client = self.daemon.unprivileged()
        self.addCleanup(client.close)
        fd = os.open(self.share, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        client.init(fd=fd, queue_limit=65536)
        own = self.session()
        self.stalled_with(client, [[fd] * PER_PACKET] * 3)
        self.ends(client, 5)
        self.assertIn("limits.descriptors-per-user", self.daemon.log())
        own.sync()
        # Below it nobody is.
        within = self.daemon.unprivileged()
        self.addCleanup(within.close)
        within.init(fd=fd, queue_limit=65536)
        self.stalled_with(within, [[fd] * PER_PACKET])
        count = self.count()
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            own.sync()
            self.assertEqual(self.count(), count)
            time.sleep(0.1)

    def ends(self, client, seconds):
        """The daemon closes the connection, of which nothing is read here."""
        poll = select.poll()
        poll.register(client, 0)
        self.assertTrue(poll.poll(seconds * 1000), self.daemon.log()[-2000:])
