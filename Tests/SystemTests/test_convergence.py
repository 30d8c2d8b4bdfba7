# SPDX-License-Identifier: Apache-2.0
"""Random histories by several processes, the daemon stopped and continued among
them: at every SYNC the models equal the filesystem.

    HOSTWATCH_SEED=N            one history of that seed
    HOSTWATCH_HISTORIES=N       so many per filesystem
    HOSTWATCH_SOAK_MINUTES=N    so long, shared among the filesystems
"""

import os
import random
import shutil
import signal
import time

import scratch
from daemon import DaemonTest, table, write
from histories import (CONTROLS, Watch, Writer, churn, make_base, read_traces, reduce, replay, show,
                       stop)
from runner import SYSCTL, read_limit

HISTORIES = 12
OPERATIONS = 5000
NAMES = ("abc/pq", "ab/pqr", "abcdefg/pqrst", "abcd/pq", "abc/pqrst")
WINDOW_SECONDS = 5.0
REDUCE_SECONDS = 15.0


def number(variable):
    return int(os.environ.get(variable, "0"))


class HistoriesTest(DaemonTest):
    seconds = number("HOSTWATCH_SOAK_MINUTES") * 60 / len(scratch.KINDS)
    limit = 86400
    histories = HISTORIES
    part = 0.5  # of the time of a soak

    def figures(self):
        with self.daemon.connect() as client:
            filesystems = client.status()["filesystems"]
        return {word: sum(one[word] for one in filesystems)
                for word in ("merged", "lookups", "corrected")}

    def seeds(self):
        if os.environ.get("HOSTWATCH_SEED"):
            return [number("HOSTWATCH_SEED")]
        count = number("HOSTWATCH_HISTORIES") or (0 if self.seconds else self.histories)
        end = time.monotonic() + self.seconds * self.part

        def some():
            done = 0
            while done < count or not count and time.monotonic() < end:
                done += 1
                yield random.randrange(1 << 32)
        return some()

    def random(self):
        churn()
        wrong, done, losses, operations = [], 0, 0, 0
        total = dict(merged=0, lookups=0, corrected=0)
        # While a session is there its filesystem and its figures stay.
        self.session()
        before = self.figures()
        began = time.monotonic()
        for seed in self.seeds():
            failure, lost, changes = self.history(seed)
            self.daemon.drain_notifications()
            done += 1
            losses += lost
            operations += changes
            if failure:
                wrong.append(seed)
                print(f"FAILING history, HOSTWATCH_SEED={seed} on {self.kind}:\n{failure}",
                      flush=True)
            if self.daemon.process.poll() is not None:
                self.fail(f"the daemon is gone:\n{self.daemon.log()[-4000:]}")
        after = self.figures()
        total = {word: after[word] - before[word] for word in total}
        print(f"{self.kind}: {done} histories, {operations} operations, "
              f"{total['merged']} records merged, {total['lookups']} looked up, "
              f"{total['corrected']} corrected, {losses} losses, {len(wrong)} wrong, "
              f"{time.monotonic() - began:.0f} s", flush=True)
        self.assertEqual(wrong, [], "seeds of the histories that ended in a wrong model")
        if done > 1:
            self.assertGreater(total["corrected"], 0, "nothing was ambiguous")

    def history(self, seed):
        dice = random.Random(seed)
        base = os.path.join(self.base, str(seed))
        make_base(base)
        names = dice.choice(NAMES)
        count = dice.randint(1, 4)
        rounds = dice.randint(3, 6)
        reading = dice.choice(("follows", "follows", "gathers", "sleeps"))
        traces = [os.path.join(self.daemon.directory, f"trace{writer}")
                  for writer in range(count)]
        # A client that sleeps loses records, and looks again at what it holds.
        watch = Watch(self.daemon, base, queue_limit=65536 if reading == "sleeps" else 0)
        writers = [Writer(base, seed + writer, names, 0 if writer else self.daemon.pid,
                          traces[writer]) for writer in range(count)]
        failure = ""
        share = OPERATIONS // (rounds * count) + 1
        operations = 0
        try:
            for turn in range(rounds):
                for writer in writers:
                    writer.begin("run", str(share))
                watch.read(writers, reading == "follows", reading == "sleeps")
                operations += share * count
                failure = watch.check()
                if failure:
                    failure = (f"round {turn} of {rounds}, {count} writers, names {names}, "
                               f"the client {reading}, {watch.losses} losses\n"
                               f"{failure}")
                    break
        except AssertionError as error:
            failure = f"in round {turn}: {error}"
        finally:
            self.daemon.signal(signal.SIGCONT)
            for writer in writers:
                writer.close()
            losses = watch.losses
            watch.close()
        shutil.rmtree(base, ignore_errors=True)
        if failure:
            failure += self.smaller(base, read_traces(traces), watch)
        return failure, losses, operations

    def windows(self):
        """Short histories by writers that take turns, each stretch within one stop of the
        daemon: what the kernel merges there depends on the seed alone."""
        churn()
        self.session()
        before = self.figures()
        end = time.monotonic() + (self.seconds / 4 or WINDOW_SECONDS)
        wrong, done = [], 0
        seeds = iter(self.seeds() if os.environ.get("HOSTWATCH_SEED")
                     else iter(lambda: random.randrange(1 << 32), None))
        for seed in seeds:
            if time.monotonic() > end or len(wrong) == 3:
                break
            failure = self.window(seed)
            self.daemon.drain_notifications()
            done += 1
            if failure:
                wrong.append(seed)
                print(f"FAILING windows, HOSTWATCH_SEED={seed} on {self.kind}:\n{failure}",
                      flush=True)
        after = self.figures()
        print(f"{self.kind}: {done} short histories, "
              f"{after['corrected'] - before['corrected']} corrected, {len(wrong)} wrong",
              flush=True)
        self.assertEqual(wrong, [], "seeds of the histories that ended in a wrong model")

    def window(self, seed):
        dice = random.Random(seed)
        base = os.path.join(self.base, str(seed))
        make_base(base)
        names = dice.choice(("a/pq", "a/pqr", "ab/pq", "abc/pq", "ab/pqrs"))
        traces = [os.path.join(self.daemon.directory, f"trace{writer}")
                  for writer in range(dice.randint(1, 3))]
        watch = Watch(self.daemon, base)
        writers = [Writer(base, seed + writer, names, 0, path)
                   for writer, path in enumerate(traces)]
        marks = []

        def mark(word):
            marks.append((time.monotonic_ns(), 0, word, "-", "-"))

        failure = ""
        try:
            for _ in range(dice.randint(2, 5)):
                mark("stop")
                stop(self.daemon)
                for _ in range(dice.randint(2, 8)):
                    dice.choice(writers).command("run", str(dice.randint(1, 12)))
                self.daemon.signal(signal.SIGCONT)
                mark("continue")
                failure = watch.check()
                mark("check")
                if failure:
                    break
        finally:
            self.daemon.signal(signal.SIGCONT)
            for writer in writers:
                writer.close()
            watch.close()
        shutil.rmtree(base, ignore_errors=True)
        if failure:
            print(f"seed {seed} on {self.kind} is made smaller", flush=True)
            failure += self.smaller(base, read_traces(traces, marks), watch)
        return failure

    def smaller(self, base, timed, watch):
        """The failing history, replayed step by step, and made as small as it gets."""
        operations = [line[1:] for line in timed]
        end = time.monotonic() + REDUCE_SECONDS
        turn = 0

        def fails(shorter):
            nonlocal turn
            if time.monotonic() > end:
                return False
            for _ in range(1 if len(shorter) > 100 else 3):
                turn += 1
                if replay(self.daemon, f"{base}.{turn}", shorter):
                    return True
            return False

        bare = [one for one in operations if one[1] not in CONTROLS]
        whole = [(0, "stop", "-", "-"), *bare, (0, "continue", "-", "-")]
        for title, case in (("as it was", operations), ("in one window", whole)):
            if fails(case):
                case = reduce(fails, case)
                return f"\nsmaller ({title}):\n{show(case)}\n{replay(self.daemon, base + '.last', case)}"
        kept = f"/var/tmp/hostwatch-history-{os.path.basename(base)}"
        watch.dump(kept)
        with open(f"{kept}.operations", "w", encoding="utf-8") as file:
            file.writelines(" ".join(map(str, line)) + "\n" for line in timed)
        return f"\nreplayed step by step it does not fail; all of it: {kept}.*"


@scratch.on_each_filesystem
class Histories(HistoriesTest):
    def test_random(self):
        self.random()

    def test_windows(self):
        self.windows()


@scratch.on_each_filesystem
class Overflowing(HistoriesTest):
    """The kernel's queue is so small that it overflows again and again."""

    exclusive = True  # of the sysctl
    histories = 3
    part = 0.25
    config = table(daemon={"queue_events": 400})

    @classmethod
    def setUpClass(cls):
        cls.former = read_limit()
        super().setUpClass()

    def setUp(self):
        write(SYSCTL, b"400")
        self.addCleanup(write, SYSCTL, self.former.encode())
        super().setUp()

    def test_random(self):
        self.random()


# Histories that went wrong once, as short as they get: (writer, operation, paths).
CASES = {
    # Below a directory that was outside a change was not told; the directory it was in
    # had left that before it could be read.
    "changed outside, moved on at once": """
        0 mkdir share/t
        0 mkdir share/s
        0 mkdir share/s/q
        0 check
        0 rename share/s outside/s
        0 mkdir share/r
        0 rename share/t outside/s/q/t
        0 rename outside/s share/s
        0 rename share/s/q share/r/q
        0 check
        0 create share/r/q/t/f
    """,
    "never seen, moved on at once": """
        0 mkdir outside/s
        0 mkdir outside/s/q
        0 create outside/s/q/f
        0 rename outside/s share/s
        0 create share/s/q/g
        0 rename share/s/q share/q
        0 mkdir share/q/d
        0 check
        0 create share/q/d/f
    """,
    "there and back and there": """
        0 create share/a
        0 mkdir share/p
        0 check
        0 stop
        0 rename share/a share/b
        0 rename share/b share/a
        0 rename share/a share/b
        0 rename share/p share/q
        0 rename share/q share/p
        0 create share/p/a
        0 rename share/p share/q
        0 continue
    """,
    "unlinked, and linked again": """
        0 create share/a
        0 stop
        0 link share/a share/b
        0 unlink share/b
        0 link share/a share/b
        0 link share/a share/c
        0 unlink share/c
        1 link share/a share/d
        0 unlink share/d
        1 link share/a share/d
        0 continue
    """,
    "exchanged by two": """
        0 mkdir share/p
        0 mkdir share/q
        0 create share/p/a
        0 check
        0 stop
        0 exchange share/p share/q
        1 rename share/p outside/p
        0 rename outside/p share/p
        1 exchange share/p share/q
        0 exchange share/p share/q
        0 rename share/q share/p/q
        1 exchange share/p/q/a share/p
        0 continue
    """,
    # The second move out is merged into the first, so the last that is told of the
    # directory is its move in; then the one that it went to comes in.
    "moved out, in and out, and in with its parent": """
        1 mkdir outside/q
        1 mkdir share/p
        1 mkdir share/p/p
        0 check
        0 stop
        0 rename share/p/p outside/q/q
        0 rename outside/q/q share/p/p
        0 rename share/p/p outside/q/q
        0 mkdir share/p/p
        0 continue
        0 check
        1 exchange share/p outside/q
        0 check
        0 fill share/p/q/b
        0 check""",
}


@scratch.on_each_filesystem
class Cases(DaemonTest):
    def test_cases(self):
        for name, text in CASES.items():
            with self.subTest(name):
                lines = [line.split() for line in text.strip().splitlines()]
                wrong = replay(self.daemon, os.path.join(self.base, name.replace(" ", "-")),
                               [(int(writer), *words) for writer, *words in lines])
                if wrong:
                    self.fail(wrong)
