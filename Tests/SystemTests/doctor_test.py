# SPDX-License-Identifier: Apache-2.0
"""`hostwatchctl doctor` on a whole installation: run by `systemd`, inside the sandbox."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

import systemd_test
from hostwatch import Client
from systemd_test import (CONFIG, CTL, DAEMON, MOUNTS, ROOT, SERVICE, SOCKET, UNITS, SystemdTest,
                          drop_in, eventually, run, show, systemctl)

FS = os.path.join(os.path.dirname(DAEMON), "hostwatchfs")
CATALOGS = pathlib.Path("/usr/lib/systemd/catalog")
CATALOG = CATALOGS / "hostwatchd.catalog"


def setUpModule():
    systemd_test.setUpModule()
    run("mount", "-t", "tmpfs", "tmpfs", str(CATALOGS))  # /usr is read-only here


def tearDownModule():
    run("umount", str(CATALOGS))


class Doctor(SystemdTest):
    def setUp(self):
        super().setUp()
        systemctl("enable", "hostwatchd.socket", SERVICE)
        shutil.copy(ROOT / "systemd/hostwatchd.catalog", CATALOG)
        run("journalctl", "--update-catalog")
        self.addCleanup(systemctl, "disable", "hostwatchd.socket", SERVICE)

    def doctor(self, *arguments, prefix=()):
        """(exit status, name → [check])."""
        done = subprocess.run([*prefix, CTL, "doctor", "--json", *arguments], capture_output=True,
                              text=True, check=False)
        self.assertTrue(done.stdout, done.stderr)
        report = json.loads(done.stdout)
        self.assertEqual(report["ok"], done.returncode == 0)
        found = {}
        for check in report["checks"]:
            self.assertEqual(check["state"] == "ok", check["advice"] is None, check)
            found.setdefault(check["name"], []).append(check)
        return done.returncode, found

    def assert_state(self, checks, name, state, *words):
        self.assertIn(name, checks)
        for check in checks[name]:
            if check["state"] == state and all(word in check["finding"] for word in words):
                return check
        self.fail(f"no {name} is {state} with {words}: {checks[name]}")

    def test_all_is_well(self):
        self.configure()
        systemctl("start", "hostwatchd.socket")
        status, checks = self.doctor()  # its connection starts the service
        self.assertEqual(status, 0, checks)
        for name in ("kernel", "fanotify-group", "unit", "unit-enabled", "socket", "socket-rights",
                     "daemon", "daemon-capabilities", "configuration", "share", "journal-catalog",
                     "leftovers"):
            self.assert_state(checks, name, "ok")
        self.assert_state(checks, "socket-rights", "ok", "mode 0660", "group hostwatch")
        self.assert_state(checks, "share", "ok", self.share)
        self.assertNotIn("version", checks)

    def test_nothing_runs(self):
        systemctl("disable", "hostwatchd.socket", SERVICE)
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        advice = self.assert_state(checks, "socket", "fail")["advice"]
        self.assert_state(checks, "unit", "warn", "inactive")
        enable = self.assert_state(checks, "unit-enabled", "warn", "disabled")["advice"]
        for command in (advice.split('"')[1], enable):
            run("sh", "-c", command)
        status, checks = self.doctor()
        self.assertEqual(status, 0, checks)
        for name in ("socket", "unit", "unit-enabled"):
            self.assert_state(checks, name, "ok")

    def test_configuration_with_mistakes(self):
        self.configure()
        systemctl("start", SERVICE)
        self.configure("[limits]\nsessions = \"many\"\nnonsense = 1\n")
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        self.assert_state(checks, "configuration", "fail", "hostwatchd.toml:2: limits.sessions")
        self.assert_state(checks, "configuration", "fail", "hostwatchd.toml:3: limits.nonsense")
        self.assertNotIn("reload", checks)
        systemctl("reload", SERVICE, check=False)
        self.assert_state(self.doctor()[1], "reload", "fail", "limits.sessions")

    def test_share_that_is_missing(self):
        CONFIG.write_text('[[share]]\nname = "gone"\npath = "/run/not-there"\n')
        systemctl("start", SERVICE)
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        self.assert_state(checks, "share", "fail", "gone", "ENOENT")

    def test_hidden_share(self):
        # At the start: the daemon refuses, and the unit has failed with the reason.
        share = pathlib.Path("/tmp/hidden")
        share.mkdir(exist_ok=True)
        self.addCleanup(share.rmdir)
        CONFIG.write_text(f'[[share]]\nname = "hidden"\npath = "{share}"\n')
        systemctl("start", SERVICE, check=False)
        eventually(lambda: show("ActiveState") == "failed")
        systemctl("stop", "hostwatchd.socket", check=False)
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        self.assert_state(checks, "unit", "fail", "exit status 78", "PrivateTmp=no")

    def test_hidden_later(self):
        # A namespace of its own that the start did not find out about.
        self.configure()
        systemctl("start", SERVICE)
        run("nsenter", "-t", str(self.pid()), "-m", "mount", "-t", "tmpfs", "tmpfs", self.share)
        self.assert_state(self.doctor()[1], "share", "fail", "src", self.share)

    def test_socket_of_another_mode(self):
        systemctl("start", SERVICE)
        os.chmod(SOCKET, 0o600)
        status, checks = self.doctor()
        self.assertEqual(status, 0)
        found = self.assert_state(checks, "socket-rights", "warn", "mode 0600", "mode 0660")
        run("sh", "-c", found["advice"])
        self.assert_state(self.doctor()[1], "socket-rights", "ok", "mode 0660")

    def test_the_socket_is_gone(self):
        """As after a restart of the socket's unit alone, which systemd refuses half-way."""
        systemctl("start", SERVICE)
        with Client(SOCKET) as client:
            client.status()
            systemctl("restart", "hostwatchd.socket", check=False)
            self.assertFalse(os.path.exists(SOCKET))
            advice = self.assert_state(self.doctor()[1], "socket", "fail", "not there")["advice"]
            run("sh", "-c", advice.split('"')[1])
            self.assert_state(self.doctor()[1], "socket", "ok")

    def test_without_the_right_to_connect(self):
        self.configure()
        systemctl("start", SERVICE)
        os.chmod(CONFIG, 0o600)
        as_nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        status, checks = self.doctor(prefix=as_nobody)
        self.assertEqual(status, 1)
        self.assertIn("group", self.assert_state(checks, "socket", "fail")["advice"])
        self.assert_state(checks, "configuration", "warn", "may not be read")

    def test_missing_capability(self):
        drop_in("[Service]\nCapabilityBoundingSet=~CAP_DAC_READ_SEARCH\n")
        systemctl("start", SERVICE, check=False)
        # Doctor's own connection would start it again.
        systemctl("stop", "hostwatchd.socket")
        status, checks = self.doctor()
        self.assertEqual(status, 1, checks)
        self.assert_state(checks, "unit", "fail", "CAP_DAC_READ_SEARCH")

    def test_no_catalog_and_leftovers(self):
        # Without an entry at all the catalog would stay as it is.
        CATALOG.write_text(CATALOG.read_text().replace("-- 4e21ef60", "-- 00000000"))
        run("journalctl", "--update-catalog")
        systemctl("start", SERVICE)
        CONFIG.with_name("hostwatchd.toml.new").write_text("")
        self.addCleanup(CONFIG.with_name("hostwatchd.toml.new").unlink)
        mounts = pathlib.Path("/run/hostwatchfs")
        mounts.mkdir(exist_ok=True)
        (mounts / "999999999.sock").touch()
        self.addCleanup((mounts / "999999999.sock").unlink)
        status, checks = self.doctor()
        self.assertEqual(status, 0, checks)
        self.assertIn("--update-catalog",
                      self.assert_state(checks, "journal-catalog", "warn")["advice"])
        self.assert_state(checks, "leftovers", "warn", "999999999.sock")
        self.assert_state(checks, "leftovers", "warn", "hostwatchd.toml.new")

    def test_mounts(self):
        self.configure()
        systemctl("start", SERVICE)
        self.assertNotIn("mount", self.doctor()[1])
        mount = tempfile.mkdtemp(prefix="a mount-", dir="/tmp")
        self.addCleanup(os.rmdir, mount)
        server = subprocess.Popen([FS, "-f", self.share, mount])
        self.addCleanup(run, "umount", mount)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        eventually(lambda: os.path.ismount(mount))
        status, checks = self.doctor()
        self.assertEqual(status, 0, checks)
        self.assert_state(checks, "mount", "ok", f"{mount} is served")
        server.send_signal(signal.SIGSTOP)
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        self.assert_state(checks, "mount", "fail", f"{mount}: the server does not answer")
        server.kill()
        server.wait()
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        self.assertIn(f'"umount {mount}"', self.assert_state(
            checks, "mount", "fail", f"{mount} cannot be used: ")["advice"])

    def test_mount_units(self):
        """A mount that could not be made is in no table: its unit says so."""
        self.configure()
        systemctl("start", SERVICE)
        self.assertNotIn("mount-unit", self.doctor()[1])
        drop_in("[Service]\nRestart=no\n", unit=MOUNTS)
        self.addCleanup(shutil.rmtree, UNITS / f"{MOUNTS}.d")
        configurations = pathlib.Path("/etc/hostwatchfs")
        configurations.mkdir(exist_ok=True)
        for name, source in (("good", self.share), ("bad", "/run/not-there")):
            mount = tempfile.mkdtemp(prefix="mount-", dir="/tmp")
            self.addCleanup(os.rmdir, mount)
            file = configurations / f"{name}.conf"
            file.write_text(f"SOURCE={source}\nMOUNTPOINT={mount}\n")
            self.addCleanup(file.unlink)
            self.addCleanup(systemctl, "stop", f"hostwatchfs@{name}.service", check=False)
        systemctl("start", "hostwatchfs@good.service")
        systemctl("start", "hostwatchfs@bad.service", check=False)
        eventually(lambda: show("ActiveState", "hostwatchfs@bad.service") == "failed")
        status, checks = self.doctor()
        self.assertEqual(status, 1)
        self.assert_state(checks, "mount-unit", "ok", "hostwatchfs@good.service is active")
        failed = self.assert_state(checks, "mount-unit", "fail", "hostwatchfs@bad.service has failed")
        self.assertIn('"journalctl -u hostwatchfs@bad.service"', failed["advice"])
        systemctl("stop", "hostwatchfs@good.service")
        systemctl("reset-failed", "hostwatchfs@bad.service")
        status, checks = self.doctor()
        self.assertEqual(status, 0, checks)
        self.assertNotIn("mount-unit", checks)

    def other_configuration(self):
        path = pathlib.Path("/etc/hostwatchd/other.toml")
        path.write_text(f'[[share]]\nname = "other"\npath = "{self.share}"\n')
        self.addCleanup(path.unlink)
        return path

    def test_configuration_of_the_unit(self):
        """The file of ExecStart is looked at, whether the daemon runs or not."""
        other = self.other_configuration()
        drop_in(f"[Service]\nExecStart=\nExecStart={DAEMON} --config {other}\n")
        CONFIG.write_text("[limits]\nnonsense = 1\n")
        systemctl("start", SERVICE)
        status, checks = self.doctor()
        self.assertEqual(status, 0, checks)
        self.assert_state(checks, "configuration", "ok", str(other), "1 share configured")
        systemctl("stop", "hostwatchd.socket", SERVICE)
        other.write_text("[limits]\nnonsense = 1\n")
        _, checks = self.doctor()
        self.assert_state(checks, "socket", "fail")
        self.assert_state(checks, "configuration", "fail", f"{other}:2: limits.nonsense")

    def started_by_hand(self, *arguments):
        """doctor's checks of a daemon that no unit has started."""
        socket = f"{self.share}-socket"
        daemon = subprocess.Popen([DAEMON, "--socket", socket, *arguments], cwd="/etc/hostwatchd",
                                  stderr=subprocess.DEVNULL)
        try:
            eventually(lambda: os.path.exists(socket))
            return self.doctor("--socket", socket)[1]
        finally:
            daemon.terminate()
            daemon.wait()

    def test_started_by_hand(self):
        checks = self.started_by_hand("--share", f"src={self.share}")
        self.assert_state(checks, "share", "ok", "src is watched")
        self.assertNotIn("there is no share",
                         self.assert_state(checks, "configuration", "ok", f"no {CONFIG}")["finding"])
        checks = self.started_by_hand()
        self.assert_state(checks, "configuration", "ok", f"no {CONFIG}", "there is no share")
        other = self.other_configuration()
        # Relative to where it was started.
        checks = self.started_by_hand(f"--config={other.name}", "--share", f"src={self.share}")
        self.assert_state(checks, "configuration", "ok", str(other), "2 shares configured")

    def test_queue(self):
        with open("/proc/sys/fs/fanotify/max_queued_events", encoding="ascii") as file:
            value = int(file.read())
        self.configure(f"[daemon]\nqueue-events = {value + 1} # more\n")
        systemctl("start", SERVICE)
        self.assert_state(self.doctor()[1], "queue-events", "warn", str(value + 1), str(value))
        self.configure(f"[daemon]\nqueue-events = {value}\n")
        self.assert_state(self.doctor()[1], "queue-events", "ok", str(value))

    def test_text(self):
        self.configure()
        systemctl("start", SERVICE)
        done = run(CTL, "doctor")
        self.assertRegex(done.stdout, r"(?m)^ok    unit +hostwatchd.service is active$")
        self.assertRegex(done.stdout, rf"(?m)^ok    share +src is watched: {self.share}$")


if __name__ == "__main__":
    unittest.main(verbosity=2)
