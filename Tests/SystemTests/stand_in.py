#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Stands where hostwatchd would, between two of its processes: `restart_test` starts
it as the service's program. What it is given:

    keep       leaves the descriptor store as it is
    lose-group removes the groups from it
    damage     hands the state on with one bit of it turned
    version    hands the state on with another version in it
    unsealed   hands the state on in a memfd that is not sealed
    litter     stores descriptors that hostwatchd does not know
"""

import array
import fcntl
import os
import signal
import socket
import sys

LISTEN_START = 3


def notify(text, fds=()):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.connect(os.environ["NOTIFY_SOCKET"])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        to.sendmsg([text.encode()], rights)


def memfd(data, sealed=True):
    fd = os.memfd_create("state", os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    if sealed:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK
                    | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd


def store(name, fd):
    notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [fd])


def hand_on(how):
    names = os.environ["LISTEN_FDNAMES"].split(":")
    at = LISTEN_START + names.index("hostwatchd-handover")
    _, fds, _, _ = socket.recv_fds(socket.socket(fileno=os.dup(at)), 1, 253)
    data = bytearray(os.pread(fds[0], 1 << 24, 0))
    if how == "damage":
        data[len(data) // 2] ^= 4
    elif how == "version":
        data[8] += 1
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader.setblocking(False)
    socket.send_fds(writer, [b"D"], [memfd(bytes(data), how != "unsealed"), *fds[1:]])
    notify("FDSTOREREMOVE=1\nFDNAME=hostwatchd-handover")
    store("hostwatchd-handover", reader.fileno())
    return reader


def main():
    how = sys.argv[1]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    held = None
    if how == "litter":
        store("hostwatchd-nonsense", memfd(b"x"))
        store("another-service", memfd(b"y"))
        store("hostwatchd-group.1.2", memfd(b"z"))
    elif how == "lose-group":
        for name in os.environ["LISTEN_FDNAMES"].split(":"):
            if name.startswith("hostwatchd-group."):
                notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    elif how != "keep":
        held = hand_on(how)
    notify("READY=1")
    signal.sigwait([signal.SIGTERM])
    del held


main()
