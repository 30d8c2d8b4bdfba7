# SPDX-License-Identifier: Apache-2.0
"""hostwatchd as a command: options, exit codes, its own socket, signals."""

import os
import pathlib
import resource
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import unittest

from wire import LOST, RESYNCED, TREE, Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
DAEMON = os.environ.get("HOSTWATCHD", str(ROOT / ".build/debug/hostwatchd"))


class CommandLineTest(unittest.TestCase):
    def setUp(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="hostwatch."))
        self.socket = self.directory / "s"
        self.config = self.directory / "hostwatchd.toml"
        self.config.write_text("[daemon]\nqueue-events = 1\n")
        self.daemons = []
        self.mounts = []

    def tearDown(self):
        for daemon in self.daemons:
            daemon.kill()
            daemon.wait()
            daemon.stderr.close()
        for point in self.mounts:
            subprocess.run(["umount", "-l", point], check=True)
        shutil.rmtree(self.directory)

    def run_to_the_end(self, *arguments, **options):
        return subprocess.run(
            [DAEMON, *arguments], capture_output=True, text=True, timeout=20, **options
        )

    def serve(self, *arguments, wrapper=(), **options):
        """A daemon that said that it serves."""
        daemon = subprocess.Popen(
            [*wrapper, DAEMON, "--config", self.config, "--socket", self.socket, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        self.daemons.append(daemon)
        self.wait_for(daemon, " serves ")
        return daemon

    def wait_for(self, daemon, text):
        for line in daemon.stderr:
            if text in line:
                return line
        self.fail(f"ended without saying {text!r}")

    def connects(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.socket)) == 0


class ExitCodes(CommandLineTest):
    def test_usage(self):
        for wrong in (["--bogus"], ["--share", "x"], ["--log-level", "loud"], ["--log-target", "x"]):
            self.assertEqual(self.run_to_the_end(*wrong).returncode, 64, wrong)

    def test_version_and_help(self):
        self.assertRegex(self.run_to_the_end("--version").stdout, r"^hostwatchd \d+\.\d+\.\d+\n$")
        self.assertIn("--check-config", self.run_to_the_end("--help").stdout)

    def test_config_that_is_not_there(self):
        done = self.run_to_the_end("--config", "/nonexistent/x.toml")
        self.assertEqual(done.returncode, 78)
        self.assertIn("/nonexistent/x.toml: ", done.stderr)

    def test_check_config(self):
        right = self.run_to_the_end("--config", self.config, "--check-config")
        self.assertEqual((right.returncode, right.stderr), (0, ""))
        self.assertIn("queue-events: 1\n", right.stdout)
        self.config.write_text("[daemon]\nbogus = 1\nmax-delay = 5\n")
        wrong = self.run_to_the_end("--config", self.config, "--check-config")
        self.assertEqual(wrong.returncode, 78)
        lines = wrong.stderr.splitlines()
        self.assertTrue(lines[0].startswith(f"{self.config}:2: daemon.bogus: "))
        self.assertTrue(lines[1].startswith(f"{self.config}:3: daemon.max-delay: "))

    def test_no_permission(self):
        self.directory.chmod(0o755)
        done = self.run_to_the_end("--config", self.config, user=65534, group=65534)
        self.assertEqual(done.returncode, 77)
        self.assertIn("CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH are missing", done.stderr)

    def test_share_of_the_file_and_of_the_command_line(self):
        self.config.write_text('[[share]]\nname = "a"\npath = "/tmp"\n')
        done = self.run_to_the_end("--config", self.config, "--share", "a=/tmp", "--check-config")
        self.assertEqual(done.returncode, 78)


class OwnSocket(CommandLineTest):
    def test_is_made_and_removed(self):
        self.socket = self.directory / "new" / "s"
        daemon = self.serve()
        status = os.stat(self.socket)
        self.assertTrue(stat.S_ISSOCK(status.st_mode))
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o660)
        self.assertEqual(stat.S_IMODE(os.stat(self.socket.parent).st_mode), 0o755)
        self.assertTrue(self.connects())
        daemon.send_signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(10), 0)
        self.assertEqual(os.listdir(self.socket.parent), [])

    def test_mode_of_the_file(self):
        self.config.write_text('[daemon]\nqueue-events = 1\nsocket-mode = "0606"\n')
        self.serve()
        self.assertEqual(stat.S_IMODE(os.stat(self.socket).st_mode), 0o606)

    def test_another_ones_socket_is_not_removed(self):
        daemon = self.serve()
        self.socket.unlink()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
            other.bind(str(self.socket))
            daemon.send_signal(signal.SIGINT)
            self.assertEqual(daemon.wait(10), 0)
            self.assertTrue(self.socket.exists())


class Process(CommandLineTest):
    exclusive = True  # of the sysctl
    def test_descriptor_limit_is_raised(self):
        def lower():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))

        daemon = self.serve(preexec_fn=lower)
        self.assertEqual(resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE), (4096, 4096))

    def test_capabilities_are_given_up(self):
        """All but CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH, in every set."""
        # Root's are in three sets only: something for the other two.
        daemon = self.serve(
            wrapper=("setpriv", "--inh-caps=+chown,+sys_admin", "--ambient-caps=+chown"))
        status = dict(line.split(":\t", 1) for line in
                      pathlib.Path(f"/proc/{daemon.pid}/status").read_text().splitlines()
                      if ":\t" in line)
        kept = f"{1 << 21 | 1 << 2:016x}"
        self.assertEqual([status[one] for one in ("CapEff", "CapPrm", "CapBnd")], [kept] * 3)
        self.assertEqual([status[one] for one in ("CapInh", "CapAmb")], ["0" * 16] * 2)
        self.assertEqual((status["NoNewPrivs"], status["Threads"]), ("1", "1"))

    def test_what_it_keeps_is_enough_for_what_comes_later(self):
        path = pathlib.Path("/proc/sys/fs/fanotify/max_queued_events")
        before = int(path.read_text())
        self.addCleanup(path.write_text, str(before))
        daemon = self.serve()
        share = self.directory / "share"
        share.mkdir()
        # Root's uid alone may not search it.
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "mode=700,uid=1000", "later", share], check=True)
        self.mounts.append(share)
        (share / "private").mkdir(mode=0o700)
        os.chown(share / "private", 1000, 1000)
        self.config.write_text(
            f"[daemon]\nqueue-events = {before + 1}\n[limits]\nqueue-per-session = '64KiB'\n"
            f"[[share]]\nname = 'later'\npath = '{share}/private'\n")
        daemon.send_signal(signal.SIGHUP)
        self.wait_for(daemon, "reloaded")
        self.assertEqual(int(path.read_text()), before + 1)
        other = subprocess.Popen(["sleep", "60"], user=1000)
        self.addCleanup(other.wait)
        self.addCleanup(other.kill)
        with Client(str(self.socket)) as client:
            self.assertEqual(client.init("later", mode=TREE, echo_pid=other.pid)[0], 0)
            # Looked up by their handles: the name says nothing of a rename's order.
            (share / "private/a").mkdir()
            for _ in range(3):
                os.rename(share / "private/a", share / "private/b")
                os.rename(share / "private/b", share / "private/a")
            self.assertEqual(client.sync(), 0)
            # More than the queue holds: looked at again.
            for number in range(3000):
                (share / f"private/a/{number}").touch()
            client.wait_for(LOST)
            client.wait_for(RESYNCED)

    def test_queue_is_not_lowered(self):
        path = pathlib.Path("/proc/sys/fs/fanotify/max_queued_events")
        before = path.read_text()
        self.serve()
        self.assertEqual(path.read_text(), before)

    def test_reload_on_sighup(self):
        daemon = self.serve()
        daemon.send_signal(signal.SIGHUP)
        self.assertTrue(self.wait_for(daemon, "reloaded").startswith("<5>"))
        self.config.write_text("[daemon]\nbogus = 1\n")
        daemon.send_signal(signal.SIGHUP)
        refused = self.wait_for(daemon, "bogus")
        self.assertTrue(refused.startswith(f"<3>{self.config}:2: daemon.bogus: unknown key"))
        self.assertIsNone(daemon.poll())

    def test_log_level_of_a_reload(self):
        daemon = self.serve()
        self.config.write_text('[daemon]\nlog-level = "error"\n')
        daemon.send_signal(signal.SIGHUP)
        daemon.send_signal(signal.SIGTERM)
        self.assertNotIn("stopped", daemon.stderr.read())

    def test_command_line_goes_before_the_file(self):
        self.config.write_text('[daemon]\nlog-level = "critical"\nsocket = "/nonexistent/s"\n')
        self.serve("--log-level", "notice")
        self.assertTrue(self.connects())

    def test_a_directory_cannot_forge_lines(self):
        """Of file names it is that of a session's root which the log has."""
        root = self.directory / "a\n<0>forged\x1b[31m"
        root.mkdir()
        daemon = self.serve("--log-level", "debug", "--log-target", "stderr")
        with Client(str(self.socket)) as client:
            fd = os.open(root, os.O_RDONLY)
            client.init(descriptor=fd)
            os.close(fd)
        line = self.wait_for(daemon, "session on ")
        self.assertIn("a\\n<0>forged\\u{1b}[31m started", line)
        daemon.send_signal(signal.SIGTERM)
        rest = daemon.stderr.read().splitlines()
        self.assertFalse([line for line in rest if "forged" in line[:12]], rest)

    def test_names_cannot_forge_lines(self):
        self.config.write_text('[daemon]\n"a\\n<0>forged" = 1\n')
        done = self.run_to_the_end("--config", self.config, "--log-target", "stderr")
        self.assertEqual(len(done.stderr.splitlines()), 1)
        self.assertIn("a\\n<0>forged", done.stderr)
