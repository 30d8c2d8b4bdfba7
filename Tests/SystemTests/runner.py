# SPDX-License-Identifier: Apache-2.0
"""Runs the tests of this folder with a time limit for each; see `run`."""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
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


def attempts(count):
    """For a test that depends on what the kernel keeps in its caches or when it runs whom,
    but not on what is true: it may fail so often but for once, and it is said and counted. A
    class may have `attempts` for all its tests."""
    def mark(test):
        test.attempts = count
        return test
    return mark


def end_by_signals(once):
    """SIGTERM and SIGHUP end a run as Ctrl-C does, so that what it changed is put back. A
    runner that several tell to end heeds the first."""
    owner = os.getpid()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def on_signal(number, _frame):
        if os.getpid() != owner:  # what a test forked
            os._exit(128 + number)
        for each in numbers if once else ():
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, on_signal)


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
        tried = self.tries[test.id()] = self.tries.get(test.id(), 0) + 1
        method = getattr(test, getattr(test, "_testMethodName", ""), None)
        if tried < getattr(method, "attempts", getattr(test, "attempts", 1)):
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


def found(words):
    """The suites of the classes that have a test with one of the words in its name."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{word}*" for word in words] or None
    return list(classes(loader.discover(here, "test_*.py", here)))


def is_exclusive(part):
    return getattr(next(iter(part)), "exclusive", False)


def run_tests(parts):
    signal.signal(signal.SIGALRM, on_alarm)
    result = Result()
    for part in parts:
        with turn(is_exclusive(part)):
            part.run(result)
            while result.again:
                tests = {test.id(): test for test in result.again}.values()
                result.again = []
                result._previousTestClass = None  # it is set up again
                unittest.TestSuite(
                    type(test)(test._testMethodName) for test in tests).run(result)
    return {"passed": result.passed, "broken": sorted(result.broken),
            "skipped": len(result.skipped), "again": len(result.tries) - len(result.broken)}


def work(queue, words):
    """One of several runners: takes one class after the other from a pipe that holds
    two bytes for each, and says on standard output what came of all."""
    os.set_inheritable(queue, False)
    report = os.dup(1)
    os.dup2(2, 1)  # what tests print
    parts = found(words)  # what it imports has handlers of its own
    end_by_signals(once=True)
    taken = iter(lambda: os.read(queue, 2), b"")
    outcome = run_tests(parts[int.from_bytes(index, "little")] for index in taken)
    with open(report, "w", encoding="utf-8") as file:
        json.dump(outcome, file)


def run_beside(jobs, parts, words):
    """Several runners, each in a mount namespace of its own. Those that have to be alone
    come last: nobody waits for them then but each other."""
    order = sorted(range(len(parts)), key=lambda index: is_exclusive(parts[index]))
    queue, filled = os.pipe()
    os.write(filled, b"".join(index.to_bytes(2, "little") for index in order))
    os.close(filled)
    workers = [subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", sys.executable, __file__,
         "--take", str(queue), *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sys.stdout, pass_fds=[queue])
        for _ in range(jobs)]
    os.close(queue)
    total = {"passed": 0, "broken": [], "skipped": 0, "again": 0}
    for worker in workers:
        try:
            output = worker.communicate()[0]
        except KeyboardInterrupt:
            for other in workers:
                other.send_signal(signal.SIGTERM)
            for other in workers:
                other.wait()  # they clean up
            raise
        if worker.returncode != 0:
            total["broken"].append(f"a runner that ended with status {worker.returncode}")
            continue
        for key, value in json.loads(output).items():
            total[key] += value
    return total


def main():
    parser = argparse.ArgumentParser(prog="Tests/SystemTests/run")
    parser.add_argument("-j", dest="jobs", type=int, default=1, metavar="N",
                        help="run so many classes beside each other")
    parser.add_argument("--take", type=int, help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="WORD",
                        help="only tests with one of these in their name")
    options = parser.parse_args()
    try:
        if options.take is not None:
            work(options.take, options.words)
            return 0
        began = time.monotonic()
        parts = found(options.words)
        end_by_signals(once=False)
        with turn(exclusive=False):
            limit = read_limit()
        try:
            jobs = min(options.jobs, len(parts))
            result = run_tests(parts) if jobs < 2 else run_beside(jobs, parts, options.words)
        finally:
            # The daemons have raised it.
            with turn(exclusive=True), open(SYSCTL, "w", encoding="ascii") as file:
                file.write(limit)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    print(f"{time.monotonic() - began:.0f} s")
    for test in sorted(result["broken"]):
        print(f"failed  {test}")
    print(f"{result['passed']} passed, {len(result['broken'])} failed, "
          f"{result['skipped']} skipped, {result['again']} tried again")
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
