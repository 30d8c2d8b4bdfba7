# SPDX-License-Identifier: Apache-2.0
"""hostwatchd as a systemd service: run by `systemd`, inside the sandbox.

HOSTWATCHD names the binary; the default is the debug build.
"""

import contextlib
import errno
import grp
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
import time
import unittest

import hostwatch
from wire import DETACHED, TREE, Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
DAEMON = os.environ.get("HOSTWATCHD", str(ROOT / ".build/debug/hostwatchd"))
CTL = str(pathlib.Path(DAEMON).with_name("hostwatchctl"))
UNITS = pathlib.Path("/etc/systemd/system")
CONFIG = pathlib.Path("/etc/hostwatchd/hostwatchd.toml")
SOCKET = "/run/hostwatchd/hostwatchd.sock"
SERVICE = "hostwatchd.service"
MOUNTS = "hostwatchfs@.service"

MESSAGE_IDS = {
    "started": "4e21ef60f8c040768818c0c24b5f8cdc",
    "stopped": "0fde71a89de14a499ce5cd1d98334172",
    "reloaded": "ad1bc9009bcd4600b117c5587948d657",
    "reload refused": "5ccffa3f681640eca62e8554ab591121",
    "configuration refused": "187a49de16b94fdc92ae3b6abaa53192",
    "needs restart": "35ece6213ab743569277c165e291fc32",
    "start failed": "334f41a5a338499da3f133439239e32f",
    "queue limited": "a82cbfcf16aa4d498034ba76de3a8904",
    "share hidden": "c2404c2dd4a94fc7a106acbe79e761a1",
    "session started": "62d0250ff3a14ff2ad3c6d0228ef7586",
    "session refused": "ecf7edff63454505ac5bdd0a7e06bda3",
}


def run(*command, check=True):
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.returncode}: {done.stderr}{done.stdout}")
    return done


def systemctl(*arguments, check=True):
    return run("systemctl", "--no-pager", *arguments, check=check)


def show(name, unit=SERVICE):
    return systemctl("show", "-P", name, unit).stdout.strip()


def eventually(what, seconds=15):
    """What `what` returns once that is true; systemd tells no other way."""
    end = time.monotonic() + seconds
    while True:
        result = what()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s; last: {result!r}")
        time.sleep(0.02)


class Journal:
    """The daemon's entries from now on."""

    def __init__(self):
        done = run("journalctl", "-n0", "--show-cursor", "-o", "cat")
        self.cursor = done.stdout.rpartition("cursor: ")[2].strip()

    def entries(self, message=None):
        # Filtered here: with a filter of journalctl's that does not match the
        # cursor's own entry, systemd 252 skips the first one that matches.
        after = [f"--after-cursor={self.cursor}"] if self.cursor else []
        done = run("journalctl", "-o", "json", *after)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        found = [entry for entry in found if entry.get("SYSLOG_IDENTIFIER") == "hostwatchd"]
        if message:
            found = [e for e in found if e.get("MESSAGE_ID") == MESSAGE_IDS[message]]
        return found

    def wait(self, message):
        return eventually(lambda: self.entries(message))


def setUpModule():
    run("systemd-sysusers", str(ROOT / "systemd/sysusers.d/hostwatchd.conf"))
    for unit in ("hostwatchd.service", "hostwatchd.socket", MOUNTS):
        shutil.copy(ROOT / "systemd" / unit, UNITS)
    binary = f"[Service]\nExecStart=\nExecStart={DAEMON}\nExecReload=\nExecReload={CTL} reload\n"
    # What was built may lie in a home directory, with the Swift runtime, or in /tmp.
    built = sorted({str(ROOT), os.path.dirname(os.path.realpath(DAEMON))})
    drop_in(f"{binary}ProtectHome=read-only\nBindReadOnlyPaths={' '.join(built)}\n", "10-binary")
    # Its own command line, with the program that is tested.
    unit = UNITS / MOUNTS
    unit.write_text(unit.read_text().replace(
        "/usr/bin/hostwatchfs", os.path.join(os.path.dirname(DAEMON), "hostwatchfs")))


def drop_in(text, name="50-test", unit=SERVICE):
    directory = UNITS / f"{unit}.d"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.conf").write_text(text)
    systemctl("daemon-reload")


class SystemdTest(unittest.TestCase):
    def setUp(self):
        CONFIG.parent.mkdir(exist_ok=True)
        CONFIG.unlink(missing_ok=True)
        self.journal = Journal()
        # Not in /tmp, which the unit has for itself.
        self.share = tempfile.mkdtemp(prefix="share", dir="/run")

    def tearDown(self):
        systemctl("stop", "hostwatchd.socket", SERVICE, check=False)
        systemctl("reset-failed", check=False)
        for path in UNITS.glob("hostwatchd.*.d/50-*.conf"):
            path.unlink()
        systemctl("daemon-reload")
        shutil.rmtree(self.share)

    def configure(self, text="", allow="", name="src"):
        share = f'[[share]]\nname = "{name}"\npath = "{self.share}"\n{allow}\n'
        CONFIG.write_text(text + share)

    def pid(self):
        return int(show("MainPID"))


class Units(SystemdTest):
    def test_verify_has_nothing_to_say(self):
        # Without the man page that Documentation= names: it is not installed here.
        done = run(
            "systemd-analyze", "verify", "--man=no", SERVICE, "hostwatchd.socket", check=False)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_shipped_configuration_is_right(self):
        done = run(DAEMON, "--check-config", "--config", str(ROOT / "systemd/hostwatchd.toml"))
        self.assertIn("right", done.stdout)

    def test_start_returns_when_the_socket_answers(self):
        systemctl("start", SERVICE)
        self.assertEqual(show("ActiveState"), "active")
        Client(SOCKET).socket.close()

    def test_socket_has_mode_and_group(self):
        systemctl("start", "hostwatchd.socket")
        status = os.stat(SOCKET)
        self.assertEqual(stat.S_IMODE(status.st_mode), 0o660)
        self.assertEqual(grp.getgrgid(status.st_gid).gr_name, "hostwatch")

    def test_first_connection_starts_the_service(self):
        systemctl("start", "hostwatchd.socket")
        self.assertEqual(show("ActiveState"), "inactive")
        with Client(SOCKET):
            eventually(lambda: show("ActiveState") == "active")
        started = self.journal.wait("started")[0]
        self.assertIn("1 socket of the service manager", started["MESSAGE"])

    def test_socket_outlives_the_service(self):
        systemctl("start", SERVICE)
        inode = os.stat(SOCKET).st_ino
        systemctl("restart", SERVICE)
        self.assertEqual(os.stat(SOCKET).st_ino, inode)

    def test_socket_of_another_type_is_refused(self):
        drop_in(
            "[Socket]\nListenSequentialPacket=\nListenStream=/run/hostwatchd/stream\n",
            unit="hostwatchd.socket",
        )
        self.assertNotEqual(systemctl("start", SERVICE, check=False).returncode, 0)
        self.assertEqual(show("ExecMainStatus"), "78")
        failed = self.journal.wait("start failed")[0]
        self.assertIn("ListenSequentialPacket=", failed["MESSAGE"])

    def test_watchdog_restarts_a_daemon_that_hangs(self):
        drop_in("[Service]\nWatchdogSec=1s\nRestartSec=0\n")
        systemctl("start", SERVICE)
        hung = self.pid()
        os.kill(hung, signal.SIGSTOP)
        eventually(lambda: show("NRestarts") == "1" and self.pid() not in (0, hung))


class Hardening(SystemdTest):
    def test_exposure_is_at_most_1_4(self):
        # Under another name, so that the drop-ins of the tests do not count.
        with tempfile.TemporaryDirectory(dir="/run") as directory:
            unit = shutil.copy(ROOT / "systemd/hostwatchd.service", f"{directory}/shipped.service")
            done = run("systemd-analyze", "security", "--offline=yes", "--threshold=14", unit)
        self.assertIn("Overall exposure level", done.stdout)

    def test_changes_from_outside_are_seen(self):
        self.configure()
        systemctl("start", SERVICE)
        self.assertNotEqual(
            os.readlink(f"/proc/{self.pid()}/ns/mnt"), os.readlink("/proc/self/ns/mnt")
        )
        with Client() as client:
            self.assertEqual(client.init("src", mode=TREE)[0], 0)
            pathlib.Path(self.share, "made-outside").touch()
            seen = b""
            while b"made-outside" not in seen:
                kind, body = client.receive()
                self.assertIsNotNone(kind)
                seen = body
        self.assertEqual(self.journal.entries("start failed"), [])

    def test_capabilities_are_the_two(self):
        systemctl("start", SERVICE)
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        two = f"{1 << 21 | 1 << 2:016x}"
        self.assertEqual([fields["CapEff"], fields["CapPrm"], fields["CapBnd"]], [two] * 3)
        self.assertEqual((fields["CapAmb"], fields["NoNewPrivs"]), ("0" * 16, "1"))
        self.assertEqual(fields["Seccomp"], "2")

    def test_mounts_made_later_are_seen(self):
        self.configure()
        systemctl("start", SERVICE)
        run("mount", "-t", "tmpfs", "later", self.share)
        try:
            with Client() as client:
                eventually(lambda: client.init("src", mode=TREE)[0] == 0)
                pathlib.Path(self.share, "on-the-mount").touch()
                kind, body = client.receive()
                while b"on-the-mount" not in body:
                    kind, body = client.receive()
        finally:
            run("umount", "-l", self.share)

    def refused(self, directives, path, advice):
        """The start fails with 78, and the message names the directive."""
        CONFIG.write_text(f'[[share]]\nname = "hidden"\npath = "{path}"\n')
        drop_in(f"[Service]\n{directives}\n")
        self.assertNotEqual(systemctl("start", SERVICE, check=False).returncode, 0)
        self.assertEqual(show("ExecMainStatus"), "78")
        self.assertEqual(show("NRestarts"), "0")
        entry = self.journal.wait("share hidden")[0]
        self.assertEqual(entry["HOSTWATCH_SHARE"], "hidden")
        self.assertIn(advice, entry["MESSAGE"])
        self.assertIn(advice, show("StatusText"))

    def test_private_tmp_over_a_share(self):
        with tempfile.TemporaryDirectory(dir="/tmp") as path:
            self.refused("PrivateTmp=yes", path, "set PrivateTmp=no")
            drop_in("[Service]\nPrivateTmp=no\n")
            systemctl("start", SERVICE)

    def test_protect_home_over_a_share(self):
        self.refused("ProtectHome=tmpfs", "/home", "set ProtectHome=read-only")

    def test_inaccessible_share(self):
        self.refused(f"InaccessiblePaths={self.share}", self.share, "from InaccessiblePaths=")

    def test_temporary_file_system_over_a_share(self):
        self.refused(f"TemporaryFileSystem={self.share}", self.share, "from TemporaryFileSystem=")

    def test_bind_over_a_share(self):
        with tempfile.TemporaryDirectory(dir="/run") as other:
            self.refused(f"BindPaths={other}:{self.share}", self.share, "from BindPaths=")

    def test_read_only_paths_hide_nothing(self):
        self.configure()
        drop_in(f"[Service]\nReadOnlyPaths={self.share}\n")
        systemctl("start", SERVICE)
        self.assertEqual(self.journal.entries("share hidden"), [])


class Catalog(SystemdTest):
    def test_compiles_and_has_each_message_id(self):
        catalog = ROOT / "systemd/hostwatchd.catalog"
        root = tempfile.mkdtemp(dir="/run")
        self.addCleanup(shutil.rmtree, root)
        shutil.copytree("/usr/lib/systemd/catalog", f"{root}/usr/lib/systemd/catalog")
        shutil.copy(catalog, f"{root}/usr/lib/systemd/catalog")
        done = run("journalctl", f"--root={root}", "--update-catalog")
        self.assertEqual(done.stderr, "")
        database = pathlib.Path("/var/lib/systemd/catalog/database")
        database.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"{root}{database}", database)
        source = (ROOT / "Sources/hostwatchd/Log/MessageID.swift").read_text()
        used = re.findall(r'case \w+ = "([0-9a-f]{32})"', source)
        there = re.findall(r"^-- ([0-9a-f]{32})$", catalog.read_text(), re.MULTILINE)
        self.assertGreater(len(used), 20)
        self.assertEqual(sorted(used), sorted(there))
        listed = run("journalctl", "--list-catalog", *used).stdout
        for message in used:
            self.assertIn(f"{message} hostwatchd: ", listed)

    def test_explains_an_entry(self):
        self.test_compiles_and_has_each_message_id()
        CONFIG.write_text('[limits]\nsessions = "many"\n')
        systemctl("start", SERVICE, check=False)
        self.journal.wait("configuration refused")
        text = run("journalctl", "-x", "-t", "hostwatchd", "--no-pager").stdout
        self.assertIn("The configuration of hostwatchd is wrong", text)
        self.assertIn("hostwatchd.toml:2: limits.sessions", text)


class MetricsText(SystemdTest):
    LINE = re.compile(
        r'hostwatch_[a-z_]+(\{[a-z]+="([^"\\\n]|\\[\\n"])*"(,[a-z]+="([^"\\\n]|\\[\\n"])*")*\})?'
        r" [0-9]+(\.[0-9]+)?(e-[0-9]+)?"
    )

    def test_every_line_is_of_the_format(self):
        self.configure(name='a\\"b\\\\c')
        systemctl("start", SERVICE)
        with Client() as client:
            self.assertEqual(client.init('a"b\\c', mode=TREE)[0], 0)
            pathlib.Path(self.share, "made").touch()
            self.assertEqual(client.sync(), 0)
            text = run(CTL, "metrics").stdout
        declared = set()
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                self.assertNotIn(line.split()[2], declared)
                declared.add(line.split()[2])
            elif not line.startswith("# HELP "):
                self.assertRegex(line, "^" + self.LINE.pattern + "$")
                name = re.match("[a-z_]+", line)[0]
                base = re.sub("_(bucket|sum|count)$", "", name)
                self.assertTrue(name in declared or base in declared, line)
        self.assertIn('hostwatch_share_ready{share="a\\"b\\\\c"} 1', text)
        count = int(re.search(r"^hostwatch_filesystem_lag_seconds_count.* (\d+)$", text, re.M)[1])
        inf = int(re.search(r'^hostwatch_filesystem_lag_seconds_bucket.*le="\+Inf".* (\d+)$', text, re.M)[1])
        self.assertGreater(count, 0)
        self.assertEqual(count, inf)

    def test_output_replaces_the_file(self):
        systemctl("start", SERVICE)
        with tempfile.TemporaryDirectory(dir="/run") as directory:
            target = pathlib.Path(directory, "hostwatch.prom")
            target.write_text("old")
            run(CTL, "metrics", "--output", str(target))
            self.assertIn("hostwatch_sessions ", target.read_text())
            self.assertEqual(os.listdir(directory), ["hostwatch.prom"])


class Configurations(SystemdTest):
    def test_wrong_one_fails_the_unit_with_78(self):
        CONFIG.write_text('[limits]\nsessions = "many"\n')
        self.assertNotEqual(systemctl("start", SERVICE, check=False).returncode, 0)
        self.assertEqual(show("ExecMainStatus"), "78")
        self.assertEqual(show("Result"), "exit-code")
        self.assertEqual(show("NRestarts"), "0")
        entry = self.journal.wait("configuration refused")[0]
        self.assertEqual(entry["CONFIG_FILE"], str(CONFIG))
        self.assertEqual(entry["CONFIG_LINE"], "2")
        self.assertEqual(entry["CONFIG_KEY"], "limits.sessions")
        self.assertEqual(entry["PRIORITY"], "3")

    def test_good_reload(self):
        systemctl("start", SERVICE)
        pid = self.pid()
        self.configure()
        systemctl("reload", SERVICE)
        entry = self.journal.wait("reloaded")[0]
        self.assertIn("1 share configured", entry["MESSAGE"])
        self.assertEqual((show("ActiveState"), self.pid()), ("active", pid))

    def test_bad_reload_changes_nothing(self):
        self.configure()
        systemctl("start", SERVICE)
        pid = self.pid()
        self.configure("[limits]\nsessions = 0\n[nonsense]\n")
        self.assertNotEqual(systemctl("reload", SERVICE, check=False).returncode, 0)
        eventually(lambda: "reload refused" in run(
            "journalctl", "-u", SERVICE, "-o", "cat", "-t", "hostwatchctl").stdout)
        entries = eventually(lambda: len(self.journal.entries("reload refused")) == 3) and (
            self.journal.entries("reload refused")
        )
        self.assertEqual([entry.get("CONFIG_LINE") for entry in entries], ["2", "3", None])
        self.assertIn("stays in force", entries[2]["MESSAGE"])
        self.assertEqual((show("ActiveState"), self.pid()), ("active", pid))

    def test_reload_of_a_file_that_vanished_changes_nothing(self):
        self.configure()
        systemctl("start", SERVICE)
        CONFIG.unlink()
        self.assertNotEqual(systemctl("reload", SERVICE, check=False).returncode, 0)
        self.journal.wait("reload refused")
        self.assertEqual(show("ActiveState"), "active")

    def test_reload_says_what_needs_a_restart(self):
        systemctl("start", SERVICE)
        CONFIG.write_text('[daemon]\nsocket = "/run/other.sock"\n')
        systemctl("reload", SERVICE)
        entry = self.journal.wait("needs restart")[0]
        self.assertIn("daemon.socket", entry["MESSAGE"])

    def test_queue_that_cannot_be_raised_is_said(self):
        # /proc/sys is read-only in the sandbox.
        CONFIG.write_text("[daemon]\nqueue-events = 67108864\n")
        systemctl("start", SERVICE)
        entry = self.journal.wait("queue limited")[0]
        self.assertIn("could not be raised to 67108864: Read-only file system", entry["MESSAGE"])


class Reporting(SystemdTest):
    def test_status_text(self):
        systemctl("start", SERVICE)
        self.assertEqual(show("StatusText"), "0 sessions, 0 nodes, 0 events/s, 0 lost")

    def test_journal_fields_of_the_daemon(self):
        systemctl("start", SERVICE)
        entry = self.journal.wait("started")[0]
        self.assertEqual(entry["PRIORITY"], "5")
        self.assertEqual(entry["_SYSTEMD_UNIT"], SERVICE)
        self.assertTrue(entry["CODE_FILE"].endswith("Daemon.swift"))
        self.assertTrue(entry["CODE_LINE"].isdigit())
        self.assertIn("serve", entry["CODE_FUNC"])

    def test_stop_in_order(self):
        systemctl("start", SERVICE)
        systemctl("stop", SERVICE)
        self.assertEqual((show("Result"), show("ExecMainStatus")), ("success", "0"))
        self.journal.wait("stopped")

    def test_second_daemon_on_the_socket(self):
        systemctl("start", SERVICE)
        done = run(DAEMON, "--log-target", "stderr", check=False)
        self.assertEqual(done.returncode, 69)
        self.assertIn(f"another hostwatchd serves {SOCKET} (pid 1", done.stderr)


class Sessions(SystemdTest):
    """What needs the daemon to serve sessions."""

    def test_started_session_is_logged(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as client:
            error, reply = client.init("src", mode=TREE)
            self.assertEqual(error, 0)
            (session,) = struct.unpack_from("=Q", reply, 16)
            entry = self.journal.wait("session started")[0]
        self.assertEqual(entry["HOSTWATCH_SESSION"], str(session))
        self.assertEqual(entry["HOSTWATCH_SHARE"], "src")
        self.assertEqual(entry["PEER_UID"], "0")
        self.assertEqual(entry["PEER_PID"], str(os.getpid()))

    def test_refused_session_is_logged(self):
        self.configure()
        systemctl("start", SERVICE)
        os.chmod(SOCKET, 0o666)
        child = os.fork()
        if child == 0:
            os.setgroups([])
            os.setresgid(1000, 1000, 1000)
            os.setresuid(1000, 1000, 1000)
            with Client() as client:
                os._exit(-client.init("src", mode=TREE)[0])
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 13)
        entry = self.journal.wait("session refused")[0]
        self.assertEqual(entry["PEER_UID"], "1000")
        self.assertEqual(entry["PEER_PID"], str(child))
        self.assertEqual(entry["HOSTWATCH_SHARE"], "src")

    def test_status_text_counts_sessions(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as client:
            self.assertEqual(client.init("src")[0], 0)
            eventually(lambda: show("StatusText").startswith("1 session,"))
        eventually(lambda: show("StatusText").startswith("0 sessions,"))

    def test_removed_share_detaches(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as client:
            self.assertEqual(client.init("src")[0], 0)
            CONFIG.write_text("")
            systemctl("reload", SERVICE)
            (reason,) = struct.unpack_from("=I", client.wait_for(DETACHED))
            self.assertEqual(reason, 2)

    def test_bad_reload_keeps_the_share(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as client:
            self.assertEqual(client.init("src")[0], 0)
            CONFIG.write_text("nonsense = 1\n")
            self.assertNotEqual(systemctl("reload", SERVICE, check=False).returncode, 0)
            self.journal.wait("reload refused")
            self.assertEqual(client.sync(), 0)

    def test_descriptors_that_are_not_of_a_share_are_closed(self):
        """A helper process does that: the unit's restrictions let it."""
        self.configure()
        systemctl("start", SERVICE)
        client = hostwatch.Client(SOCKET)
        self.addCleanup(client.close)
        client.init(share=b"src")
        own = os.pipe()
        name = os.readlink(f"/proc/self/fd/{own[0]}")
        self.assertLess(client.register([hostwatch.register_entry(10)], own[:1])[0], 0)
        for end in own:
            os.close(end)
        folder = f"/proc/{self.pid()}/fd"

        def held():
            found = []
            for number in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    found.append(os.readlink(f"{folder}/{number}"))
            return found
        eventually(lambda: name not in held())
        client.sync()

    def test_stop_sends_detached_last(self):
        self.configure()
        systemctl("start", SERVICE)
        with Client() as client:
            self.assertEqual(client.init("src")[0], 0)
            pathlib.Path(self.share, "made-before-the-stop").touch()
            systemctl("stop", "--no-block", SERVICE)
            kinds = []
            while True:
                kind, body = client.receive()
                if kind is None:
                    break
                kinds.append(kind)
                last = body
        self.assertGreater(len(kinds), 1)
        self.assertEqual(kinds[-1], DETACHED)
        self.assertEqual(struct.unpack_from("=I", last)[0], 3)


class MountTest(SystemdTest):
    """A unit of hostwatchfs that is there, and not started."""

    def setUp(self):
        super().setUp()
        self.mount = tempfile.mkdtemp(prefix="mount-", dir="/tmp")
        self.unit = "hostwatchfs@test.service"
        self.config = pathlib.Path("/etc/hostwatchfs/test.conf")
        self.config.parent.mkdir(exist_ok=True)
        self.config.write_text(f"SOURCE={self.share}\nMOUNTPOINT={self.mount}\n")
        pathlib.Path(self.share, "file").write_text("seen")

    def tearDown(self):
        systemctl("stop", self.unit, check=False)
        self.config.unlink(missing_ok=True)
        super().tearDown()
        os.rmdir(self.mount)


class Mounts(MountTest):
    """hostwatchfs@.service."""

    def read(self):
        try:
            return pathlib.Path(self.mount, "file").read_text()
        except OSError as error:
            return error.strerror

    def test_verify_has_nothing_to_say(self):
        done = run("systemd-analyze", "verify", "--man=no", MOUNTS, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_is_mounted_once_it_has_started(self):
        systemctl("start", self.unit)
        self.assertEqual(self.read(), "seen")
        self.assertTrue(os.path.ismount(self.mount))
        self.assertEqual(show("ActiveState"), "active")
        systemctl("stop", self.unit)
        self.assertFalse(os.path.ismount(self.mount))
        self.assertEqual(show("Result", self.unit), "success")

    def test_options_are_the_files(self):
        with open(self.config, "a", encoding="utf-8") as file:
            file.write("OPTIONS=ro,events=invalidate\n")
        systemctl("start", self.unit)
        with self.assertRaises(OSError):
            pathlib.Path(self.mount, "new").touch()

    def test_a_killed_server_is_replaced(self):
        systemctl("start", self.unit)
        killed = show("MainPID", self.unit)
        os.kill(int(killed), signal.SIGKILL)
        eventually(lambda: show("MainPID", self.unit) not in ("0", killed))
        eventually(lambda: show("ActiveState", self.unit) == "active")
        self.assertEqual(self.read(), "seen")

    def test_hostwatchd_restarts_while_a_server_does_not_answer(self):
        """A process of its control group waits in close(2) then, which no signal ends."""
        self.configure()
        systemctl("start", self.unit)
        server = int(show("MainPID", self.unit))
        client = hostwatch.Client(SOCKET)
        self.addCleanup(client.close)
        client.init(share=b"src")
        before = self.pid()
        # Before there is the file, which a child would have to close as well.
        restart = subprocess.Popen(
            ["sh", "-c", f"read line && exec systemctl restart {SERVICE}"], stdin=subprocess.PIPE)
        self.addCleanup(restart.wait)
        file = os.open(pathlib.Path(self.mount, "file"), os.O_RDWR)
        children = pathlib.Path(f"/proc/{before}/task/{before}/children")
        os.kill(server, signal.SIGSTOP)
        try:
            self.assertEqual(client.register([hostwatch.register_entry(10)], [file]),
                             [-errno.EXDEV])
            helper = eventually(lambda: children.read_text().split())[0]
            # It would wait for DefaultTimeoutStopSec=, 10 s here, and once more.
            restart.stdin.write(b"\n")
            restart.stdin.close()
            self.assertEqual(restart.wait(8), 0)
            self.assertTrue(os.path.exists(f"/proc/{helper}"))
            client.sync()
        finally:
            os.kill(server, signal.SIGCONT)
        os.close(file)
        self.assertNotEqual(self.pid(), before)
        eventually(lambda: not os.path.exists(f"/proc/{helper}"))

    def test_the_socket_unit_is_replaced(self):
        """As operations.md says to: a session and a mount go on."""
        self.configure()
        systemctl("start", self.unit)
        server = show("MainPID", self.unit)
        with hostwatch.Client(SOCKET) as client:
            client.init(share=b"src")
            before = os.stat(SOCKET).st_ino
            systemctl("stop", "hostwatchd.socket")
            systemctl("restart", SERVICE)
            self.assertNotEqual(os.stat(SOCKET).st_ino, before)
            client.sync()
        self.assertEqual(self.read(), "seen")
        self.assertEqual(show("MainPID", self.unit), server)

    def test_without_its_file_it_says_so(self):
        self.config.unlink()
        self.assertNotEqual(systemctl("start", self.unit, check=False).returncode, 0)
        self.assertEqual(show("AssertResult", self.unit), "no")


if __name__ == "__main__":
    unittest.main(verbosity=2)
