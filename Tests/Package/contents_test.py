# SPDX-License-Identifier: Apache-2.0
"""What is in the packages: run by `run`, which has made them in PACKAGES."""

import gzip
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = pathlib.Path(os.environ["PACKAGES"])
NEXT = pathlib.Path(os.environ["NEXT"])
CLIENT = """
#include <hostwatch.h>
#include <stdio.h>
int main(void)
{
	struct hostwatch_options options;
	struct hostwatch *h;
	hostwatch_options_init(&options, sizeof(options));
	options.socket_path = "/nonexistent/socket";
	options.share = "src";
	printf("%d\\n", hostwatch_open(&options, &h));
	return 0;
}
"""
ENOENT = "-2"


def run(*command, check=True, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.returncode}: {done.stderr}{done.stdout}")
    return done


def setUpModule():
    """Every package unpacked into one tree."""
    global TREE, SCRATCH, VERSION, LIBRARIES
    SCRATCH = tempfile.TemporaryDirectory(prefix="hostwatch-package-")
    unittest.addModuleCleanup(SCRATCH.cleanup)
    TREE = pathlib.Path(SCRATCH.name, "tree")
    for package in sorted(PACKAGES.glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(TREE))
    VERSION = run(str(ROOT / "scripts/version")).stdout.strip()
    (LIBRARIES,) = [path.parent for path in TREE.glob("usr/lib/*/libhostwatch.a")]


def fields(name, *wanted):
    (package,) = PACKAGES.glob(f"{name}_*.deb")
    return [run("dpkg-deb", "-f", str(package), field).stdout.strip() for field in wanted]


class Packages(unittest.TestCase):
    def test_versions_agree(self):
        run(str(ROOT / "scripts/version"), "--check")
        for name in ("hostwatchd", "hostwatchfs", "libhostwatch0", "libhostwatch-dev"):
            self.assertEqual(fields(name, "Version"), [VERSION])
        for program in ("usr/sbin/hostwatchd", "usr/bin/hostwatchctl", "usr/bin/hostwatchfs"):
            self.assertIn(VERSION, run(str(TREE / program), "--version").stdout)

    def test_dependencies(self):
        (depends,) = fields("hostwatchd", "Depends")
        names = re.findall(r"([\w.+-]+)(?: \(.*?\))?(?:, |$)", depends)
        self.assertEqual(
            sorted(names), ["libc6", "libgcc-s1", "libstdc++6", "libsystemd0", "passwd", "systemd"])
        (depends,) = fields("hostwatchfs", "Depends")
        self.assertIn("libfuse3-3", depends)
        self.assertIn("hostwatchd", depends)
        (depends,) = fields("libhostwatch0", "Depends")
        self.assertRegex(depends, r"^libc6 \(>= [\d.]+\)$")

    def test_programs_need_no_swift(self):
        for program in ("usr/sbin/hostwatchd", "usr/bin/hostwatchctl", "usr/bin/hostwatchfs"):
            dynamic = run("readelf", "-Wd", str(TREE / program)).stdout
            self.assertNotRegex(dynamic, "swift|Foundation")
            self.assertNotRegex(dynamic, r"\((RPATH|RUNPATH)\)")
            self.assertIn("BIND_NOW", dynamic)

    def test_every_file_is_dated_and_nothing_can_be_written_by_others(self):
        for path in TREE.rglob("*"):
            if not path.is_symlink():
                self.assertEqual(path.stat().st_mode & 0o022, 0, path)

    def test_same_commit_gives_the_same_files(self):
        # NEXT was made a second time, under another version.
        for package in PACKAGES.glob("*.deb"):
            (again,) = NEXT.glob(package.name.replace(f"_{VERSION}_", f"_{VERSION}+next_"))
            sums = []
            for each in (package, again):
                tree = tempfile.mkdtemp(dir=SCRATCH.name)
                run("dpkg-deb", "-e", str(each), tree)
                sums.append(pathlib.Path(tree, "md5sums").read_text())
            self.assertEqual(*sums)

    def test_conffile(self):
        tree = tempfile.mkdtemp(dir=SCRATCH.name)
        (package,) = PACKAGES.glob("hostwatchd_*.deb")
        run("dpkg-deb", "-e", str(package), tree)
        self.assertEqual(
            pathlib.Path(tree, "conffiles").read_text(), "/etc/hostwatchd/hostwatchd.toml\n")

    def test_units_name_what_is_installed(self):
        for unit in TREE.glob("usr/lib/systemd/system/*.service"):
            for program in re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.M):
                self.assertTrue(os.access(f"{TREE}{program}", os.X_OK), program)

    def test_uninstall_takes_all_away_but_the_configuration(self):
        there = pathlib.Path(SCRATCH.name, "there")
        run("make", "-s", "-C", str(ROOT), "uninstall", f"DESTDIR={there}", "PREFIX=/opt/hw")
        run(str(ROOT / "scripts/install"), str(there), "/opt/hw")
        self.assertIn("/opt/hw/sbin/hostwatchd",
                      (there / "opt/hw/lib/systemd/system/hostwatchd.service").read_text())
        run("make", "-s", "-C", str(ROOT), "uninstall", f"DESTDIR={there}", "PREFIX=/opt/hw")
        left = [str(path.relative_to(there)) for path in there.rglob("*") if not path.is_dir()]
        self.assertEqual(left, ["etc/hostwatchd/hostwatchd.toml"])


def installed_flags(*more):
    """What the packages' own pkg-config file says."""
    environment = dict(os.environ, PKG_CONFIG_LIBDIR=str(LIBRARIES / "pkgconfig"),
                       PKG_CONFIG_SYSROOT_DIR=str(TREE))
    return run("pkg-config", *more, "--cflags", "--libs", "libhostwatch",
               env=environment).stdout.split()


class Examples(unittest.TestCase):
    """What libhostwatch-dev has of examples, with what it has of headers alone."""

    def setUp(self):
        self.examples = TREE / "usr/share/doc/libhostwatch-dev/examples"
        self.fuse = run("pkg-config", "--cflags", "--libs", "fuse3").stdout.split()

    def test_all_are_there(self):
        self.assertEqual({path.name for path in self.examples.iterdir()},
                         {path.name for path in (ROOT / "examples").iterdir()})

    def test_programs_compile(self):
        for source in sorted(self.examples.glob("*.c")):
            for flags in (["-DHOSTWATCH"], []):
                with self.subTest(source.name, flags=flags):
                    run("cc", "-Wall", "-Wextra", "-Werror", "-pthread", *flags, str(source),
                        "-o", str(pathlib.Path(SCRATCH.name, "example")), *installed_flags(),
                        *self.fuse)

    def test_patched_example_compiles(self):
        original = pathlib.Path("/usr/share/doc/libfuse3-dev/examples")
        if not (original / "passthrough_ll.c").exists():
            self.skipTest(f"{original} is not there: dpkg may leave out /usr/share/doc")
        if not run("pkg-config", "--modversion", "fuse3").stdout.startswith("3.14."):
            self.skipTest("the patch is against libfuse 3.14")
        with tempfile.TemporaryDirectory(dir=SCRATCH.name) as work:
            for source in original.glob("passthrough_*.[ch]"):
                shutil.copy(source, work)
            patch = str(self.examples / "passthrough_ll.patch")
            run("patch", "--fuzz=0", f"{work}/passthrough_ll.c", patch)
            run("cc", "-pthread", "-o", f"{work}/passthrough_ll", f"{work}/passthrough_ll.c",
                *self.fuse, *installed_flags())
            done = run(f"{work}/passthrough_ll", "--help",
                       env={"LD_LIBRARY_PATH": str(LIBRARIES)})
            self.assertIn("hostwatch=SOCKET", done.stdout)

    def test_client_in_python_runs(self):
        done = run(sys.executable, str(self.examples / "watch.py"), "/", "/nonexistent/socket",
                   check=False)
        self.assertEqual((done.returncode, done.stderr),
                         (1, "watch.py: [Errno 2] No such file or directory\n"))

    def test_headers_stand_alone(self):
        headers = {path.name for path in (TREE / "usr/include").iterdir()}
        self.assertEqual(headers, {"hostwatch.h", "hostwatch_protocol.h", "hostwatch_fuse.h",
                                   "hostwatch_fsnotify.h"})
        for header in headers:
            source = pathlib.Path(SCRATCH.name, "header.c")
            before = "#define FUSE_USE_VERSION 34\n#include <fuse_lowlevel.h>\n"
            source.write_text((before if "_fuse" in header else "") + f"#include <{header}>\n")
            with self.subTest(header):
                run("cc", "-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-c",
                    str(source), "-o", "/dev/null", *installed_flags(), *self.fuse)


class Documents(unittest.TestCase):
    def test_pictures_are_there(self):
        shown = 0
        for page in (TREE / "usr/share/doc/hostwatchd").glob("*.md"):
            for picture in re.findall(r"!\[[^]]*\]\(([^):]*)\)", page.read_text()):
                shown += 1
                self.assertTrue((page.parent / picture).exists(), f"{page.name}: {picture}")
        self.assertGreater(shown, 0)

    def test_no_link_is_dead(self):
        documents = TREE / "usr/share/doc/hostwatchd"
        followed = set()
        for page in documents.glob("*.md"):
            text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                path = target.partition("#")[0]
                if not path or re.match(r"[a-z]+:", path):
                    continue
                place = TREE / path[1:] if path.startswith("/") else documents / path
                with self.subTest(page=page.name, target=target):
                    self.assertTrue(place.exists())
                followed.add(path)
        self.assertGreaterEqual(followed, {
            "protocol.md", "performance.svg", "/usr/include/hostwatch.h",
            "/usr/share/doc/libhostwatch-dev/examples/passthrough_ll.patch"})


class Library(unittest.TestCase):
    def compile(self, *link):
        source = pathlib.Path(SCRATCH.name, "client.c")
        source.write_text(CLIENT)
        program = source.with_suffix("")
        static = ["--static"] if "-static" in link else []
        run("cc", "-Wall", "-Werror", *link, str(source), "-o", str(program),
            *installed_flags(*static))
        return program

    def test_client_with_the_shared_library(self):
        program = self.compile()
        self.assertIn("[libhostwatch.so.0]", run("readelf", "-Wd", str(program)).stdout)
        done = run(str(program), env={"LD_LIBRARY_PATH": str(LIBRARIES)})
        self.assertEqual(done.stdout.strip(), ENOENT)

    def test_client_with_the_static_library(self):
        program = self.compile("-static")
        self.assertNotIn("NEEDED", run("readelf", "-Wd", str(program)).stdout)
        self.assertEqual(run(str(program)).stdout.strip(), ENOENT)

    def test_exports_what_the_header_declares(self):
        header = (TREE / "usr/include/hostwatch.h").read_text()
        code = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
        code = re.sub(r"\btypedef\b[^;{]*;", "", code)
        declared = set(re.findall(r"\b(hostwatch_\w+)\(", code))
        table = run("nm", "-D", "--defined-only", "--with-symbol-versions",
                    str(LIBRARIES / "libhostwatch.so")).stdout
        exported = {line.split()[2] for line in table.splitlines()}
        self.assertEqual(exported - {"HOSTWATCH_0.1"},
                         {f"{name}@@HOSTWATCH_0.1" for name in declared})

    def test_library_is_hardened_and_needs_libc_only(self):
        library = str(LIBRARIES / "libhostwatch.so")
        dynamic = run("readelf", "-Wd", library).stdout
        # The loader is libc's, too: the stack protector's canary is there.
        needed = [n for n in re.findall(r"NEEDED.*\[(.*)\]", dynamic) if not n.startswith("ld-")]
        self.assertEqual(needed, ["libc.so.6"])
        self.assertEqual(re.findall(r"SONAME.*\[(.*)\]", dynamic), ["libhostwatch.so.0"])
        self.assertIn("BIND_NOW", dynamic)
        self.assertIn("GNU_RELRO", run("readelf", "-Wl", library).stdout)
        self.assertIn("__stack_chk_fail", run("nm", "-D", library).stdout)


class Manual(unittest.TestCase):
    def pages(self):
        found = sorted(path for path in TREE.glob("usr/share/man/man?/*.gz") if path.is_file())
        self.assertGreaterEqual(
            {path.name[:-3] for path in found},
            {"hostwatchd.8", "hostwatchd.toml.5", "hostwatchctl.1", "hostwatchfs.8", "hostwatch-protocol.7",
             "hostwatch.3", "hostwatch_open.3"})
        return [path for path in found if not path.is_symlink()]

    def rendered(self, name):
        (page,) = TREE.glob(f"usr/share/man/man?/{name}.gz")
        done = run("man", "-E", "UTF-8", "-l", str(page),
                   env=dict(os.environ, MANWIDTH="2000", MAN_KEEP_FORMATTING="", LC_ALL="C.UTF-8"))
        return done.stdout

    def test_formatter_has_nothing_to_warn_of(self):
        for page in self.pages():
            with self.subTest(page.name):
                done = run("man", "--warnings", "-E", "UTF-8", "-l", str(page),
                           env=dict(os.environ, MANWIDTH="80", LC_ALL="C.UTF-8"))
                self.assertEqual(done.stderr, "")
                name = page.name.split(".gz")[0].rpartition(".")[0]
                self.assertIn(f'"{name} - ', run("lexgrog", str(page)).stdout)

    def test_nothing_is_left_of_the_sources_markup(self):
        for page in self.pages():
            text = self.rendered(page.name[:-3])
            self.assertNotRegex(text, r"<!--|-->|\]\(|\*\*--")

    def options(self, *command):
        text = run(str(TREE / command[0]), *command[1:], "--help").stdout
        return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))

    def test_every_option_of_the_daemon_is_in_its_page(self):
        options = self.options("usr/sbin/hostwatchd")
        self.assertIn("--check-config", options)
        page = self.rendered("hostwatchd.8")
        section = page[page.index("\nOPTIONS"):page.index("\nEXIT STATUS")]
        self.assertEqual({o for o in options if not re.search(f"{o}(?![\\w-])", section)}, set())

    def test_every_command_and_option_of_the_tool_is_in_its_page(self):
        page = self.rendered("hostwatchctl.1")
        text = run(str(TREE / "usr/bin/hostwatchctl"), "--help").stdout
        commands = re.findall(r"^  (\w+) {2,}", text[text.index("SUBCOMMANDS"):], re.M)
        self.assertIn("doctor", commands)
        for command in commands:
            self.assertRegex(page, f"(?m)^   {command}\\b")
            section = re.split(r"(?m)^   \w", page.split(f"\n   {command}", 1)[1])[0]
            options = self.options("usr/bin/hostwatchctl", command)
            options -= {"--help", "--version", "--socket"}  # said once, for all
            self.assertEqual({o for o in options if o not in section}, set(), command)

    def test_every_key_of_the_configuration_is_in_its_page(self):
        shipped = (TREE / "etc/hostwatchd/hostwatchd.toml").read_text()
        keys = set(re.findall(r"^(?:# )?([a-z-]+) = ", shipped, re.M))
        self.assertGreaterEqual(keys, {"max-delay", "queue-per-user", "allow-groups"})
        # The source: when it is shown, a table may break a key.
        (page,) = TREE.glob("usr/share/man/man5/hostwatchd.toml.5.gz")
        source = gzip.decompress(page.read_bytes()).decode().replace("\\-", "-")
        cells = set(re.findall(r"^T\{\n\\f\[B\]([a-z-]+)\\f\[R\]\nT\}", source, re.M))
        self.assertEqual(keys - cells, set())

    def test_every_function_of_the_library_is_in_its_page(self):
        page = self.rendered("hostwatch.3")
        for link in TREE.glob("usr/share/man/man3/hostwatch_*.3.gz"):
            self.assertIn(f"\n   {link.name[:-5]}()\n", page)


if __name__ == "__main__":
    unittest.main(verbosity=2)
