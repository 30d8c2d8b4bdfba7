# SPDX-License-Identifier: Apache-2.0
"""How much a soak holds, and what of it is left at the end."""

import collections
import contextlib
import os
import re
import subprocess

import scratch

# Objects more that are gone and that a process still has open. What hostwatchfs's replayer
# keeps open on the mount the server cannot close: 256 directories, until others take their
# places, and 1,024 objects without a name whose end has not been replayed (replayer.c).
DELETED = {"hostwatchfs replay descriptors": 256 + 1024}
KEPT = 512  # directories that hostwatchfs keeps open (Backing.capacity)
MEMORY_FACTOR, MEMORY_KIB = 1.25, 8192  # how much more is flat


def resident(pid):
    """KiB."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return int(re.search(r"VmRSS:\s+(\d+)", file.read())[1])


def descriptors(pid):
    """How many of each kind a process has open."""
    kinds = collections.Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            kinds["deleted" if target.endswith(" (deleted)") and target.startswith(scratch.base())
                  else re.sub(r"\d+", "", target)] += 1
    return dict(sorted(kinds.items()))


def same(what, one, other):
    """Whether two of these are alike, but for a few objects that are gone and for the
    directories that hostwatchfs has open for the next request."""
    if not isinstance(one, dict):
        return one == other
    is_server = what.startswith("hostwatchfs")
    # As descriptors() has them, without digits, which the base's name may have, too.

    def kept(kinds):
        return sum(count for kind, count in kinds.items()
                   if is_server and kind.startswith(os.path.dirname(scratch.base())))

    def others(kinds):
        return {kind: count for kind, count in kinds.items() if kind != "deleted"
                and not (is_server and kind.startswith(os.path.dirname(scratch.base())))}

    return (others(one) == others(other) and kept(other) <= kept(one) + KEPT
            and other.get("deleted", 0) <= one.get("deleted", 0) + DELETED.get(what, 0))


def mount_points():
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return sorted(line.split()[4] for line in file)


def loop_devices():
    """Those of this run."""
    found = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"],
                           stdout=subprocess.PIPE, check=True).stdout.decode()
    return [line for line in found.splitlines() if scratch.base() in line]


def processes():
    """The command lines in which this run's directory is."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().replace(b"\0", b" ").decode(errors="replace")
            if scratch.base() in words:
                found.append(f"{pid}: {words}")
    return found


def growth(measured):
    """What of the later measures is not as in the first, a line each. In the second the
    daemon is the process of the first."""
    first = measured[0]
    for what, later in zip(("half", "end"), measured[1:]):
        for key, value in later.items():
            if key == "process":
                continue
            if key.endswith("KiB"):
                if value > first[key] * MEMORY_FACTOR + MEMORY_KIB:
                    yield (f"{key} was {first[key]}, and {value} at the {what}; "
                           f"allowed are {MEMORY_FACTOR} times that and {MEMORY_KIB}")
            elif not same(key, first[key], value):
                yield f"{key}: {first[key]}, and {value} at the {what}"
    if first["process"] != measured[1]["process"]:
        yield "the daemon was replaced between a quarter and the half"
