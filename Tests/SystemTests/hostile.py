# SPDX-License-Identifier: Apache-2.0
"""A client that means harm.

    hostile.py SOCKET DIRECTORY SEED SECONDS UID

Sends random, mutated and well-formed packets with whatever descriptors, leaves
connections half open, floods without reading, and closes at any moment. It judges
nothing: what the daemon does is seen by a well-behaved client.
"""

import array
import errno
import os
import random
import resource
import select
import socket
import struct
import sys
import time

from hostwatch import (ALL, DEFAULT, FORGET, INIT, INTEREST, NODES, REGISTER, STATUS, SYNC, TREE,
                       batch, init_body, message, register_entry)

MANY = 150  # connections held at once


class Hostile:
    def __init__(self, path, directory, seed):
        self.path = path
        self.directory = directory
        self.dice = random.Random(seed)
        self.connections = []
        self.sent = 0

    # What is passed

    def descriptor(self):
        """One descriptor of some kind, and the others that have to be closed with it."""
        dice = self.dice
        kind = dice.randrange(14)
        if kind == 0:
            ours, theirs = os.pipe()
            return dice.choice((ours, theirs)), [ours, theirs]
        if kind == 1:
            pair = [one.detach() for one in socket.socketpair()]
            return pair[0], pair
        if kind == 2:  # one whose other end has gone
            pair = [one.detach() for one in socket.socketpair(socket.AF_UNIX,
                                                              socket.SOCK_SEQPACKET)]
            os.close(pair[1])
            return pair[0], pair[:1]
        if kind == 3:  # a socket that is on its way within itself
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                socket.send_fds(ours, [b"x"], [theirs.fileno(), ours.fileno()])
            except OSError as error:
                # The kernel counts what is in flight per user: enough, for now.
                if error.errno != errno.ETOOMANYREFS:
                    raise
            pair = [ours.detach(), theirs.detach()]
            return pair[0], pair
        if kind == 4:
            one = os.memfd_create("hostile")
        elif kind == 5:
            one = select.epoll()
            number = os.dup(one.fileno())
            one.close()
            return number, [number]
        elif kind == 6:
            one = os.pidfd_open(os.getpid())
        elif kind == 7:
            one = os.open(dice.choice(("/proc/self/status", "/dev/null", "/dev/zero", "/proc",
                                       "/sys", "/dev/full")), os.O_RDONLY)
        elif kind == 8:  # a connection to the daemon itself
            mine = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            mine.setblocking(False)
            try:
                mine.connect(self.path)
            except OSError:
                pass
            one = mine.detach()
        else:
            one = self.file()
        return one, [one]

    def file(self):
        """Something in the directory, or elsewhere."""
        dice = self.dice
        path = dice.choice((self.directory, os.path.dirname(self.directory), "/var/tmp", "/"))
        flags = dice.choice((os.O_RDONLY, os.O_PATH, os.O_PATH | os.O_NOFOLLOW))
        try:
            for _ in range(dice.randrange(4)):
                names = os.listdir(path)
                if not names:
                    break
                path = os.path.join(path, dice.choice(names))
            return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return os.open("/", os.O_RDONLY)

    # Packets

    def number(self):
        return self.dice.choice((0, 1, 2, 3, 7, 100, self.dice.randrange(300),
                                 self.dice.getrandbits(32), self.dice.getrandbits(64), 2**64 - 1))

    def body(self, kind):
        dice = self.dice
        if kind == INIT:
            return init_body(
                dice.choice((NODES, NODES, TREE, dice.randrange(65536))),
                share=dice.choice((b"", b"", b"share", b"\xff\xfe", bytes(200))),
                options=dice.choice((0, 1, 2, 4, 8, 15, dice.getrandbits(32))),
                events=dice.choice((DEFAULT, ALL, 0, dice.getrandbits(64))),
                max_packet=dice.choice((0, 1, 4096, dice.getrandbits(32))),
                queue_limit=dice.choice((0, 1, 65536, dice.getrandbits(32))),
                max_delay_us=dice.choice((0, 1000, dice.getrandbits(32))),
                echo_pid=dice.choice((0, 0, 1, os.getpid(), dice.getrandbits(31))),
                reserved=dice.choice((0, 0, 0, 1)))
        if kind == REGISTER:
            return batch([register_entry(
                self.number(), self.number(), self.number() if dice.random() < .3 else 0,
                (dice.choice((0, 1, dice.getrandbits(62))), dice.choice((0, 5, 2**32 - 1))))
                for _ in range(dice.choice((1, 1, 2, 5, 60)))])
        if kind in (FORGET, INTEREST):
            words = 2 if kind == FORGET else 3
            return batch([struct.pack(f"<{words}Q", *(self.number() for _ in range(words)))
                          for _ in range(dice.choice((1, 3, 250)))])
        if kind == STATUS:
            return struct.pack("<II", dice.choice((0, 0, 1)), dice.choice((0, 0, 1)))
        return b""

    def packet(self):
        dice = self.dice
        kind = dice.choice((INIT, INIT, REGISTER, REGISTER, FORGET, INTEREST, SYNC, STATUS))
        packet = bytearray(message(kind, self.body(kind), dice.getrandbits(64)))
        wanted = {INIT: 1, REGISTER: len(packet) // 40}.get(kind, 0)
        what = dice.randrange(10)
        if what < 3:
            for _ in range(dice.randrange(1, 5)):
                packet[dice.randrange(len(packet))] = dice.randrange(256)
        elif what == 3:
            del packet[dice.randrange(len(packet)):]
        elif what == 4:
            packet += dice.randbytes(dice.choice((1, 8, 1000, 140000)))
            if dice.random() < .5:
                packet[:4] = struct.pack("<I", len(packet))
        elif what == 5:
            packet = bytearray(dice.randbytes(dice.randrange(1, 300)))
        if dice.random() < .2:
            wanted = dice.choice((0, 1, 2, 20, 250))
        return bytes(packet), wanted

    # What it does

    def connect(self):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            return None
        self.connections.append(sock)
        if len(self.connections) > MANY:
            self.connections.pop(self.dice.randrange(MANY)).close()
        return sock

    def send(self, sock, packet, count=0):
        numbers, held = [], []
        for _ in range(min(count, 250)):
            number, others = self.descriptor()
            numbers.append(number)
            held += others
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]
        try:
            sock.sendmsg([packet], rights if numbers else [])
            self.sent += 1
            return True
        except OSError:
            return False
        finally:
            for number in set(held):
                os.close(number)

    def begin(self, mode, **fields):
        """A session that is granted, on the directory."""
        sock = self.connect()
        if sock is None:
            return None
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            socket.send_fds(sock, [message(INIT, init_body(mode, **fields))], [fd])
        except OSError:
            return None
        finally:
            os.close(fd)
        return sock

    def any(self):
        return self.dice.choice(self.connections) if self.connections else self.connect()

    def step(self):
        dice = self.dice
        what = dice.randrange(12)
        if what == 0:
            self.connect()
        elif what == 1 and self.connections:
            sock = self.connections.pop(dice.randrange(len(self.connections)))
            if dice.random() < .3:
                try:
                    sock.shutdown(dice.choice((socket.SHUT_RD, socket.SHUT_WR)))
                except OSError:
                    pass
            sock.close()
        elif what == 2:  # never reads
            self.begin(TREE, queue_limit=1)
        elif what == 3:
            sock = self.begin(NODES)
            if sock:
                for _ in range(5):
                    fd = self.file()
                    try:
                        socket.send_fds(sock, [message(REGISTER, batch(
                            [register_entry(2 + dice.randrange(50))]))], [fd])
                    except OSError:
                        pass
                    finally:
                        os.close(fd)
        elif what == 4:  # a flood
            sock = self.any()
            packet = message(dice.choice((SYNC, STATUS)), b"")
            if dice.random() < .5:
                packet = message(FORGET, self.body(FORGET))
            for _ in range(300):
                if sock is None or not self.send(sock, packet):
                    break
        elif what == 5:
            sock = self.any()
            try:
                if sock:
                    sock.recv(131072)
            except OSError:
                pass
        elif what == 6:  # a hang-up that is none
            sock = self.any()
            if sock:
                self.send(sock, b"", dice.choice((0, 3)))
        else:
            sock = self.begin(dice.choice((NODES, TREE))) if dice.random() < .3 else self.any()
            if sock:
                self.send(sock, *self.packet())


def main():
    path, directory, seed, seconds, uid = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    if int(uid):
        os.setgroups([])
        os.setresgid(int(uid), int(uid), int(uid))
        os.setresuid(int(uid), int(uid), int(uid))
    hostile = Hostile(path, directory, int(seed))
    end = time.monotonic() + float(seconds)
    steps = 0
    while time.monotonic() < end:
        hostile.step()
        steps += 1
        if steps % 200 == 0:
            time.sleep(0.002)
    print(f"{steps} steps, {hostile.sent} packets")


if __name__ == "__main__":
    main()
