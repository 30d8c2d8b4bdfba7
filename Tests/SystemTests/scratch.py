# SPDX-License-Identifier: Apache-2.0
"""Scratch filesystems on sparse images below one temporary directory.

All that is made here is unmounted and removed when the interpreter ends,
whether by itself or by a signal. `run` starts the tests in a mount namespace of
their own besides, so that even kill -9 leaves no mount.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

KINDS = ("ext4", "xfs", "btrfs", "tmpfs")
_base = None
_mounted = []
_shared = {}
_counter = 0


def base():
    """The temporary directory; anybody may pass through it."""
    global _base
    if _base is None:
        _base = tempfile.mkdtemp(prefix="hostwatch-test-", dir="/var/tmp")
        os.chmod(_base, 0o755)
    return _base


def _clean_up():
    for mount in reversed(_mounted[:]):
        mount.unmount(lazily=True)
    if _base is not None:
        shutil.rmtree(_base, ignore_errors=True)


def _on_signal(number, _frame):
    # SystemExit would be one more error of a test; and a child that a test
    # forked has nothing to clean up.
    if os.getpid() == _owner:
        atexit._run_exitfuncs()
    os._exit(128 + number)


_owner = os.getpid()
atexit.register(_clean_up)
for _number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(_number, _on_signal)


def run(*command, **options):
    options.setdefault("stdout", subprocess.DEVNULL)
    options.setdefault("stderr", subprocess.PIPE)
    done = subprocess.run(command, **options)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')}")
    return done


def new_path(name):
    """A path in the temporary directory that nothing has yet."""
    global _counter
    _counter += 1
    return os.path.join(base(), f"{_counter}-{name}")


class Mount:
    """A filesystem at `path`; `kind` is ext4, xfs, btrfs, tmpfs or overlay."""

    def __init__(self, kind, size="2G", options=()):
        """`options` are mkfs's."""
        self.kind = kind
        self.path = new_path(kind)
        self.image = None
        os.mkdir(self.path)
        if kind in ("ext4", "xfs", "btrfs"):
            if shutil.which(f"mkfs.{kind}") is None:
                raise unittest.SkipTest(f"mkfs.{kind} is missing")
            self.image = self.path + ".image"
            with open(self.image, "wb") as file:
                file.truncate(int(size[:-1]) << 30)
            run(f"mkfs.{kind}", "-q", *options, self.image)
        self.mount()

    def mount(self, path=None, options=""):
        where = path or self.path
        if self.kind == "tmpfs":
            command = ["mount", "-t", "tmpfs", "-o", "size=1g,mode=755", "scratch", where]
        else:
            command = ["mount", "-o", "loop" + (options and "," + options), self.image, where]
        try:
            run(*command)
        except RuntimeError as error:
            raise unittest.SkipTest(f"{self.kind} cannot be mounted: {error}") from None
        if self not in _mounted:
            _mounted.append(self)

    def unmount(self, lazily=False):
        if lazily:
            subprocess.run(["umount", "-l", self.path], stderr=subprocess.DEVNULL)
        else:
            run("umount", self.path)
        if self in _mounted:
            _mounted.remove(self)

    def remove(self):
        if self in _mounted:
            self.unmount(lazily=True)
        if self.image and os.path.exists(self.image):
            os.unlink(self.image)


class Overlay(Mount):
    """An overlay that has file handles, over a lower tree of `below`."""

    def __init__(self, below, options="index=on,nfs_export=on,redirect_dir=on"):
        self.kind = "overlay"
        self.image = None
        self.options = options
        self.top = os.path.join(below.path, os.path.basename(new_path("overlay")))
        self.path = os.path.join(self.top, "merged")
        for name in ("lower", "upper", "work", "merged"):
            os.makedirs(os.path.join(self.top, name))

    def mount(self, path=None, options=""):
        layers = ",".join(f"{layer}dir={self.top}/{layer}" for layer in ("lower", "upper", "work"))
        try:
            run("mount", "-t", "overlay", "-o", f"{layers},{self.options}", "scratch", self.path)
        except RuntimeError as error:
            raise unittest.SkipTest(f"no overlay: {error}") from None
        _mounted.append(self)


def shared(kind):
    """The filesystem of this kind that tests share; each takes a directory of it."""
    if kind not in _shared:
        try:
            _shared[kind] = Mount(kind)
        except unittest.SkipTest as reason:
            _shared[kind] = reason
    if isinstance(_shared[kind], unittest.SkipTest):
        raise _shared[kind]
    return _shared[kind]


def on_each_filesystem(test_class):
    """Turns a TestCase with `kind` into one per filesystem in the same module."""
    module = sys.modules[test_class.__module__]
    for kind in KINDS:
        name = f"{test_class.__name__}_{kind}"
        variant = type(name, (test_class,), {"kind": kind, "__module__": module.__name__,
                                             "__test__": True})
        setattr(module, name, variant)
    return None
