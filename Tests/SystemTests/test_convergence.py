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
from daemon import DaemonTest
from histories import Watch, Writer, churn, make_base, read_traces, reduce, replay, show, stop

HISTORIES = 12
OPERATIONS = 5000
NAMES = ("abc/pq", "ab/pqr", "abcdefg/pqrst", "abcd/pq", "abc/pqrst")
WINDOW_SECONDS = 5.0
REDUCE_SECONDS = 15.0


def number(variable):
    return int(os.environ.get(variable, "0"))


@scratch.on_each_filesystem
class Histories(DaemonTest):
    seconds = number("HOSTWATCH_SOAK_MINUTES") * 60 / len(scratch.KINDS)
    limit = 86400

    def figures(self):
        with self.daemon.connect() as client:
            filesystems = client.status()["filesystems"]
        return {word: sum(one[word] for one in filesystems)
                for word in ("merged", "lookups", "corrected")}

    def seeds(self):
        if os.environ.get("HOSTWATCH_SEED"):
            return [number("HOSTWATCH_SEED")]
        count = number("HOSTWATCH_HISTORIES") or (0 if self.seconds else HISTORIES)
        end = time.monotonic() + self.seconds * 3 / 4

        def some():
            done = 0
            while done < count or not count and time.monotonic() < end:
                done += 1
                yield random.randrange(1 << 32)
        return some()

    def test_random(self):
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
        follows = dice.choice((True, True, False))
        traces = [os.path.join(self.daemon.directory, f"trace{writer}")
                  for writer in range(count)]
        watch = Watch(self.daemon, base)
        writers = [Writer(base, seed + writer, names, 0 if writer else self.daemon.pid,
                          traces[writer]) for writer in range(count)]
        failure = ""
        share = OPERATIONS // (rounds * count) + 1
        operations = 0
        try:
            for turn in range(rounds):
                for writer in writers:
                    writer.begin("run", str(share))
                watch.read(writers, follows)
                operations += share * count
                failure = watch.check()
                if failure:
                    failure = (f"round {turn} of {rounds}, {count} writers, names {names}, "
                               f"{'applied meanwhile' if follows else 'applied afterwards'}\n"
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

    def test_windows(self):
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
            failure = self.windows(seed)
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

    def windows(self, seed):
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

        bare = [one for one in operations if one[1] not in
                ("stop", "continue", "pause", "check")]
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
