# SPDX-License-Identifier: Apache-2.0
"""Replay from outside: programs that watch, two mounts, a read-only one, and what
remains when the replayer or the server is killed under load."""

import concurrent.futures
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import unittest
import urllib.request

import daemon
import fusefs
import inject
import runner
import scratch
import test_load
from streams import Inotify, mask_text

TIMEOUT = 10.0


def children(pid, name):
    """The processes with this name that `pid` has started."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8") as file:
                text = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent = int(text.rpartition(")")[2].split()[1])
        if parent == pid and f"({name})" in text:
            found.append(int(entry))
    return found


def mount_id(path):
    with open("/proc/self/mountinfo", encoding="utf-8") as table:
        return next((int(line.split()[0]) for line in table if line.split()[4] == path), None)


class MountedTest(unittest.TestCase):
    attempts = 3  # see runner.py

    def setUp(self):
        if os.geteuid() != 0:
            self.skipTest("needs root")
        base = os.path.join(scratch.shared("ext4").path, os.path.basename(scratch.new_path("replay")))
        self.source = os.path.join(base, "source")
        os.makedirs(self.source)
        self.addCleanup(shutil.rmtree, base, ignore_errors=True)
        self.daemon = daemon.Daemon()
        self.addCleanup(self.daemon.kill)

    def mounted(self, options="allow_other", source=None):
        mount = fusefs.HostwatchFS(source or self.source, self.daemon.socket, options)
        self.addCleanup(mount.kill)
        fusefs.wait_until(lambda: children(mount.process.pid, "replayer"), "the replayer runs")
        return mount

    def replayer(self, mount):
        fusefs.wait_until(lambda: children(mount.process.pid, "replayer"), "the replayer runs")
        return children(mount.process.pid, "replayer")[0]

    def watch(self, path):
        watch = Inotify()
        self.addCleanup(watch.close)
        watch.watch(path, "")
        return watch

    def told(self, watch, wanted):
        """Waits for these events and no others: (mask, name)."""
        found, deadline = [], time.monotonic() + TIMEOUT
        while len(found) < len(wanted) and time.monotonic() < deadline:
            select.select([watch.fd], [], [], 0.1)
            found += [(mask_text(mask), os.fsdecode(name)) for _, mask, _, name in watch.read()]
        self.assertEqual(found, wanted)

    def path(self, *names):
        return os.path.join(self.source, *names)


class ReplayTest(MountedTest):
    def test_what_cannot_be_looked_at_is_not_told_to_be_gone(self):
        for name in "fg":
            daemon.touch(self.path(name))
        mount = self.mounted()
        of_f, of_g = (self.watch(os.path.join(mount.path, name)) for name in "fg")
        here = self.watch(mount.path)
        mount.sync()
        seen = {"f": [], "g": [], "names": []}

        def read():
            for events, watch in zip(seen.values(), (of_f, of_g, here)):
                events += [(mask_text(mask), os.fsdecode(name)) for _, mask, _, name in watch.read()]

        def is_looked_at():
            read()
            return "(10 so far): looking at the host: Too many open files" in mount.log() or any(
                "DELETE" in what for events in seen.values() for what, _ in events)

        mount.leave_descriptors(0)
        # The one has another name, of which its link count is told; the other is looked
        # for under its new name once that is quiet.
        os.link(self.path("f"), os.path.join(os.path.dirname(self.source), "other"))
        os.rename(self.path("g"), self.path("h"))
        fusefs.wait_until(is_looked_at, "the host is looked at")
        mount.relieve()
        mount.sync()

        def is_told():
            read()
            return any(name == "h" and what in ("CREATE", "MOVED_TO") for what, name in seen["names"])

        fusefs.wait_until(is_told, "the new name is told")
        for events in seen.values():
            for what, name in events:
                self.assertFalse("DELETE_SELF" in what or (what, name) == ("DELETE", "h"), seen)
        self.assertEqual(os.stat(os.path.join(mount.path, "f")).st_nlink, 2)
        self.assertEqual(sorted(os.listdir(mount.path)), ["f", "h"])

    def test_two_mounts_of_one_source(self):
        """What is done on one is told on the other as the host's, and on the one once."""
        one, other = self.mounted(), self.mounted()
        here, there = self.watch(one.path), self.watch(other.path)
        at = os.path.join(one.path, "f")

        def both_tell(*wanted):
            self.told(here, list(wanted))
            self.told(there, list(wanted))

        # One after the other: the kernel lets the server close a file some time after
        # its client did, and the host's merges what comes at once.
        os.close(os.open(at, os.O_WRONLY | os.O_CREAT, 0o644))
        both_tell(("CREATE", "f"), ("OPEN", "f"), ("CLOSE_WRITE", "f"))
        os.truncate(at, 3)
        both_tell(("MODIFY", "f"))
        os.rename(at, os.path.join(one.path, "g"))
        os.unlink(os.path.join(one.path, "g"))
        both_tell(("MOVED_FROM", "f"), ("MOVED_TO", "g"), ("DELETE", "g"))
        one.sync()
        other.sync()
        time.sleep(0.1)
        self.told(here, [])
        self.told(there, [])
        self.assertEqual(os.listdir(other.path), [])

    @runner.attempts(1)
    def test_names_that_are_looked_up_all_the_time(self):
        """A client's lookup may come before the event: the kernel has the name then, and
        watchers have still to be told."""
        os.mkdir(os.path.join(self.source, "d"))
        mount = self.mounted()
        here, there = os.path.join(mount.path, "d"), os.path.join(self.source, "d")
        names = [f"n{number}" for number in range(16)]
        inotify = Inotify()
        self.addCleanup(inotify.close)
        inotify.watch(here, "d")
        look = ("import os, sys\nwhile True:\n    for n in range(16):\n"
                "        try: os.lstat(f'{sys.argv[1]}/n{n}')\n        except OSError: pass\n")
        for _ in "ab":
            program = subprocess.Popen([sys.executable, "-I", "-S", "-c", look, here])
            self.addCleanup(program.wait)
            self.addCleanup(program.kill)
        told = set()

        def read():
            for _, mask, _, name in inotify.read():
                if mask & 0x100:
                    told.add(os.fsdecode(name))
                elif mask & 0x200:
                    told.discard(os.fsdecode(name))
            return told

        for number in range(400):
            path = os.path.join(there, names[number * 7 % 16])
            if os.path.exists(path):
                os.unlink(path)
            else:
                daemon.touch(path)
            if number % 16 == 0:
                time.sleep(0.02)  # as others would use the names
            read()
        listed = set(os.listdir(there))
        self.assertTrue(listed)
        fusefs.wait_until(lambda: read() == listed, "watchers know what there is", 20)

    def test_read_only(self):
        mount = self.mounted("allow_other,ro")
        watch = self.watch(mount.path)
        os.mkdir(self.path("sub"))
        os.rmdir(self.path("sub"))
        self.told(watch, [("CREATE|ISDIR", "sub"), ("DELETE|ISDIR", "sub")])
        with self.assertRaises(OSError) as refused:
            os.mkdir(os.path.join(mount.path, "mine"))
        self.assertEqual(refused.exception.errno, 30)  # EROFS
        mount.unmount()

    def test_nothing_holds_the_mount(self):
        mount = self.mounted()
        for number in range(20):
            os.makedirs(self.path(f"d{number}", "sub"))
            open(self.path(f"d{number}", "sub", "f"), "wb").close()
        mount.sync()
        replayer = self.replayer(mount)
        mount.unmount()
        fusefs.wait_until(lambda: not os.path.exists(f"/proc/{replayer}"), "the replayer ends")

    def test_a_client_removes_what_the_replayer_has_used(self):
        """The end of a directory is told at once, though the host had changed it before."""
        mount = self.mounted()
        here = [os.path.join(mount.path, name) for name in ("removed", "overwritten", "other")]
        for name in ("removed", "overwritten", "other"):
            os.mkdir(self.path(name))
        mount.sync()
        watches = [self.watch(path) for path in here[:2]]
        for name in ("removed", "overwritten"):
            os.mkdir(self.path(name, "sub"))
            os.rmdir(self.path(name, "sub"))
        created = [("CREATE|ISDIR", "sub"), ("DELETE|ISDIR", "sub")]
        for watch in watches:
            self.told(watch, created)
        os.rmdir(here[0])
        os.rename(here[2], here[1])
        end = [("DELETE_SELF", ""), ("IGNORED", "")]
        self.told(watches[0], end)
        self.told(watches[1], [("ATTRIB|ISDIR", ""), *end])

    def test_a_link_of_the_host_that_is_on_its_way(self):
        self.link_on_its_way(False)

    def test_the_same_with_a_witness_that_was_killed(self):
        self.link_on_its_way(True)

    def link_on_its_way(self, is_killed):
        """A client removes a name while the host's new one has not been told yet: the
        object's watcher is not told of an end."""
        for name in ("unlinked", "overwritten", "source"):
            with open(self.path(name), "wb"):
                pass
        mount = self.mounted()
        here = [os.path.join(mount.path, name) for name in ("unlinked", "overwritten", "source")]
        for path in here:
            os.stat(path)
        mount.sync()
        watches = [self.watch(path) for path in here[:2]]
        self.daemon.signal(signal.SIGSTOP)
        try:
            for name in ("unlinked", "overwritten"):
                os.link(self.path(name), self.path(name + "2"))
            if is_killed:
                os.kill(children(mount.process.pid, "witness")[0], signal.SIGKILL)
            os.unlink(here[0])
            os.rename(here[2], here[1])
        finally:
            self.daemon.signal(signal.SIGCONT)
        mount.sync()
        for watch in watches:
            masks = {mask_text(mask) for _, mask, _, _ in watch.read()}
            self.assertNotIn("DELETE_SELF", masks)
            self.assertIn("ATTRIB", masks)
        for name in ("unlinked2", "overwritten2"):
            self.assertEqual(os.stat(os.path.join(mount.path, name)).st_nlink, 1)

    def test_links_that_are_removed_on_all_threads_at_once(self):
        """The witness's question is answered though as many requests as there are threads wait
        for it."""
        threads = 4
        for number in range(threads):
            os.mkdir(self.path(f"d{number}"))
            for name in range(10):
                open(self.path(f"d{number}", f"f{name}"), "wb").close()
                os.link(self.path(f"d{number}", f"f{name}"), self.path(f"d{number}", f"g{name}"))
        mount = self.mounted(f"max_threads={threads}")
        mount.sync()

        def remove(number):
            for name in range(10):
                path = os.path.join(mount.path, f"d{number}", f"f{name}")
                os.stat(path)
                os.unlink(path)
        # Each takes so long that the others come to the same place meanwhile.
        with inject.failing(mount.process.pid, "unlinkat", "delay_exit=50000"):
            with concurrent.futures.ThreadPoolExecutor(threads) as pool:
                list(pool.map(remove, range(threads)))
        self.assertEqual(mount.status()["failures"], {})

    def test_another_mount_gets_the_id(self):
        """The kernel gives a mount's id out again at once: what is mounted next has it."""
        mount = self.mounted()
        before = mount_id(mount.path)
        mount.process.send_signal(signal.SIGSTOP)
        try:
            subprocess.run(["umount", "-l", mount.path], check=True)
            others = []
            while before not in map(mount_id, others) and len(others) < 50:
                others.append(scratch.new_path("other"))
                os.mkdir(others[-1])
                subprocess.run(["mount", "-t", "tmpfs", "other", others[-1]], check=True)
                self.addCleanup(subprocess.run, ["umount", others[-1]], check=True)
            self.assertIn(before, map(mount_id, others), "the id is not given out again")
        finally:
            mount.process.send_signal(signal.SIGCONT)
        self.assertEqual(mount.process.wait(TIMEOUT), 0, mount.log())

    def test_nobody_sees_the_orphanage(self):
        mount = self.mounted()
        os.mkdir(self.path("sub"))
        mount.sync()
        watch = self.watch(mount.path)
        os.rename(self.path("sub"), self.path("..", "sub"))
        self.told(watch, [("MOVED_FROM|ISDIR", "sub")])
        self.assertEqual(os.listdir(mount.path), [])
        watch.read()  # the listing's own
        os.rename(self.path("..", "sub"), self.path("back"))
        self.told(watch, [("MOVED_TO|ISDIR", "back")])

    def test_a_killed_replayer_is_started_again(self):
        mount = self.mounted()
        for directory in test_load.DIRECTORIES:
            os.mkdir(self.path(directory))
        end, _ = test_load.LoadTest.churning(self, self.source, mount.path)
        for _ in range(5):
            os.kill(self.replayer(mount), signal.SIGKILL)
            time.sleep(0.4)  # under load, with and without one
        end()
        self.replayer(mount)
        mount.sync()
        fusefs.wait_until(
            lambda: test_load.truth(self.source) == test_load.truth(mount.path), "all is true")
        time.sleep(0.1)  # what is settled is told
        watch = self.watch(mount.path)
        os.mkdir(self.path("new"))
        self.told(watch, [("CREATE|ISDIR", "new")])
        mount.unmount()

    def test_a_killed_server_hangs_nobody(self):
        mount = self.mounted()
        for directory in test_load.DIRECTORIES:
            os.mkdir(self.path(directory))
        end, _ = test_load.LoadTest.churning(self, self.source, mount.path)
        time.sleep(1)
        replayer = self.replayer(mount)
        mount.process.kill()
        mount.process.wait(TIMEOUT)
        with self.assertRaises(OSError):
            os.listdir(mount.path)
        end()
        fusefs.wait_until(lambda: not os.path.exists(f"/proc/{replayer}"), "the replayer ends")
        subprocess.run(["umount", mount.path], check=True)

    def test_after_the_daemon_was_killed(self):
        mount = self.mounted()
        os.mkdir(self.path("before"))
        mount.sync()
        watch = self.watch(mount.path)
        self.daemon.kill()
        os.mkdir(self.path("meanwhile"))
        self.daemon.start()
        fusefs.wait_until(lambda: mount.status()["state"] == "in-step", "in step again")
        os.mkdir(self.path("after"))
        found, deadline = [], time.monotonic() + TIMEOUT
        while ("CREATE|ISDIR", "after") not in found and time.monotonic() < deadline:
            select.select([watch.fd], [], [], 0.1)
            found += [(mask_text(mask), os.fsdecode(name)) for _, mask, _, name in watch.read()]
        self.assertIn(("CREATE|ISDIR", "after"), found)
        self.assertEqual(sorted(os.listdir(mount.path)), ["after", "before", "meanwhile"])


class ProgramTest(MountedTest):
    """Programs that watch, on a mount of which only the host's side is changed."""

    def setUp(self):
        super().setUp()
        os.mkdir(self.path("dir"))
        with open(self.path("file"), "w", encoding="ascii") as file:
            file.write("first\n")
        self.fs = self.mounted()

    def start(self, *command, **options):
        if not os.path.exists(command[0]) and shutil.which(command[0]) is None:
            self.skipTest(f"{command[0]} is not installed")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   cwd=self.fs.path, **options)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        os.set_blocking(process.stdout.fileno(), False)
        process.text = ""
        return process

    def wait_for(self, process, text, change=None):
        """Until the program has said it; with `change` that is repeated meanwhile, since
        nobody says when the program has begun to watch."""
        deadline = time.monotonic() + TIMEOUT
        while text not in process.text:
            self.assertLess(time.monotonic(), deadline, f"no {text!r} in {process.text!r}")
            if change:
                change()
            select.select([process.stdout], [], [], 0.2)
            data = process.stdout.read()
            process.text += (data or b"").decode()
            self.assertFalse(data == b"" and process.poll() is not None, process.text)

    def test_tail(self):
        """tail takes FUSE for a remote filesystem and looks once a second, without inotify."""
        tail = self.start("tail", "-F", "file")
        self.wait_for(tail, "first\n")
        with open(self.path("file"), "a", encoding="ascii") as file:
            file.write("second\n")
        self.wait_for(tail, "second\n")
        os.rename(self.path("file"), self.path("file.1"))
        with open(self.path("file"), "w", encoding="ascii") as file:
            file.write("rotated\n")
        self.wait_for(tail, "rotated\n")

    def test_inotifywait(self):
        program = self.start("inotifywait", "-mr", "--format", "%w%f %e", ".")
        self.wait_for(program, "Watches established")
        os.mkdir(self.path("dir", "sub"))
        self.wait_for(program, "./dir/sub CREATE,ISDIR\n")
        time.sleep(0.2)  # it has to add the watch
        os.close(os.open(self.path("dir/sub/f"), os.O_WRONLY | os.O_CREAT, 0o644))
        self.wait_for(program, "./dir/sub/f CREATE\n./dir/sub/f OPEN\n./dir/sub/f CLOSE_WRITE,CLOSE\n")
        os.rename(self.path("dir/sub"), self.path("moved"))
        self.wait_for(program, "./dir/sub MOVED_FROM,ISDIR\n./moved MOVED_TO,ISDIR\n")
        shutil.rmtree(self.path("moved"))
        self.wait_for(program, "./moved DELETE,ISDIR\n")

    def test_entr(self):
        program = self.start("entr", "-n", "cat", "file", stdin=subprocess.PIPE)
        program.stdin.write(b"file\n")
        program.stdin.close()
        self.wait_for(program, "first\n")

        def change():
            with open(self.path("file"), "w", encoding="ascii") as file:
                file.write("second\n")
        self.wait_for(program, "second\n", change)

    def interpreter(self, *modules):
        """The Python that has the modules: $HOSTWATCH_TEST_PYTHON, this one or Debian's."""
        choice = [os.environ.get("HOSTWATCH_TEST_PYTHON"), sys.executable, "/usr/bin/python3"]
        for python in filter(None, choice):
            if shutil.which(python) and not subprocess.run(
                    [python, "-c", f"import {', '.join(modules)}"], stderr=subprocess.DEVNULL,
                    check=False).returncode:
                return python
        return self.skipTest(f"no Python here has {' and '.join(modules)}")

    def python(self, module, script):
        return self.start(self.interpreter(module), "-u", "-c", script)

    def test_watchdog(self):
        program = self.python("watchdog", (
            "import time\n"
            "from watchdog.observers import Observer\n"
            "from watchdog.events import FileSystemEventHandler\n"
            "class Handler(FileSystemEventHandler):\n"
            "    def on_any_event(self, event): print(event.event_type, event.src_path, flush=True)\n"
            "observer = Observer()\n"
            "observer.schedule(Handler(), '.', recursive=True)\n"
            "observer.start()\n"
            "print('ready', flush=True)\n"
            "time.sleep(60)\n"))
        self.wait_for(program, "ready")
        os.mkdir(self.path("dir", "sub"))
        self.wait_for(program, "created ./dir/sub")
        os.rename(self.path("dir", "sub"), self.path("dir", "other"))
        self.wait_for(program, "moved ./dir/sub")
        os.rmdir(self.path("dir", "other"))
        self.wait_for(program, "deleted ./dir/other")

    def test_flask(self):
        """Flask's development server: its reloader watches the source with inotify."""
        python = self.interpreter("flask", "watchdog")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = free.getsockname()
        self.flask_app("one")
        server = self.start(
            python, "-u", "-m", "flask", "run", "--port", str(address[1]), start_new_session=True,
            env={**os.environ, "FLASK_APP": "app", "FLASK_DEBUG": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        # The server itself is a child of the one that restarts it.
        self.addCleanup(self.end_group, server.pid)
        self.wait_for(server, "Restarting with watchdog (inotify)")
        self.wait_for(server, "Debugger PIN")
        fusefs.wait_until(lambda: self.watching(server.pid), "the reloader has inotify watches")
        self.assertEqual(self.get(address), "one")
        for text in ("two", "three"):
            self.flask_app(text)
            self.wait_for(server, "Detected change in")
            server.text = ""
            fusefs.wait_until(lambda: self.get(address) == text, f"the server says {text}")

    @staticmethod
    def watching(session):
        """The processes of a session that have an inotify watch."""
        found = set()
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.getsid(int(entry)) != session:
                    continue
                for number in os.listdir(f"/proc/{entry}/fdinfo"):
                    with open(f"/proc/{entry}/fdinfo/{number}", encoding="ascii") as file:
                        if "inotify wd:" in file.read():
                            found.add(int(entry))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
        return found

    @staticmethod
    def end_group(pid):
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it has ended

    def flask_app(self, text):
        """As editors do it: a new file takes the place of the old one."""
        temporary = self.path("app.py~")
        with open(temporary, "w", encoding="ascii") as file:
            file.write("import flask\napp = flask.Flask(__name__)\n"
                       f"@app.route('/')\ndef answer(): return {text!r}\n")
        os.rename(temporary, self.path("app.py"))

    @staticmethod
    def get(address):
        """What the server answers; None while it is on its way."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(f"http://{address[0]}:{address[1]}/", timeout=TIMEOUT) as page:
                return page.read().decode()
        except OSError:
            return None

    def test_watchfiles(self):
        program = self.python("watchfiles", (
            "from watchfiles import watch\n"
            "for changes in watch('.', debounce=50, step=10):\n"
            "    for change, path in sorted(changes): print(change.name, path, flush=True)\n"))

        def change():
            with open(self.path("file"), "a", encoding="ascii") as file:
                file.write("more\n")
        self.wait_for(program, "modified", change)
        os.rename(self.path("file"), self.path("dir", "file"))
        self.wait_for(program, "deleted")
        self.wait_for(program, "dir/file")

    def test_a_server_that_restarts_itself(self):
        """Like the development servers of web frameworks: it watches its own source,
        and starts again when that changes."""
        self.app("version 1")
        program = self.python("watchfiles", (
            "import watchfiles, sys\n"
            "watchfiles.run_process('.', target=sys.executable + ' -u app.py', debounce=50,"
            " step=10)\n"))
        self.wait_for(program, "version 1")

        def change():
            self.app("version 2")
        self.wait_for(program, "version 2", change)

    def app(self, text):
        temporary = self.path("app.py.new")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f"import time; print({text!r}, flush=True); time.sleep(60)\n")
        os.rename(temporary, self.path("app.py"))
