# SPDX-License-Identifier: Apache-2.0
"""The little of the hostwatch protocol that the system tests speak.

Numbers as in Sources/CHostWatch/include/hostwatch_protocol.h, written out
again on purpose: a test that took them from there would not see them change.
"""

import array
import json
import socket
import struct

INIT, STATUS, SYNC = 1, 6, 5
REPLY = 0x8000
EVENTS, LOST, RESYNCED, DETACHED = 0x4001, 0x4002, 0x4003, 0x4004
NODES, TREE = 1, 2
CREATE = 0x100
DEFAULT_EVENTS = 0x1000070E


class Client:
    """A connection to the daemon; every wait ends after `timeout` seconds."""

    def __init__(self, path="/run/hostwatchd/hostwatchd.sock", timeout=10):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.unique = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, kind, body, descriptors=()):
        self.unique += 1
        packet = struct.pack("=IHHQ", 16 + len(body), kind, 0, self.unique) + body
        ancillary = []
        if descriptors:
            rights = array.array("i", descriptors)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        self.socket.sendmsg([packet], ancillary)

    def receive(self):
        """The next packet's type and body; (None, b"") at the end."""
        packet = self.socket.recv(1 << 18)
        if not packet:
            return None, b""
        size, kind, _, _ = struct.unpack_from("=IHHQ", packet)
        assert size == len(packet), (size, len(packet))
        return kind, packet[16:]

    def wait_for(self, wanted):
        """The body of the next packet of that type; others are dropped."""
        while True:
            kind, body = self.receive()
            if kind is None:
                raise EOFError(f"closed while waiting for {wanted:#x}")
            if kind == wanted:
                return body

    def request(self, kind, body, descriptors=()):
        """The reply's error (0 or a negative errno) and what follows detail."""
        self.send(kind, body, descriptors)
        reply = self.wait_for(kind | REPLY)
        error, _ = struct.unpack_from("=iI", reply)
        return error, reply[8:]

    def init(self, share="", descriptor=None, mode=TREE, events=DEFAULT_EVENTS, options=0,
             max_delay=0, echo_pid=0):
        name = share.encode()
        body = struct.pack(
            "=HHIQIIIIHHI", 1, 0, options, events, 0, 0, max_delay, echo_pid, mode, len(name), 0
        )
        body += name + b"\0" * (-len(name) % 8)
        return self.request(INIT, body, [] if descriptor is None else [descriptor])

    def sync(self):
        return self.request(SYNC, b"")[0]

    def status(self):
        error, body = self.request(STATUS, struct.pack("=II", 0, 0))
        assert error == 0, error
        return json.loads(body)
