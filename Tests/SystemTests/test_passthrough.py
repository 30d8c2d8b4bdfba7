# SPDX-License-Identifier: Apache-2.0
"""docs/integrate.md's case: libfuse's example server passthrough_ll, as it is and with
examples/passthrough_ll.patch. Both let their kernel cache everything for ever."""

import os
import re
import shlex
import shutil
import subprocess
import unittest

import daemon
import scratch
from daemon import DaemonTest
from test_mirror import MountedServer

EXAMPLES = "/usr/share/doc/libfuse3-dev/examples"
PATCH = os.path.join(daemon.REPOSITORY, "examples", "passthrough_ll.patch")


def build(patched):
    source = os.path.join(EXAMPLES, "passthrough_ll.c")
    if not os.path.exists(source):
        raise unittest.SkipTest(f"{source} is missing: libfuse3-dev 3.14 installs it, unless "
                                "dpkg is told to leave out /usr/share/doc")
    directory = scratch.new_path("passthrough")
    os.mkdir(directory)
    for name in ("passthrough_ll.c", "passthrough_helpers.h"):
        shutil.copy(os.path.join(EXAMPLES, name), directory)
    library = os.path.join(daemon.REPOSITORY, "Sources", "CHostWatch")
    more = []
    if patched:
        scratch.run("patch", "--fuzz=0", os.path.join(directory, "passthrough_ll.c"), PATCH)
        more = ["-Werror", f"-I{library}/include",
                *(os.path.join(library, name) for name in os.listdir(library)
                  if name.endswith(".c"))]
    fuse = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    path = os.path.join(directory, "passthrough_ll")
    # What the example itself is warned of.
    scratch.run("cc", "-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-sign-compare",
                "-pthread", "-o", path, os.path.join(directory, "passthrough_ll.c"), *more,
                *shlex.split(fuse))
    return path


class PassthroughTest(MountedServer, DaemonTest):
    caches_absence = False

    @classmethod
    def make(cls):
        return {patched: build(patched) for patched in (True, False)}

    def start_server(self, hostwatch, path):
        return subprocess.Popen(
            [self.programs[hostwatch], "-f", "-o", f"source={self.share},cache=always", path],
            env=os.environ | {"HOSTWATCH_SOCKET": self.daemon.socket})

    def test_what_is_changed_on_the_mount(self):
        self.fill()
        mount = self.mounted()
        self.look(mount)
        for _, change in self.CHANGES[:6]:
            change(lambda name: os.path.join(mount, name))
            self.assertEqual(self.look(mount), self.picture())
        daemon.write(self.path("g"), b"on the host")
        self.assert_same(mount)

    def test_size_in_the_documents(self):
        with open(PATCH, encoding="utf-8") as file:
            body = file.read().partition("\n--- ")[2].splitlines()
        added = sum(line.startswith("+") and not line.startswith("+++") for line in body)
        removed = sum(line.startswith("-") for line in body)
        with open(os.path.join(daemon.REPOSITORY, "docs", "integrate.md"), encoding="utf-8") as file:
            said = re.search(r"(\d+) lines added, (\d+) removed", file.read())
        self.assertEqual((int(said[1]), int(said[2])), (added, removed))
