# SPDX-License-Identifier: Apache-2.0
"""nodeid and generation name the very inode on which the event happened."""

import errno
import os
import signal
import subprocess
import sys

import handles
import scratch
from daemon import DaemonTest, touch, write
from histories import stop
from hostwatch import (CREATE, DELETE, DELETE_SELF, MODIFY, NOBODY, NODES, RECHECK,
                       RENAME, ROOT, SUPPRESS_ECHO, TREE)

NAMES = [b"\xff\xfe\x80not-utf-8", b"n" * 255, b"two\nlines\r\t", b" ", b"-rf *",
         "ä€😀".encode(), b"\x01\x7f", b"...", b"a\\b\"c'"]


@scratch.on_each_filesystem
class Identity(DaemonTest):
    def test_numbers_used_again(self):
        """An inode number that comes again comes with another generation."""
        client = self.session(TREE)
        expected = []
        for _ in range(60):
            fd = os.open(self.path("f"), os.O_CREAT | os.O_WRONLY)
            expected.append(handles.identity(handles.handle_at(fd)))
            os.close(fd)
            os.unlink(self.path("f"))
        records = client.records()
        self.assertEqual(len(set(expected)), len(expected))
        for kind in (CREATE, DELETE):
            # In this order; a correction may say one of them again.
            nodes = dict.fromkeys(record.node for record in records if record.mask & kind)
            self.assertEqual(list(nodes), expected)
        if self.kind == "ext4":
            self.assertLess(len({node[0] for node in expected}), len(expected),
                            "no inode number came again")

    def tries(self, with_a_pid):
        """Another process may get a pid first, and keep it."""
        if self.kind != "ext4":
            self.skipTest("the same on every filesystem")
        self.assertTrue(any(with_a_pid() for _ in range(3)), "no pid could be had again")

    def test_pid_used_again(self):
        """What a process does that has got a server's pid after that one's end is
        no echo."""
        self.tries(self.pid_used_again)

    def pid_used_again(self):
        script = "import sys\nfor line in sys.stdin: open(line[:-1], 'w').close(); print(flush=True)"
        server = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        client = self.session(TREE, options=SUPPRESS_ECHO, echo_pid=server.pid)
        server.stdin.write(self.path("own") + "\n")
        server.stdin.flush()
        server.stdout.readline()
        touch(self.path("other"))
        names = {record.name for record in client.records()}
        self.assertEqual(names, {b"other"})
        server.stdin.close()
        server.wait()
        if not self.run_as(server.pid, script, self.path("stranger")):
            return False
        self.assertIn(b"stranger", {record.name for record in client.records()})
        return True

    @staticmethod
    def run_as(pid, script, line):
        """Whether it has run with that pid."""
        for _ in range(50):  # another process may get the number first
            with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
                file.write(str(pid - 1))
            stranger = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL, text=True)
            again = stranger.pid == pid
            stranger.communicate(line + "\n" if again else "")
            if again:
                return True
        return False

    def test_pid_used_again_before_it_was_noticed(self):
        """The same while the daemon does not run: it finds what the stranger did together
        with the server's end."""
        self.tries(self.pid_used_again_before_it_was_noticed)

    def pid_used_again_before_it_was_noticed(self):
        script = "import sys\nfor line in sys.stdin: open(line[:-1], 'w').close()"
        server = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True)
        client = self.session(TREE, options=SUPPRESS_ECHO, echo_pid=server.pid)
        client.sync()
        stop(self.daemon)
        try:
            server.communicate(self.path("own") + "\n")
            if not self.run_as(server.pid, script, self.path("stranger")):
                return False
        finally:
            self.daemon.signal(signal.SIGCONT)
        self.assertIn(b"stranger", {record.name for record in client.records()})
        return True

    def test_not_another(self):
        """A node that is gone never stands for the next object of its inode."""
        client = self.session(NODES)
        nodeid = 10
        for _ in range(40):
            touch(self.path("f"))
            nodeid += 1
            self.assertEqual(client.register_path(self.path("f"), nodeid, 5), 0)
            client.sync()
            os.unlink(self.path("f"))
            touch(self.path("f"))
            write(self.path("f"))
            records = client.records()
            mine = [record for record in records if record.node == (nodeid, 5)
                    and record.mask & DELETE_SELF]
            self.assertEqual(len(mine), 1, records)
            for record in records:
                self.assertIn(record.node, (NOBODY, (nodeid, 5)))
            after = records[records.index(mine[0]) + 1:]
            self.assertFalse([record for record in after if record.node != NOBODY])
            modified = [record for record in records if record.mask & MODIFY]
            self.assertTrue(all(record.node == NOBODY for record in modified), records)
            os.unlink(self.path("f"))
            client.sync()

    def test_same_nodeid_next_generation(self):
        client = self.session(NODES)
        for generation in range(1, 20):
            touch(self.path("f"))
            self.assertEqual(client.register_path(self.path("f"), 9, generation), 0)
            client.sync()
            write(self.path("f"))
            changed = [record for record in client.records() if record.mask & MODIFY]
            self.assertEqual({record.node for record in changed}, {(9, generation)})
            os.unlink(self.path("f"))
            records = client.records()
            self.assertTrue(records[-1].mask & DELETE_SELF, records)
            self.assertEqual(records[-1].node, (9, generation))
            client.forget((9, generation))

    def test_registered_again(self):
        """Another identity for the same object replaces the old one."""
        touch(self.path("f"))
        client = self.session(NODES)
        self.assertEqual(client.register_path(self.path("f"), 9, 1), 0)
        self.assertEqual(client.register_path(self.path("f"), 9, 1), 0)
        self.assertEqual(client.register_path(self.path("f"), 10, 4), 0)
        client.sync()
        write(self.path("f"))
        self.assertEqual({record.node for record in client.records()}, {(10, 4)})
        # The old one is free now.
        touch(self.path("g"))
        self.assertEqual(client.register_path(self.path("g"), 9, 1), 0)

    def test_taken(self):
        touch(self.path("f"))
        touch(self.path("g"))
        client = self.session(NODES)
        self.assertEqual(client.register_path(self.path("f"), 9, 1), 0)
        self.assertEqual(client.register_path(self.path("g"), 9, 1), -errno.EEXIST)
        self.assertEqual(client.register_path(self.share, 9, 2), -errno.EEXIST)
        os.unlink(self.path("f"))  # taken until FORGET, gone or not
        client.sync()
        self.assertEqual(client.register_path(self.path("g"), 9, 1), -errno.EEXIST)
        client.forget((9, 1))
        self.assertEqual(client.register_path(self.path("g"), 9, 1), 0)

    def test_two_sessions(self):
        """Each session is told its own numbers, though they stand for other objects
        in the other session, and knows nothing of what that one registered."""
        os.mkdir(self.path("d"))
        for name in ("f", "g"):
            touch(self.path(name))
        first, second = self.session(NODES), self.session(NODES)
        for client, nodes in ((first, {"f": (10, 1), "g": (11, 2), "d": (12, 3)}),
                              (second, {"f": (11, 2), "g": (10, 1)})):
            for name, node in nodes.items():
                self.assertEqual(client.register_path(self.path(name), *node), 0)
            client.sync()

        def told(client):
            return {(record.dir, record.name, record.new_dir, record.new_name, record.node)
                    for record in client.records()}

        write(self.path("f"))
        self.assertEqual(told(first), {(ROOT, b"f", NOBODY, b"", (10, 1))})
        self.assertEqual(told(second), {(ROOT, b"f", NOBODY, b"", (11, 2))})
        os.rename(self.path("g"), self.path("d/h"))
        self.assertEqual(told(first), {(ROOT, b"g", (12, 3), b"h", (11, 2))})
        self.assertEqual(told(second), {(ROOT, b"g", NOBODY, b"", (10, 1))})
        first.forget((10, 1))
        first.sync()
        write(self.path("f"))
        self.assertEqual(told(first), {(ROOT, b"f", NOBODY, b"", NOBODY)})
        self.assertEqual(told(second), {(ROOT, b"f", NOBODY, b"", (11, 2))})

    def test_hard_links(self):
        """A file that has names in and outside the share."""
        touch(self.path("in"))
        out = os.path.join(self.outside, "out")
        os.link(self.path("in"), out)
        identity = handles.identity_of(out)
        tree = self.session(TREE)
        nodes = self.session(NODES)
        self.assertEqual(nodes.register_path(self.path("in"), 5, 5), 0)
        nodes.sync()
        write(out)
        self.assertEqual(tree.records(), [])
        seen = nodes.records()
        self.assertTrue(seen)
        for record in seen:
            self.assertEqual((record.dir, record.node, record.name), (NOBODY, (5, 5), b""))
        write(self.path("in"))
        self.assertEqual({(record.dir, record.node, record.name) for record in tree.records()},
                         {(ROOT, identity, b"in")})
        os.link(out, self.path("second"))
        os.unlink(out)
        made = [record for record in tree.records() if record.mask & CREATE]
        self.assertEqual([(record.node, record.name) for record in made],
                         [(identity, b"second")])
        os.rename(self.path("second"), os.path.join(self.outside, "third"))
        os.unlink(self.path("in"))
        last = nodes.records()
        self.assertFalse([record for record in last if record.mask & DELETE_SELF])
        os.unlink(os.path.join(self.outside, "third"))
        self.assertTrue(nodes.records()[-1].mask & DELETE_SELF)

    def test_names(self):
        """Names are bytes as the filesystem has them."""
        tree = self.session(TREE)
        nodes = self.session(NODES)
        there = os.fsencode(self.share)
        names = []
        for name in NAMES:
            try:
                os.mkdir(os.path.join(there, name))
            except OSError:
                continue  # a filesystem may refuse one
            names.append(name)
            os.rename(os.path.join(there, name), os.path.join(there, name[:-1] + b"~"))
        self.assertIn(b"\xff\xfe\x80not-utf-8", names)
        for client in (tree, nodes):
            records = client.records()
            created = [record.name for record in records if record.mask & CREATE]
            renamed = [(record.name, record.new_name) for record in records
                       if record.mask & RENAME]
            self.assertEqual(created, names)
            self.assertEqual(renamed, [(name, name[:-1] + b"~") for name in names])

    def test_registration_race(self):
        """A change between lookup and registration is not missed."""
        client = self.session(NODES)
        touch(self.path("f"))
        held = os.open(self.path("f"), os.O_PATH)
        self.addCleanup(os.close, held)
        status = os.stat(held)
        since = divmod(status.st_ctime_ns, 1000000000)
        client.sync()
        write(self.path("f"))
        self.assertEqual(client.register_path(self.path("f"), 5, 1, since=since), 0)
        rechecks = [record for record in client.records() if record.flags & RECHECK]
        self.assertEqual([record.node for record in rechecks], [(5, 1)])

    def test_since(self):
        """`since` against the object's ctime, with nobody's record to help."""
        for name in ("old", "new"):
            touch(self.path(name))
            os.mkdir(self.path("d" + name))
        client = self.session(NODES)
        number = 10
        expected = set()
        for name in ("old", "new", "dold", "dnew"):
            number += 1
            changed = os.stat(self.path(name)).st_ctime_ns
            since = divmod(changed - (1 if "new" in name else 0), 1000000000)
            self.assertEqual(client.register_path(self.path(name), number, since=since), 0)
            if "new" in name:
                expected.add((number, 0))
        rechecks = {record.node for record in client.records() if record.flags & RECHECK}
        self.assertEqual(rechecks, expected)


class SameHandle(DaemonTest):
    """On btrfs an st_dev that is not known may be a subvolume's, and the handle has to
    tell: one that opens here, too, does not make another filesystem's object one of this."""

    kind = "btrfs"

    def test_elsewhere(self):
        other = scratch.Mount("btrfs")
        self.addCleanup(other.remove)
        self.assertEqual(handles.handle_of(other.path), handles.handle_of(self.mount.path))
        client = self.session(NODES)
        self.assertEqual(client.register_path(other.path, 5), -errno.EXDEV)
        self.assertEqual(client.register_path(self.mount.path, 5), 0)
