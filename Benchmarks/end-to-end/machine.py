# SPDX-License-Identifier: Apache-2.0
"""Scratch filesystems, processes and their CPU time, for the measurements."""

import atexit
import contextlib
import fcntl
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
SYSCTL = "/proc/sys/fs/fanotify/max_queued_events"
# The tests' lock: whoever changes the sysctl has the machine alone.
LOCK = "/run/lock/hostwatchd-tests.sysctl"

scratch = tempfile.mkdtemp(prefix="hostwatch-bench-")
mounts = []
processes = []


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def clean_up():
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()
    while mounts:
        subprocess.run(["umount", "-l", mounts.pop()], check=False)
    shutil.rmtree(scratch, ignore_errors=True)


atexit.register(clean_up)
signal.signal(signal.SIGTERM, lambda *_: exit(1))


def sysctl():
    with open(SYSCTL, encoding="ascii") as file:
        return file.read()


@contextlib.contextmanager
def beside_tests(patience=30):
    """Holds the lock, and leaves the sysctl, which the daemon raises, as it was. Who
    runs beside this for long does not mind: the daemons raise it themselves."""
    limit = sysctl()
    with open(LOCK, "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            yield
        finally:
            clean_up()
            end = time.monotonic() + patience
            while sysctl() != limit:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() < end:
                        time.sleep(0.2)
                        continue
                with open(SYSCTL, "w", encoding="ascii") as file:
                    file.write(limit)
                break


def compile_programs():
    library = os.path.join(REPOSITORY, "Sources/CHostWatch")
    sources = [os.path.join(library, name) for name in os.listdir(library)
               if name.endswith(".c")]
    for name in ("storm", "reference", "client", "notice"):
        run("gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror",
            "-I", os.path.join(library, "include"), os.path.join(HERE, f"{name}.c"),
            *(sources if name == "client" else ()), "-o", program(name), "-lpthread")


def program(name):
    return os.path.join(scratch, name)


def filesystem(name, nodes=0):
    """A tmpfs of its own, with what storm needs in it."""
    path = tempfile.mkdtemp(prefix=f"fs-{name}-", dir=scratch)
    run("mount", "-t", "tmpfs", "-o", "size=8g,nr_inodes=0", "hostwatch-bench", path)
    mounts.append(path)
    run(program("storm"), path, "prepare", str(nodes))
    return path


def start(command, **options):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    processes.append(process)
    return process


def stop(process, number=signal.SIGTERM):
    """Ends it; the last line it printed, as JSON if it is that."""
    process.send_signal(number)
    output = process.communicate(timeout=60)[0].strip()
    last = output.splitlines()[-1] if output else ""
    return json.loads(last) if last.startswith("{") else {}


def cpu(pid):
    """Nanoseconds of CPU that the process has had, all threads."""
    total = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="ascii") as file:
            total += int(file.read().split()[0])
    return total


def wait_until_idle(pids, quiet=0.15):
    """Until none of them has had the CPU for a moment."""
    before = [cpu(pid) for pid in pids]
    while True:
        time.sleep(quiet)
        after = [cpu(pid) for pid in pids]
        # A timer or two may fire.
        if all(new - old < 200_000 for old, new in zip(before, after)):
            return
        before = after


def rss(pid):
    """Resident bytes."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Daemon:
    """hostwatchd on a socket of its own."""

    def __init__(self, binary, name, arguments=()):
        directory = os.path.join(scratch, "daemon-" + name)
        os.mkdir(directory)
        self.socket = os.path.join(directory, "socket")
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(os.path.join(directory, "notify"))
        environment = dict(os.environ, NOTIFY_SOCKET=os.path.join(directory, "notify"))
        with open(os.path.join(directory, "log"), "w", encoding="utf-8") as log:
            began = time.monotonic()
            self.process = start([binary, "--socket", self.socket, "--config", "/dev/null",
                                  "--log-target", "stderr", *arguments],
                                 env=environment, stderr=log)
        self.log = os.path.join(directory, "log")
        notify.settimeout(20)
        while b"READY=1" not in notify.recv(4096):
            pass
        self.start_seconds = time.monotonic() - began
        notify.close()
        self.pid = self.process.pid

    def stop(self):
        self.process.terminate()
        self.process.communicate(timeout=60)

    def status(self):
        ctl = os.path.join(os.path.dirname(BINARY), "hostwatchctl")
        return json.loads(run(ctl, "--socket", self.socket, "status", "--json"))


BINARY = os.environ.get("HOSTWATCHD", os.path.join(REPOSITORY, ".build/release/hostwatchd"))


def client(daemon, path, nodes=0, sessions=1, queue=0):
    """A counting client, ready."""
    process = start([program("client"), daemon.socket, path, "count", str(nodes),
                     str(sessions), str(queue)])
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("the client did not get ready")
    process.ready = json.loads(line)
    return process


def storm(path, mode, count, rate=0, seconds=0, nodes=0):
    return json.loads(run(program("storm"), path, mode, str(count), str(rate),
                          str(seconds), str(nodes)))


def description():
    model = "?"
    with open("/proc/cpuinfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(),
            "architecture": platform.machine(),
            "load": [round(value, 1) for value in os.getloadavg()]}
