# SPDX-License-Identifier: Apache-2.0
"""Each kind of change, once, on a quiet filesystem: exactly the records that the
protocol promises, in both modes.

Records are compared as text: MASK directory/name [> directory/name] =object
[FLAGS], with the names that the test gives to objects; "-" is node 0.
"""

import fcntl
import mmap
import os

import handles
import scratch
from daemon import DaemonTest, touch, write
from hostwatch import (FLAG_NAMES, NOBODY, NODES, RECHECK, RENAME, ROOT, TREE, WANT_PATH,
                       mask_text, merge_changes)


class RecordsTest(DaemonTest):
    mode = None

    def setUp(self):
        super().setUp()
        self.names = {NOBODY: "-", ROOT: "root"}
        self.ids = {}
        self.last = 100

    def begin(self, *registered):
        """Starts the session; in NODES the given paths are registered, in that
        order, each under the name that it has here."""
        self.client = self.session(self.mode)
        for path in registered:
            self.know(os.path.basename(path), self.path(path))
        for record in self.client.records():
            # What the set-up did may be news to a session before this one.
            self.assertEqual(record.flags, RECHECK, record)

    def know(self, name, path):
        """Gives the object at `path` a name, and in NODES a node."""
        if self.mode == TREE:
            self.names[handles.identity_of(path)] = name
            return
        self.last += 1
        node = (self.last, self.last * 3)
        self.assertEqual(self.client.register_path(path, *node), 0, path)
        self.names[node] = name
        self.ids[name] = node

    def show(self, record):
        def side(node, name):
            return f"{self.names.get(node, node)}/{os.fsdecode(name)}"

        text = mask_text(record.mask) or "0"
        if record.dir != NOBODY or record.name or record.mask & RENAME:
            text += " " + side(record.dir, record.name)
        if record.mask & RENAME:
            text += " > " + side(record.new_dir, record.new_name)
        text += f" ={self.names.get(record.node, record.node)}"
        flags = mask_text(record.flags, FLAG_NAMES)
        return text + (f" {flags}" if flags else "")

    def seen(self):
        return [self.show(record) for record in merge_changes(self.client.records())]

    def expect(self, *lines, **other):
        """The records since the last call. `tree` and `nodes` replace the lines
        in that mode."""
        key = "tree" if self.mode == TREE else "nodes"
        lines = other.get(key, lines)
        self.assertEqual(self.seen(), list(lines))


class Rows:
    def test_create_write_close(self):
        self.begin()
        file = os.open(self.path("f"), os.O_WRONLY | os.O_CREAT)
        if self.mode == TREE:
            self.know("f", self.path("f"))
            self.expect("CREATE root/f =f")
        else:
            self.expect("CREATE root/f =-")
            self.know("f", self.path("f"))
            self.client.sync()  # a RECHECK may come: f was routed a moment ago
        os.write(file, b"x")
        self.expect("MODIFY root/f =f")
        os.close(file)
        self.expect("CLOSE_WRITE root/f =f")

    def test_create_at_once(self):
        """The kernel ORs all of it into one record; CREATE stands alone."""
        self.begin()
        write(self.path("f"), b"x")
        if self.mode == TREE:
            self.know("f", self.path("f"))
        self.expect(tree=["CREATE root/f =f", "MODIFY|CLOSE_WRITE root/f =f"],
                    nodes=["CREATE root/f =-", "MODIFY|CLOSE_WRITE root/f =-"])

    def test_other_kinds(self):
        self.begin()
        os.mkdir(self.path("d"))
        os.symlink("nowhere", self.path("s"))
        os.mkfifo(self.path("p"))
        if self.mode == TREE:
            for name in "dsp":
                self.know(name, self.path(name))
        self.expect("CREATE|ISDIR root/d =d", "CREATE root/s =s", "CREATE root/p =p",
                    nodes=["CREATE|ISDIR root/d =-", "CREATE root/s =-", "CREATE root/p =-"])

    def test_rename(self):
        os.mkdir(self.path("d"))
        touch(self.path("f"))
        self.begin("d", "f")
        os.rename(self.path("f"), self.path("g"))
        self.expect("RENAME root/f > root/g =f")
        os.rename(self.path("g"), self.path("d/h"))
        self.expect("RENAME root/g > d/h =f")

    def test_rename_over(self):
        for name in ("f", "victim"):
            touch(self.path(name))
        self.begin("f", "victim")
        os.rename(self.path("f"), self.path("victim"))
        self.expect("RENAME root/f > root/victim =f REPLACED",
                    nodes=["RENAME root/f > root/victim =f REPLACED",
                           "ATTRIB|DELETE_SELF =victim"])

    def test_rename_over_open(self):
        for name in ("f", "victim"):
            touch(self.path(name))
        self.begin("f", "victim")
        with open(self.path("victim"), "rb"):
            os.rename(self.path("f"), self.path("victim"))
            self.expect("RENAME root/f > root/victim =f REPLACED",
                        nodes=["RENAME root/f > root/victim =f REPLACED",
                               "ATTRIB =victim"])
        self.expect(tree=[], nodes=["DELETE_SELF =victim"])

    def test_rename_over_linked(self):
        for name in ("f", "victim"):
            touch(self.path(name))
        os.link(self.path("victim"), self.path("other"))
        self.begin("f", "victim")
        os.rename(self.path("f"), self.path("victim"))
        self.expect("RENAME root/f > root/victim =f REPLACED",
                    nodes=["RENAME root/f > root/victim =f REPLACED", "ATTRIB =victim"])

    def test_rename_directory_over(self):
        os.mkdir(self.path("d"))
        os.mkdir(self.path("victim"))
        self.begin("d", "victim")
        os.rename(self.path("d"), self.path("victim"))
        self.expect("RENAME|ISDIR root/d > root/victim =d REPLACED",
                    "ATTRIB|DELETE_SELF|ISDIR victim/ =victim")

    def test_exchange(self):
        touch(self.path("a"))
        os.mkdir(self.path("b"))
        self.begin("a", "b")
        handles.exchange(self.path("a"), self.path("b"))
        seen = [line.removesuffix(" CORRECTED") for line in self.seen()]
        self.assertEqual(seen, ["RENAME root/a > root/b =a",
                                "RENAME|ISDIR root/b > root/a =b"])

    def test_hard_links(self):
        os.mkdir(self.path("d"))
        touch(self.path("f"))
        self.begin("d", "f")
        os.link(self.path("f"), self.path("d/g"))
        self.expect("CREATE d/g =f", nodes=["ATTRIB =f", "CREATE d/g =f"])
        write(self.path("d/g"), b"x", "ab")
        self.expect("MODIFY|CLOSE_WRITE d/g =f")
        os.unlink(self.path("f"))
        self.expect("DELETE root/f =f", nodes=["ATTRIB =f", "DELETE root/f =f"])

    def test_unlink(self):
        touch(self.path("f"))
        self.begin("f")
        os.unlink(self.path("f"))
        seen = self.seen()
        if self.mode == TREE:
            self.assertEqual(seen, ["DELETE root/f =f"])
        else:  # the link count before or after; DELETE_SELF is the last
            self.assertIn(seen, (["ATTRIB =f", "DELETE root/f =f", "DELETE_SELF =f"],
                                 ["DELETE root/f =f", "ATTRIB|DELETE_SELF =f"]))

    def test_unlink_open(self):
        """A write after the unlink is about the old object, though the name is
        in use again."""
        touch(self.path("f"))
        self.begin("f")
        with open(self.path("f"), "r+b", buffering=0) as file:
            os.unlink(self.path("f"))
            self.expect("DELETE root/f =f", nodes=["ATTRIB =f", "DELETE root/f =f"])
            touch(self.path("f"))
            self.client.sync()
            file.write(b"x")
            records = merge_changes(self.client.records())
            self.assertEqual([mask_text(record.mask) for record in records], ["MODIFY"])
            self.assertEqual(self.names.get(records[0].node), "f")
        last = self.seen()
        self.assertIn("CLOSE_WRITE", last[0])
        if self.mode == NODES:
            self.assertIn("DELETE_SELF", last[-1])
        self.assertTrue(all(line.endswith("=f") for line in last), last)

    def test_rmdir(self):
        os.mkdir(self.path("d"))
        self.begin("d")
        os.rmdir(self.path("d"))
        self.expect("DELETE|ISDIR root/d =d", "DELETE_SELF|ISDIR d/ =d")

    def test_attributes(self):
        os.mkdir(self.path("d"))
        touch(self.path("f"))
        self.begin("d", "f")
        os.chmod(self.path("f"), 0o600)
        self.expect("ATTRIB root/f =f")
        os.truncate(self.path("f"), 100)
        self.expect("MODIFY root/f =f")
        os.chmod(self.path("d"), 0o700)
        self.expect("ATTRIB|ISDIR d/ =d")
        os.chmod(self.share, 0o700)
        self.expect("ATTRIB|ISDIR root/ =root")

    def test_nameless(self):
        """An O_TMPFILE object's #inode name never gets out."""
        self.begin()
        file = os.open(self.share, os.O_TMPFILE | os.O_RDWR)
        os.write(file, b"x")
        first = self.client.records()
        handles.link_descriptor(file, self.path("f"))
        self.know("f", self.path("f"))
        shown = [self.show(record) for record in merge_changes(first)]
        self.assertEqual(shown, ["MODIFY root/ =f"] if self.mode == TREE else [])
        linked = [line for line in self.seen() if not line.startswith("0 =f RECHECK")]
        self.assertEqual(linked, ["CREATE root/f =f"] if self.mode == TREE
                         else ["CREATE root/f =-"])
        os.write(file, b"y")
        os.close(file)
        self.expect("MODIFY|CLOSE_WRITE root/ =f", nodes=["MODIFY|CLOSE_WRITE =f"])

    def test_directory_move(self):
        """Descendants are silent, and keep their identity afterwards."""
        os.makedirs(self.path("d/e"))
        touch(self.path("d/e/f"))
        self.begin("d", "d/e", "d/e/f")
        os.rename(self.path("d"), self.path("d2"))
        self.expect("RENAME|ISDIR root/d > root/d2 =d")
        write(self.path("d2/e/f"), b"x")
        self.expect("MODIFY|CLOSE_WRITE e/f =f")

    def test_boundary(self):
        os.mkdir(self.path("d"))
        touch(self.path("f"))
        self.begin("d", "f")
        os.rename(self.path("f"), os.path.join(self.outside, "f"))
        self.expect("RENAME root/f > -/ =f MOVED_OUT")
        write(os.path.join(self.outside, "f"))
        self.expect(tree=[], nodes=["MODIFY|CLOSE_WRITE =f"])
        os.rename(os.path.join(self.outside, "f"), os.path.join(self.outside, "g"))
        self.expect(tree=[], nodes=["RENAME -/ > -/ =f MOVED_OUT|MOVED_IN"])
        os.rename(os.path.join(self.outside, "g"), self.path("d/g"))
        self.expect("RENAME -/ > d/g =f MOVED_IN")
        os.rename(self.path("d"), os.path.join(self.outside, "d"))
        self.expect("RENAME|ISDIR root/d > -/ =d MOVED_OUT")
        os.rename(os.path.join(self.outside, "d"), self.path("d"))
        self.expect("RENAME|ISDIR -/ > root/d =d MOVED_IN")

    def test_outside(self):
        """What happens elsewhere on the filesystem is nobody's business."""
        self.begin()
        write(os.path.join(self.outside, "f"))
        os.mkdir(os.path.join(self.outside, "d"))
        os.rename(os.path.join(self.outside, "f"), os.path.join(self.outside, "d/f"))
        os.chmod(self.outside, 0o700)
        self.expect()

    def test_contents_by_other_calls(self):
        """fallocate, copy_file_range and a reflink are MODIFY, as write is."""
        write(self.path("f"))
        write(self.path("source"), b"x" * 65536)
        self.begin("f")
        file = os.open(self.path("f"), os.O_RDWR)
        source = os.open(self.path("source"), os.O_RDONLY)
        try:
            os.posix_fallocate(file, 0, 65536)
            self.expect("MODIFY root/f =f")
            self.assertEqual(os.copy_file_range(source, file, 4096, 0, 0), 4096)
            self.expect("MODIFY root/f =f")
            if self.kind == "btrfs":
                fcntl.ioctl(file, 0x40049409, source)  # FICLONE
                self.expect("MODIFY root/f =f")
        finally:
            os.close(source)
            os.close(file)
        self.expect("CLOSE_WRITE root/f =f")

    def test_mapped_store(self):
        """A store into a mapping is silent, with msync, too."""
        write(self.path("f"), b"x" * 4096)
        self.begin("f")
        file = os.open(self.path("f"), os.O_RDWR)
        with mmap.mmap(file, 4096) as mapping:
            os.close(file)
            mapping[0:5] = b"hello"
            mapping.flush()
            self.expect()
        self.expect("CLOSE_WRITE root/f =f")

    def test_cold_handle(self):
        """A file opened by its handle, as knfsd does, with no name in the cache:
        the object alone. TREE has no record without a directory."""
        if self.kind == "tmpfs":
            self.skipTest("tmpfs keeps every name in the cache")
        write(self.path("f"))
        handle = handles.handle_of(self.path("f"))
        self.begin("f")
        for _ in range(3):
            with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
                file.write("2")
        mount = os.open(self.base, os.O_RDONLY)
        try:
            file = handles.open_handle(mount, handle, os.O_WRONLY)
        finally:
            os.close(mount)
        os.write(file, b"yy")
        self.expect(tree=[], nodes=["MODIFY =f"])
        os.close(file)
        self.expect(tree=[], nodes=["CLOSE_WRITE =f"])

    def test_silent_kinds(self):
        """Opening and reading is not reported unless asked for."""
        write(self.path("f"))
        self.begin("f")
        with open(self.path("f"), "rb") as file:
            file.read()
        os.listdir(self.share)
        self.expect()


@scratch.on_each_filesystem
class Tree(Rows, RecordsTest):
    mode = TREE

    def test_paths(self):
        os.makedirs(self.path("d/e"))
        touch(self.path("d/e/f"))
        client = self.session(TREE, options=WANT_PATH)
        os.rename(self.path("d/e/f"), self.path("g"))
        record, = client.records()
        self.assertEqual((record.path, record.new_path), (b"d/e", b""))
        os.rename(self.path("d"), self.path("x"))
        record, = client.records()
        self.assertEqual((record.path, record.new_path), (b"", b""))
        write(self.path("x/e/h"))
        records = client.records()
        self.assertTrue(records)
        for record in records:
            self.assertEqual((record.path, record.name), (b"x/e", b"h"))
        os.rename(self.path("g"), os.path.join(self.outside, "g"))
        record, = client.records()
        self.assertEqual((record.path, record.new_path), (b"", b""))


@scratch.on_each_filesystem
class Nodes(Rows, RecordsTest):
    mode = NODES

    def test_unregistered(self):
        """Only what is registered is named; the rest is node 0."""
        os.makedirs(self.path("d/e"))
        touch(self.path("d/f"))
        self.begin()
        write(self.path("d/f"))
        os.rename(self.path("d/f"), self.path("d/e/f"))
        self.expect()
        os.rename(self.path("d/e/f"), self.path("f"))
        self.expect("RENAME -/ > root/f =- MOVED_IN")
        os.rename(self.path("f"), self.path("d/f"))
        self.expect("RENAME root/f > -/ =- MOVED_OUT")

    def test_file_alone(self):
        """A registered file is reported wherever its directory is unknown."""
        os.mkdir(self.path("d"))
        touch(self.path("d/f"))
        self.begin("d/f")
        write(self.path("d/f"))
        self.expect("MODIFY|CLOSE_WRITE =f")
        os.unlink(self.path("d/f"))
        seen = self.seen()
        self.assertIn("DELETE_SELF", seen[-1])
        self.assertTrue(all(line.endswith(" =f") and "/" not in line for line in seen), seen)
