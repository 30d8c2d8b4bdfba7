# SPDX-License-Identifier: Apache-2.0
"""The parts of a measurement: each prints what it saw, puts it into the report and
returns the figures that have a goal."""

import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time

from machine import (BINARY, Daemon, client, cpu, filesystem, mounts, processes, program, rss, run,
                     start, stop, storm, wait_until_idle)


def median(values):
    return statistics.median(values)


def spread(values):
    values = sorted(values)
    return f"{median(values):.3g} ({values[0]:.3g} to {values[-1]:.3g})"


class Watcher:
    """A program that watches a filesystem, and what its storms cost."""

    def __init__(self, name, path, process, own=(), delivering=None):
        self.name, self.path, self.process = name, path, process
        self.pids = [process.pid] + list(own) if process else []
        self.delivering = delivering
        self.cpu, self.writer, self.seconds, self.changes = [], [], [], 0

    def measure(self, mode, count, rate=0, nodes=0):
        pids = self.pids + ([self.delivering.pid] if self.delivering else [])
        wait_until_idle(pids)
        before = cpu(self.process.pid) if self.process else 0
        done = storm(self.path, mode, count, rate, nodes=nodes)
        wait_until_idle(pids)
        spent = cpu(self.process.pid) - before if self.process else 0
        self.cpu.append(spent / done["changes"])
        self.writer.append(done["cpu_ns"] / done["changes"])
        self.seconds.append(done["wall_ns"] / 1e9)
        self.changes += done["changes"]

    def forget(self):
        self.cpu, self.writer, self.seconds, self.changes = [], [], [], 0


def reference(kind):
    path = filesystem(kind)
    process = start([program("reference"), kind, path])
    process.stdout.readline()
    return Watcher(kind.upper(), path, process)


def daemon_watcher(name, nodes=0, sessions=1):
    path = filesystem(name, nodes)
    daemon = Daemon(BINARY, name)
    before = rss(daemon.pid)
    receiver = client(daemon, path, nodes, sessions)
    watcher = Watcher(name, path, daemon.process, delivering=receiver)
    watcher.daemon, watcher.receiver = daemon, receiver
    watcher.rss = (before, rss(daemon.pid))
    return watcher


def ratios(watchers, base, field="cpu"):
    """Each round's ratio to the base of the same round; the median of them."""
    return {w.name: median([a / b for a, b in zip(getattr(w, field), getattr(base, field))])
            for w in watchers if getattr(w, field)}


def rounds(watchers, options, mode, count, **more):
    count = count // 10 if options.quick else count
    for watcher in watchers:  # warms up names, caches and queues
        watcher.measure(mode, max(640, count // 20), **more)
        watcher.forget()
    for _ in range(options.rounds):
        random.shuffle(watchers)
        for watcher in watchers:
            watcher.measure(mode, count, **more)


def show(watchers, base):
    print(f"{'':16} {'CPU ns/change':>28} {'/ ' + base.name:>6} {'writer ns/change':>28}"
          f" {'/ ' + base.name:>6}")
    mine, writers = ratios(watchers, base), ratios(watchers, base, "writer")
    for w in sorted(watchers, key=lambda w: median(w.cpu)):
        print(f"{w.name:16} {spread(w.cpu):>28} {mine.get(w.name, 0):6.2f}"
              f" {spread(w.writer):>28} {writers[w.name]:6.3f}")


def figures(watchers):
    return {w.name: {"cpu_ns_per_change": w.cpu, "writer_ns_per_change": w.writer,
                     "seconds": w.seconds, "changes": w.changes} for w in watchers}


def end(watchers, report, key):
    """What each delivered and lost over all its storms."""
    for w in watchers:
        if w.delivering:
            told = stop(w.delivering)
            print(f"{w.name}: {told['records']} records delivered, {told['lost']} gaps")
            report[key][w.name]["delivered"] = told
            w.daemon.stop()
        elif w.process and w.name in ("R1", "R2"):
            w.process.send_signal(signal.SIGTERM)
            storm(w.path, "append", 16)  # a blocking read ends with an event
            told = json.loads(w.process.communicate(timeout=20)[0].splitlines()[-1])
            print(f"{w.name}: {told['records']} records read, {told['overflows']} overflows, "
                  f"{told['records'] / told['reads']:.0f} a read")
            report[key][w.name]["delivered"] = told


def storm_part(options, report):
    """CPU of a storm of create, write, rename, unlink, each watcher in turn."""
    hostwatchd = daemon_watcher("hostwatchd")
    many = daemon_watcher("1000 sessions", sessions=1000)
    r1, r2 = reference("r1"), reference("r2")
    nobody = Watcher("nobody", filesystem("nobody"), None)
    watchers = [nobody, r1, r2, hostwatchd, many]
    results = {}
    for mode, count in (("churn", 60_000), ("replace", 60_000), ("append", 200_000)):
        print(f"storm: {mode}")
        for watcher in watchers:
            watcher.forget()
        rounds(watchers, options, mode, count)
        show(watchers, r2)
        report["storm_" + mode] = figures(watchers)
        own = ratios([hostwatchd], r2)["hostwatchd"]
        if mode == "churn":
            results = {"storm_cpu": own,
                       "writer_cpu": ratios([hostwatchd], r2, "writer")["hostwatchd"],
                       "sessions_cpu": ratios([many], hostwatchd)["1000 sessions"]}
        else:
            results["storm_cpu_" + mode] = own
    end(watchers, report, "storm_append")
    return results


def watchman():
    """watchman with a subscription for everything below a directory."""
    path = filesystem("watchman")
    place = tempfile.mkdtemp(prefix="watchman-", dir=os.path.dirname(path))
    sock, output = os.path.join(place, "sock"), os.path.join(place, "out")
    process = start(["watchman", "--foreground", "--no-save-state", "--sockname=" + sock,
                     "--logfile=" + os.path.join(place, "log"),
                     "--pidfile=" + os.path.join(place, "pid")], stderr=subprocess.DEVNULL)
    while not os.path.exists(sock):
        time.sleep(0.05)
    with open(output, "wb") as file:
        client = subprocess.Popen(["watchman", "--sockname=" + sock, "-p", "-j"],
                                  stdin=subprocess.PIPE, stdout=file, stderr=subprocess.DEVNULL)
    processes.append(client)
    for request in (["watch", path], ["subscribe", path, "s", {"fields": ["name", "exists"]}]):
        client.stdin.write(json.dumps(request).encode() + b"\n")
        client.stdin.flush()
        time.sleep(1)
    watcher = Watcher("watchman", path, process)
    watcher.output, watcher.client = output, client
    return watcher


def peers(options, report):
    """The same storm under other watchers, if they are installed."""
    commands = {
        "fsnotifywait": lambda path: ["fsnotifywait", "-m", "-q", "-S", path],
        "inotifywait -r": lambda path: ["inotifywait", "-m", "-q", "-r", path],
        "fatrace": lambda path: ["fatrace", "-c", "-f", "CWD+<>"],
    }
    r2, hostwatchd = reference("r2"), daemon_watcher("hostwatchd-p")
    watchers = [r2, hostwatchd]
    for name, command in commands.items():
        if not shutil.which(command("")[0]):
            print(f"{name}: not installed (apt-get install inotify-tools fatrace)")
            continue
        path = filesystem(name.replace(" ", ""))
        output = os.path.join(os.path.dirname(path), "out-" + name.split()[0])
        with open(output, "wb") as file:
            process = subprocess.Popen(command(path), cwd=path, stderr=subprocess.DEVNULL,
                                       stdout=file)
        processes.append(process)
        time.sleep(0.5)
        watcher = Watcher(name, path, process)
        watcher.output = output
        watchers.append(watcher)
    if shutil.which("watchman"):
        watchers.append(watchman())
    else:
        print("watchman: not installed (apt-get install watchman)")
    rounds(watchers, options, "churn", 30_000)
    show(watchers, r2)
    report["peers"] = figures(watchers)
    for w in watchers:
        if hasattr(w, "output"):
            for process in (w.process, getattr(w, "client", w.process)):
                process.kill()
                process.wait()
            with open(w.output, "rb") as file:
                lines = sum(1 for _ in file)
            what = "lines" if w.name != "watchman" else "lines of JSON, four a file and more"
            print(f"{w.name}: {lines} {what} for {w.changes} changes in the measured rounds")
            report["peers"][w.name]["lines"] = lines
    end([w for w in watchers if w in (r2, hostwatchd)], report, "peers")
    return {}


def rates(options, report):
    """CPU per change against the rate of changes."""
    hostwatchd, r1, r2 = daemon_watcher("hostwatchd-r"), reference("r1"), reference("r2")
    report["rates"] = {}
    for rate in (250, 1000, 4000, 16000, 0):
        watchers = [r1, r2, hostwatchd]
        for watcher in watchers:
            watcher.forget()
        seconds = 0.5
        count = int(rate * seconds) // 16 * 16 or 30_000
        for _ in range(3):
            for watcher in watchers:
                watcher.measure("churn", max(count, 64), rate)
        print(f"{rate * 4 or 'all there is':>14} changes/s: " +
              ", ".join(f"{w.name} {median(w.cpu):.0f} ns" for w in watchers))
        report["rates"][str(rate * 4)] = {w.name: median(w.cpu) for w in watchers}
    report["rates_end"] = {w.name: {} for w in (r1, r2, hostwatchd)}
    end([r1, r2, hostwatchd], report, "rates_end")
    return {}


def sessions(options, report):
    """CPU per change against the number of sessions that registered nothing."""
    watchers = [daemon_watcher(f"sessions{n}", sessions=n) for n in (1, 10, 100, 1000)]
    rounds(watchers, options, "churn", 30_000)
    base = next(w for w in watchers if w.name == "sessions1")
    show(watchers, base)
    report["sessions"] = figures(watchers)
    end(watchers, report, "sessions")
    return {}


def latency(options, report):
    """A lone change on an idle host, from the write to the event, against R3.

    One after the other, as the scheduler places them; then side by side and all on one
    processor, which the other's work keeps from getting cold."""
    path, other = filesystem("latency"), filesystem("latency-r3")
    for fs in (path, other):
        with open(os.path.join(fs, "d0/f"), "w", encoding="ascii"):
            pass
    count = str(100 if options.quick else 400)
    results = {}
    report["latency"] = {}
    everywhere = os.sched_getaffinity(0)
    for key, where in (("latency", everywhere), ("latency_one", {min(everywhere)})):
        os.sched_setaffinity(0, where)
        try:
            daemon = Daemon(BINARY, key)
            r3 = [program("reference"), "r3", other, os.path.join(other, "d0/f"), count, "4000"]
            own = [program("client"), daemon.socket, path, "latency", "d0/f", count, "4000"]
            mine, theirs = [], []
            for _ in range(options.rounds):
                if key == "latency":
                    theirs.append(json.loads(run(*r3)))
                    mine.append(json.loads(run(*own)))
                else:
                    beside = start(r3)
                    mine.append(json.loads(run(*own)))
                    theirs.append(json.loads(beside.communicate()[0]))
            daemon.stop()
        finally:
            os.sched_setaffinity(0, everywhere)
        report["latency"][key] = {"hostwatchd": mine, "R3": theirs}
        for part in ("p50", "p99"):
            a, b = [[one[f"{part}_ns"] / 1000 for one in all_] for all_ in (mine, theirs)]
            results[f"{key}_{part}"] = median([x / y for x, y in zip(a, b)])
            print(f"{key} {part}: hostwatchd {spread(a)} µs, R3 {spread(b)} µs, "
                  f"ratio {results[f'{key}_{part}']:.2f}")
    return results


def nodes(options, report):
    """1,000,000 registered nodes against 1,000, and the memory they take."""
    total = 100_000 if options.quick else 1_000_000
    few, many = daemon_watcher("1k", 1000), daemon_watcher("1M", total)
    results = {}
    watchers = [few, many]
    for mode, count in (("overwrite", 100_000), ("churn", 40_000)):
        each = {few.name: [], many.name: []}
        for watcher in watchers:
            watcher.forget()
        count = count // 10 if options.quick else count
        for _ in range(options.rounds):
            for watcher, population in ((few, 1000), (many, total)):
                # A few files' records merge, so the CPU is an event's, not a change's.
                before = watcher.daemon.status()["totals"]["kernel_events"], cpu(watcher.process.pid)
                watcher.measure(mode, count, nodes=population)
                spent = cpu(watcher.process.pid) - before[1]
                events = watcher.daemon.status()["totals"]["kernel_events"] - before[0]
                each[watcher.name].append(spent / events)
        print(f"storm: {mode}, CPU ns an event: " +
              ", ".join(f"{name} {spread(values)}" for name, values in each.items()))
        report["nodes_" + mode] = figures(watchers)
        report["nodes_" + mode]["cpu_ns_per_event"] = each
        results["nodes_cpu_" + mode] = median(
            [b / a for a, b in zip(each[few.name], each[many.name])])
    results["nodes_cpu"] = results["nodes_cpu_overwrite"]
    results["nodes_bytes"] = (many.rss[1] - many.rss[0]) / total
    took = many.receiver.ready["took_ns"]
    print(f"RSS {many.rss[0] >> 20} MiB, with the nodes {many.rss[1] >> 20} MiB: "
          f"{results['nodes_bytes']:.1f} bytes a node; registered in {took / 1e9:.2f} s")
    end(watchers, report, "nodes_churn")
    return results


def register(options, report):
    """The daemon's CPU for registering, against the bare system calls (R4)."""
    total = 50_000 if options.quick else 200_000
    path = filesystem("register", total)
    mine, theirs, seconds = [], [], []
    for number in range(options.rounds):
        daemon = Daemon(BINARY, f"register{number}")
        before = cpu(daemon.pid)
        receiver = client(daemon, path, total)
        mine.append((cpu(daemon.pid) - before) / total)
        seconds.append(receiver.ready["took_ns"] / 1e9)
        stop(receiver)
        daemon.stop()
        bare = json.loads(run(program("reference"), "r4", path, str(total)))
        theirs.append(bare["cpu_ns"] / bare["nodes"])
    print(f"hostwatchd {spread(mine)} ns a node, R4 {spread(theirs)}; "
          f"{total / median(seconds):.0f} nodes/s end to end")
    report["register"] = {"hostwatchd": mine, "R4": theirs, "seconds": seconds}
    return {"register_cpu": median([a / b for a, b in zip(mine, theirs)])}


def resync(options, report):
    """1,000,000 nodes looked at again after a loss, with live events meanwhile."""
    total = 100_000 if options.quick else 1_000_000
    path = filesystem("resync", total)
    daemon = Daemon(BINARY, "resync")
    receiver = client(daemon, path, total, queue=1 << 20)
    with open(os.path.join(path, "elsewhere/f"), "w", encoding="ascii"):
        pass
    wait_until_idle([daemon.pid])
    receiver.send_signal(signal.SIGSTOP)
    storm(path, "churn", 20_000)
    wait_until_idle([daemon.pid])
    before = cpu(daemon.pid)
    live = start([program("client"), daemon.socket, path, "latency", "elsewhere/f",
                  "300" if options.quick else "1500", "2000"])
    receiver.send_signal(signal.SIGCONT)
    lost = resynced = None
    while resynced is None:
        line = json.loads(receiver.stdout.readline())
        lost = line if "lost" in line else lost
        resynced = line if "resynced" in line else None
    spent = cpu(daemon.pid) - before
    seconds = (resynced["at_ns"] - lost["at_ns"]) / 1e9
    meanwhile = json.loads(live.communicate(timeout=60)[0])
    print(f"{resynced['resynced']} nodes checked, {resynced['reported']} reported, in "
          f"{seconds:.2f} s, {spent / 1e9:.2f} s of CPU; live p99 "
          f"{meanwhile['p99_ns'] / 1e6:.2f} ms, worst {meanwhile['max_ns'] / 1e6:.2f} ms")
    report["resync"] = {"seconds": seconds, "cpu_ns": spent, "live": meanwhile,
                        "checked": resynced["resynced"]}
    stop(receiver)
    daemon.stop()
    return {"resync_us": spent / 1000 / resynced["resynced"],
            "resync_live_p99_ms": meanwhile["p99_ns"] / 1e6}


def startup(options, report):
    """Start to READY=1 with a share of many files, and memory when idle."""
    path = filesystem("start", 10_000 if options.quick else 200_000)
    times, sizes = [], []
    for number in range(options.rounds):
        daemon = Daemon(BINARY, f"start{number}", ["--share", f"s={path}"])
        times.append(daemon.start_seconds * 1000)
        receiver = client(daemon, path)
        wait_until_idle([daemon.pid])
        sizes.append(rss(daemon.pid) / (1 << 20))
        stop(receiver)
        daemon.stop()
    print(f"ready after {spread(times)} ms; RSS {spread(sizes)} MiB")
    report["startup"] = {"ms": times, "rss_mib": sizes}
    return {"start_ms": median(times), "idle_mib": median(sizes)}


def full_speed(options, report):
    """A storm at full speed for a minute with the default configuration."""
    watcher = daemon_watcher("minute")
    seconds = 5 if options.quick else 60
    with open(os.path.join(watcher.path, "elsewhere/f"), "w", encoding="ascii"):
        pass
    writer = start([program("storm"), watcher.path, "churn", "0", "0", str(seconds)])
    # How long a change waits meanwhile. STATUS reads the queue first, so the depth is
    # told by the largest read.
    lone = json.loads(run(program("client"), watcher.daemon.socket, watcher.path, "latency",
                          "elsewhere/f", str(seconds * 50), "10000"))
    done = json.loads(writer.communicate(timeout=60)[0])
    state = watcher.daemon.status()["filesystems"][0]
    began = time.monotonic()
    told = stop(watcher.delivering)
    lag = time.monotonic() - began
    watcher.daemon.stop()
    print(f"{done['changes']} changes in {seconds} s, {told['create']} of {done['rounds']} "
          f"creations and {told['delete']} deletions told, {told['lost']} gaps, "
          f"{state['overflows']} overflows; the kernel's queue held at most "
          f"{state['largest_batch']} records at a read; a change was told after "
          f"{lone['p50_ns'] / 1e6:.2f} ms (p50), {lone['p99_ns'] / 1e6:.2f} ms (p99), "
          f"{lone['max_ns'] / 1e6:.2f} ms (worst)")
    report["full_speed"] = {"storm": done, "told": told, "lone": lone, "filesystem": state,
                            "lag_s": lag}
    return {"full_speed_gaps": told["lost"],
            "full_speed_missing": done["rounds"] - told["create"]}


class Mount:
    """A directory served by hostwatchfs."""

    def __init__(self, daemon, source, *arguments):
        self.path = tempfile.mkdtemp(prefix="mount-", dir=os.path.dirname(source))
        self.server = start([os.path.join(os.path.dirname(BINARY), "hostwatchfs"), "-f", "--socket",
                             daemon.socket, *arguments, source, self.path])
        mounts.append(self.path)
        while not os.path.ismount(self.path):
            time.sleep(0.02)

    def end(self):
        run("umount", self.path)
        mounts.remove(self.path)
        self.server.wait(20)


def worktree(options, report):
    """git status and find in a work tree on a mount, warm, against the work tree itself and
    against a mount whose caches do not last."""
    path = filesystem("worktree")
    tree = os.path.join(path, "tree")
    folders, files = (20, 10) if options.quick else (200, 50)
    for folder in range(folders):
        os.makedirs(os.path.join(tree, f"f{folder % 10}", f"g{folder}"))
        for file in range(files):
            with open(os.path.join(tree, f"f{folder % 10}", f"g{folder}", f"{file}.c"), "w",
                      encoding="ascii") as one:
                one.write(f"int f{folder}_{file};\n")
    git = ["git", "-c", "user.name=b", "-c", "user.email=b@localhost", "-c", "safe.directory=*",
           "-C"]
    run(*git, tree, "init", "-q")
    run(*git, tree, "add", ".")
    run(*git, tree, "commit", "-q", "-m", "all")
    daemon = Daemon(BINARY, "worktree")
    kept, lost = Mount(daemon, tree), Mount(daemon, tree, "-o", "events=none,timeout=0")
    places = {"native": tree, "mount": kept.path, "timeout=0": lost.path}
    commands = {"git status": lambda place: [*git, place, "status", "--porcelain"],
                "find": lambda place: ["find", place, "-size", "+1000k"]}
    report["worktree"] = {}
    for what, command in commands.items():
        seconds = {name: [] for name in places}
        for turn in range(7):
            for name, place in places.items():
                began = time.monotonic()
                output = run(*command(place))
                if turn >= 2:  # the caches are filled
                    seconds[name].append(time.monotonic() - began)
                if output:
                    raise RuntimeError(f"{what}: {output}")
        report["worktree"][what] = seconds
        native, own, none = (median(seconds[name]) for name in places)
        print(f"{what}: native {native * 1000:.1f} ms, on the mount {own * 1000:.1f} ms "
              f"({own / native:.2f} x), with timeout=0 {none * 1000:.1f} ms ({none / own:.1f} x that)")
    kept.end()
    lost.end()
    daemon.stop()
    return {}


def replay(options, report):
    """From a change on the host to its inotify event on a mount, against the change's own."""
    path, other = filesystem("replay"), filesystem("replay-native")
    daemon = Daemon(BINARY, "replay")
    mount = Mount(daemon, path)
    count = "50" if options.quick else "200"
    report["replay"] = {}

    def latencies(changed, watched):
        lines = run(program("notice"), changed, watched, count, "4000").splitlines()
        return {kind: json.loads(rest) for kind, rest in (line.split(" ", 1) for line in lines)}

    runs = [(latencies(os.path.join(other, "d0"), os.path.join(other, "d0")),
             latencies(os.path.join(path, "d0"), os.path.join(mount.path, "d0")))
            for _ in range(3)]
    for kind in runs[0][0]:
        report["replay"][kind] = [{"native": a[kind], "mount": b[kind]} for a, b in runs]
        for part in ("p50", "p99"):
            a, b = [[one[side][kind][f"{part}_ns"] / 1000 for one in runs] for side in (0, 1)]
            print(f"{kind:7} {part}: native {spread(a)} µs, mount {spread(b)} µs, "
                  f"ratio {median([y / x for x, y in zip(a, b)]):.1f}")
    mount.end()
    daemon.stop()
    return {}


PARTS = [storm_part, sessions, rates, latency, nodes, register, resync, startup, full_speed,
         peers, replay, worktree]
