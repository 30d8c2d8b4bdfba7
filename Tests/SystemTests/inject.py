# SPDX-License-Identifier: Apache-2.0
"""Calls of a process that runs already fail, or are delayed, for a while."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
import time

import faults


@contextlib.contextmanager
def failing(pid, calls, how, thread=None):
    """Meanwhile these calls of a process, or of one thread of it, fail, or are delayed, as `how`
    says after strace's "inject=CALLS:". What it gives says how many have. One that sleeps when
    this begins fails once it returns; the process may have ended of it before this yields."""
    faults.require()
    with tempfile.NamedTemporaryFile(prefix="hostwatch-trace.", mode="r") as trace:
        tracer = subprocess.Popen(
            ["strace", "-qq", *([] if thread else ["-f"]), "-o", trace.name, "-e",
             f"trace={calls}", "-e", f"inject={calls}:{how}", "-p", str(thread or pid)])

        def is_traced():
            tasks = [thread] if thread else os.listdir(f"/proc/{pid}/task")
            try:
                return all(f"TracerPid:\t{tracer.pid}\n" in
                           pathlib.Path(f"/proc/{pid}/task/{task}/status").read_text()
                           for task in tasks)
            except (FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
                return False

        def count():
            trace.seek(0)
            text = trace.read()
            return text.count("(INJECTED)") + text.count("(DELAYED)")

        try:
            end = time.monotonic() + 10
            while not is_traced() and tracer.poll() != 0:  # 0: what it traced has ended
                if tracer.poll() is not None or time.monotonic() > end:
                    raise AssertionError(f"strace does not trace {pid}")
                time.sleep(0.005)
            yield count
        finally:
            tracer.terminate()  # it lets go of them
            try:
                tracer.wait(10)
            except subprocess.TimeoutExpired:  # of one that is ending just now it does not
                tracer.kill()
                tracer.wait()


def holds(pid):
    """Whether a delay holds a call of the process just now."""
    def stopped():
        calls = {}
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "\nState:\tt" in (task / "status").read_text():
                    calls[task.name] = (task / "syscall").read_text()
        return calls

    before = stopped()
    time.sleep(0.02)  # each call stops for a moment
    return any(call in stopped().items() for call in before.items())
