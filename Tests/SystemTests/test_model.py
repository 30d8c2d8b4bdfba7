# SPDX-License-Identifier: Apache-2.0
"""Convergence: whatever happens, and however the kernel merges it, a model kept
by the records equals the filesystem at SYNC."""

import os
import random
import shutil
import subprocess
import sys
import unittest

import handles
import scratch
from daemon import DaemonTest, touch, write
from hostwatch import NODES, TREE
from model import NodesModel, TreeModel

_repository = None


def sample_repository():
    """A git repository with two branches that differ in most files."""
    global _repository
    if _repository:
        return _repository
    if not shutil.which("git"):
        raise unittest.SkipTest("git is missing")
    path = scratch.new_path("repository")
    os.mkdir(path)
    environment = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null",
                       GIT_AUTHOR_NAME="t", GIT_AUTHOR_EMAIL="t@t",
                       GIT_COMMITTER_NAME="t", GIT_COMMITTER_EMAIL="t@t")

    def git(*arguments):
        scratch.run("git", "-C", path, *arguments, env=environment)

    def fill(word, directories):
        for directory in range(directories):
            below = os.path.join(path, f"{word}{directory}", "below")
            os.makedirs(below, exist_ok=True)
            for number in range(12):
                write(os.path.join(below, f"file{number}"), f"{word} {number}\n".encode())

    git("init", "-q", "-b", "main")
    fill("one", 10)
    git("add", ".")
    git("commit", "-qm", "one")
    git("checkout", "-qb", "other")
    shutil.rmtree(os.path.join(path, "one3"))
    os.rename(os.path.join(path, "one4"), os.path.join(path, "moved"))
    write(os.path.join(path, "one5"[:-1] + "6", "below", "file1"), b"changed")
    fill("two", 8)
    git("add", "-A")
    git("commit", "-qm", "two")
    git("checkout", "-q", "main")
    _repository = path
    return path


def quiet_git(*arguments):
    return ["env", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
            "git", "-c", "gc.auto=0", *arguments]


@scratch.on_each_filesystem
class Model(DaemonTest):
    def models(self):
        tree = TreeModel(self.session(TREE), self.share)
        nodes = NodesModel(self.session(NODES), self.share)
        self.addCleanup(nodes.close)
        self.kept = (tree, nodes)
        return self.kept

    def clients(self):
        return [model.client for model in self.kept]

    def check(self, step=""):
        for model in self.kept:
            wrong = model.check()
            if wrong:
                self.fail(f"{type(model).__name__} after {step}: {wrong}\n"
                          f"{self.daemon.log()[-2000:]}")

    def step(self, *command, **options):
        self.run_reading(list(command), *self.clients(), **options)
        self.check(" ".join(command[:8]))

    def test_git(self):
        source = sample_repository()
        self.models()
        self.step(*quiet_git("clone", "-q", "--no-hardlinks", source, self.path("clone")))
        clone = self.path("clone")
        for branch in ("origin/other", "main", "origin/other", "main"):
            self.step(*quiet_git("-C", clone, "checkout", "-q", branch))
        self.step(*quiet_git("-C", clone, "gc", "-q", "--prune=now"))
        self.step("rm", "-rf", clone)

    def test_tar(self):
        archive = scratch.new_path("archive.tar")
        scratch.run("tar", "-C", sample_repository(), "-cf", archive, ".")
        self.models()
        self.step("tar", "-C", self.share, "-xf", archive)
        self.step("tar", "-C", self.share, "-xf", archive)
        self.step("tar", "-C", self.share, "--recursive-unlink", "-xf", archive)

    @unittest.skipUnless(shutil.which("rsync"), "rsync is missing")
    def test_rsync(self):
        source = os.path.join(self.outside, "source")
        shutil.copytree(sample_repository(), source, symlinks=True)
        self.models()
        target = self.path("target")
        self.step("rsync", "-a", "--delete", source + "/", target)
        shutil.rmtree(os.path.join(source, "one1"))
        os.rename(os.path.join(source, "one2"), os.path.join(source, "renamed"))
        write(os.path.join(source, "one5", "below", "file5"), b"much longer than it was")
        self.step("rsync", "-a", "--delete", source + "/", target)
        self.step("rsync", "-a", "--delete", "--inplace", self.outside + "/", target)

    def test_venv(self):
        self.models()
        # Debian's python3 has no ensurepip without python3-venv.
        self.step(sys.executable, "-m", "venv", "--without-pip", self.path("venv"))
        self.step("rm", "-rf", self.path("venv"))

    def test_boundary(self):
        os.makedirs(self.path("d/e"))
        touch(self.path("d/e/f"))
        self.models()
        out = os.path.join(self.outside, "d")
        os.rename(self.path("d"), out)
        self.check("moved out")
        touch(os.path.join(out, "new"))
        os.makedirs(os.path.join(out, "e/deeper"))
        os.unlink(os.path.join(out, "e/f"))
        self.check("changed outside")
        touch(os.path.join(out, "e/deeper/g"))
        os.rename(out, self.path("back"))
        touch(self.path("back/e/deeper/h"))
        os.rename(self.path("back/e"), self.path("back/e2"))
        self.check("moved in and changed")
        os.rename(self.path("back/e2"), os.path.join(self.outside, "e2"))
        touch(os.path.join(self.outside, "e2/i"))
        os.rename(os.path.join(self.outside, "e2"), self.path("e3"))
        touch(self.path("e3/j"))
        self.check("out and in within one batch")
        self.step("cp", "-a", self.path("e3"), os.path.join(self.outside, "copy"))
        os.rename(os.path.join(self.outside, "copy"), self.path("copy"))
        self.step("rm", "-rf", self.path("copy"), self.path("back"))

    def test_exchange(self):
        for directory in ("a", "b"):
            os.makedirs(self.path(directory, "inner"))
            touch(self.path(directory, "inner", directory))
        os.makedirs(os.path.join(self.outside, "c/inner"))
        touch(os.path.join(self.outside, "c/inner/c"))
        self.models()
        handles.exchange(self.path("a"), self.path("b"))
        self.check("exchanged")
        handles.exchange(self.path("a/inner"), self.path("b"))
        touch(self.path("a/inner/new"))
        self.check("exchanged over levels")
        handles.exchange(self.path("a"), os.path.join(self.outside, "c"))
        touch(self.path("a/inner/fresh"))
        touch(os.path.join(self.outside, "c/elsewhere"))
        self.check("exchanged over the boundary")
        for _ in range(3):
            handles.exchange(self.path("a"), os.path.join(self.outside, "c"))
        touch(self.path("a/late"))
        self.check("exchanged again and again")

    def test_cycles(self):
        touch(self.path("A"))
        os.mkdir(self.path("D"))
        touch(self.path("D/inside"))
        self.models()
        for a, b in (("A", "B"), ("D", "E")):
            for _ in range(3):
                os.rename(self.path(a), self.path(b))
                os.rename(self.path(b), self.path(a))
            os.rename(self.path(a), self.path(b))
        self.check("there and back and there")
        touch(self.path("x"))
        for _ in range(2):
            os.link(self.path("x"), self.path("y"))
            os.unlink(self.path("y"))
        self.check("gone")
        os.link(self.path("x"), self.path("y"))
        os.unlink(self.path("y"))
        os.link(self.path("x"), self.path("y"))
        self.check("there")
        write(self.path("x"), b"1")
        os.rename(self.path("x"), self.path("z"))
        os.rename(self.path("z"), self.path("x"))
        os.unlink(self.path("x"))
        self.check("deleted in an early record")
        for number in range(50):
            os.mkdir(self.path("again"))
            touch(self.path("again", str(number)))
            if number % 2:
                shutil.rmtree(self.path("again"))
            else:
                os.rename(self.path("again"), self.path(f"again{number}"))
        self.check("one name, many directories")

    def test_random(self):
        """Random renames, links and deletions among few names, so that the kernel
        merges as much as it can; the seed is in the failure's message."""
        seed = int(os.environ.get("HOSTWATCH_SEED", random.randrange(1 << 32)))
        dice = random.Random(seed)
        places = [self.path("p"), self.path("q"), self.path("p/r"), self.outside]
        for place in places:
            os.makedirs(place, exist_ok=True)
        self.models()

        def somewhere():
            return os.path.join(dice.choice(places), dice.choice("abc"))

        steps = [
            lambda: touch(somewhere()), lambda: os.mkdir(somewhere()),
            lambda: os.unlink(somewhere()), lambda: os.rmdir(somewhere()),
            lambda: os.rename(somewhere(), somewhere()),
            lambda: os.rename(somewhere(), somewhere()),
            lambda: os.link(somewhere(), somewhere()),
            lambda: handles.exchange(somewhere(), somewhere()),
            lambda: write(somewhere(), b"x"),
            lambda: touch(os.path.join(somewhere(), "below")),
            lambda: os.unlink(os.path.join(somewhere(), "below")),
        ]
        for turn in range(60):
            for _ in range(dice.randrange(1, 25)):
                try:
                    dice.choice(steps)()
                except OSError:
                    pass
            self.check(f"turn {turn} of seed {seed}")

    def test_while_reading(self):
        """The same with a second process that changes things all the time, so
        that records arrive between reads and lookups race."""
        script = (
            "import os,random,sys\n"
            "r=random.Random(int(sys.argv[1]));d=sys.argv[2:]\n"
            "p=lambda: os.path.join(r.choice(d),r.choice('abcdef'))\n"
            "for _ in range(4000):\n"
            "  try: r.choice([lambda: os.rename(p(),p()), lambda: os.mkdir(p()),\n"
            "    lambda: os.close(os.open(p(),os.O_CREAT|os.O_WRONLY)), lambda: os.unlink(p()),\n"
            "    lambda: os.rename(p(),p()), lambda: os.link(p(),p()), lambda: os.rmdir(p())])()\n"
            "  except OSError: pass\n")
        os.makedirs(self.path("m/n"))
        self.models()
        seed = random.randrange(1 << 32)
        writers = [subprocess.Popen([sys.executable, "-c", script, str(seed + number),
                                     self.share, self.path("m"), self.path("m/n"), self.outside])
                   for number in range(2)]
        while any(writer.poll() is None for writer in writers):
            for model in self.kept:
                model.apply_all(model.client.sync())
        self.assertEqual([writer.wait() for writer in writers], [0, 0])
        self.check(f"two writers, seed {seed}")
