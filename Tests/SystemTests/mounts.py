# SPDX-License-Identifier: Apache-2.0
"""Mounts of the FUSE server under test."""

import os
import shlex
import signal
import subprocess
import time

import fusefs
import scratch

START_TIMEOUT = 10.0


def server():
    """The command of the server under test: $HOSTWATCHFS_COMMAND, with {source}, {mountpoint},
    {socket} and {options} in it, or the hostwatchfs that was built with the daemon."""
    built = fusefs.binary()
    return os.environ.get("HOSTWATCHFS_COMMAND",
                          built + " -f --socket {socket} -o {options} {source} {mountpoint}")


class Mounted:
    """SOURCE on a mount point of its own."""

    def __init__(self, source, socket, options=""):
        self.source = source
        self.path = scratch.new_path("mount")
        self.log_path = self.path + ".log"
        os.mkdir(self.path)
        command = server().format(source=source, mountpoint=self.path, socket=socket,
                                  options=",".join(filter(None, ["allow_other", options])))
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(shlex.split(command), stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT
        while not os.path.ismount(self.path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{command} did not mount:\n{self.log()}")
            time.sleep(0.01)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def stop(self):
        subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL, check=False)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
