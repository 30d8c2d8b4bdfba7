# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of this folder with a time limit for each; see `run`."""

import contextlib
import fcntl
import os
import signal
import sys
import time
import unittest

LIMIT = 60  # seconds for one test, unless its class has a `limit`
SLOW = 5.0


SYSCTL = "/proc/sys/fs/fanotify/max_queued_events"


def read_limit():
    with open(SYSCTL, encoding="ascii") as file:
        return file.read()


# Runs beside each other share one sysctl: who changes it has the machine alone.
LOCK = "/run/lock/hostwatchd-tests"


@contextlib.contextmanager
def turn(exclusive, wait=True):
    """Waits for every run that would be disturbed, or would disturb. The first lock
    keeps newcomers behind one that waits to be alone. BlockingIOError if it is not to
    wait and would have to."""
    now = 0 if wait else fcntl.LOCK_NB
    with open(f"{LOCK}.turn", "w", encoding="ascii") as door, \
            open(f"{LOCK}.sysctl", "w", encoding="ascii") as room:
        fcntl.flock(door, fcntl.LOCK_EX | now)
        fcntl.flock(room, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | now)
        fcntl.flock(door, fcntl.LOCK_UN)
        yield


def classes(suite):
    """The tests of each class that has some."""
    for part in suite:
        if isinstance(part, unittest.TestCase):
            yield suite
            return
        yield from classes(part)


class TimedOut(Exception):
    pass


def on_alarm(_number, _frame):
    raise TimedOut("not done within its time")


class Result(unittest.TestResult):
    def __init__(self):
        super().__init__()
        self.passed = 0
        self.broken = set()
        self.tries = {}
        self.again = []

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()
        signal.alarm(getattr(test, "limit", LIMIT))

    def stopTest(self, test):
        signal.alarm(0)
        super().stopTest(test)
        spent = time.monotonic() - self.began
        if spent > SLOW:
            print(f"slow    {test.id()}: {spent:.1f} s", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        if test.id() not in self.broken:
            self.passed += 1

    def _broken(self, test, error, part=None):
        """A class whose tests depend on what the kernel keeps in its caches and when it
        runs whom has `attempts`: each may fail that often but for once, and it is said."""
        tried = self.tries[test.id()] = self.tries.get(test.id(), 0) + 1
        if tried < getattr(test, "attempts", 1):
            self.again.append(test)
            print(f"again   {part or test.id()}: it failed", flush=True)
        else:
            self.broken.add(test.id())
            print(f"FAILED  {part or test.id()}", flush=True)
        print(self._exc_info_to_string(error, test), flush=True)

    def addError(self, test, error):
        super().addError(test, error)
        self._broken(test, error)

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self._broken(test, error)

    def addSubTest(self, test, subtest, error):
        super().addSubTest(test, subtest, error)
        if error is not None:
            self._broken(test, error, subtest.id())

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"skipped {test.id()}: {reason}", flush=True)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    signal.signal(signal.SIGALRM, on_alarm)
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{word}*" for word in sys.argv[1:]] or None
    suite = loader.discover(here, "test_*.py", here)
    result = Result()
    began = time.monotonic()
    with turn(exclusive=False):
        limit = read_limit()
    try:
        for part in classes(suite):
            with turn(getattr(next(iter(part)), "exclusive", False)):
                part.run(result)
                while result.again:
                    tests = {test.id(): test for test in result.again}.values()
                    result.again = []
                    result._previousTestClass = None  # it is set up again
                    unittest.TestSuite(
                        type(test)(test._testMethodName) for test in tests).run(result)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    finally:
        # The daemons have raised it.
        with turn(exclusive=True), open(SYSCTL, "w", encoding="ascii") as file:
            file.write(limit)
    print(f"{time.monotonic() - began:.0f} s")
    for test in sorted(result.broken):
        print(f"failed  {test}")
    print(f"{result.passed} passed, {len(result.broken)} failed, "
          f"{len(result.skipped)} skipped")
    return 1 if result.broken else 0


if __name__ == "__main__":
    sys.exit(main())
