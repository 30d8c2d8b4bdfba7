# SPDX-License-Identifier: Apache-2.0
"""Everything a program on the host may do to a directory, one function for each.

An operation is a generator. What stands before its first yield prepares the
directory; the yield names what is watched ("." is the directory) and the rest is the operation. A
further `yield` waits until what was done so far has been seen. `d` is the directory,
`d.out` one beside it, outside the export.
"""

import mmap
import os
import pathlib
import shutil
import socket
import stat
import subprocess

import handles

ALL = []


class Place:
    """`d / name` is a path in the directory, `d.out / name` one outside."""

    def __init__(self, inside, outside):
        self.path, self.out = pathlib.Path(inside), pathlib.Path(outside)

    def __truediv__(self, name):
        return self.path / name


def operation(function):
    ALL.append(function)
    return function


def make(path, data=b"old contents\n"):
    """A file whose history raises nothing after this returns."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    os.write(fd, data)
    os.close(fd)


def change(path, flags, data=b"new"):
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags, 0o644)
    if data:
        os.write(fd, data)
    os.close(fd)


# What comes to be.

@operation
def create_by_open(d):
    yield "."
    os.close(os.open(d / "f", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


@operation
def create_and_write(d):
    yield "."
    change(d / "f", os.O_CREAT)


@operation
def mknod_regular(d):
    yield "."
    os.mknod(d / "f", stat.S_IFREG | 0o640)


@operation
def mknod_fifo(d):
    yield "."
    os.mkfifo(d / "f")


@operation
def mknod_character_device(d):
    yield "."
    os.mknod(d / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))


@operation
def mknod_block_device(d):
    yield "."
    os.mknod(d / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 250))


@operation
def bind_socket(d):
    yield "."
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        os.chdir(d.path)  # a socket's path is short
        try:
            sock.bind("sock")
        finally:
            os.chdir(here)


@operation
def mkdir(d):
    yield "."
    os.mkdir(d / "sub", 0o750)


@operation
def mkdir_chain(d):
    yield "."
    os.makedirs(d / "a" / "b" / "c")


@operation
def symlink(d):
    yield "."
    os.symlink("some/where", d / "s")


@operation
def link_same_directory(d):
    make(d / "f")
    yield ". f"
    os.link(d / "f", d / "g")


@operation
def link_other_directory(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    yield "a b a/f"
    os.link(d / "a/f", d / "b/g")


@operation
def link_from_outside(d):
    make(d.out / "f")
    yield "."
    os.link(d.out / "f", d / "f")


@operation
def link_to_outside(d):
    make(d / "f")
    yield ". f"
    os.link(d / "f", d.out / "f")


@operation
def link_symlink(d):
    os.symlink("where", d / "s")
    yield ". s"
    os.link(d / "s", d / "t", follow_symlinks=False)


@operation
def tmpfile_linked(d):
    fd = os.open(d.path, os.O_TMPFILE | os.O_RDWR, 0o644)
    os.write(fd, b"in secret")
    yield "."
    handles.link_descriptor(fd, d / "f")
    os.close(fd)


# What ceases to be.

@operation
def unlink(d):
    make(d / "f")
    yield ". f"
    os.unlink(d / "f")


@operation
def unlink_unwatched(d):
    make(d / "f")
    yield "."
    os.unlink(d / "f")


@operation
def unlink_fifo(d):
    os.mkfifo(d / "f")
    yield ". f"
    os.unlink(d / "f")


@operation
def unlink_symlink(d):
    os.symlink("where", d / "s")
    yield ". s"
    os.unlink(d / "s")


@operation
def unlink_one_of_two_links(d):
    make(d / "f")
    os.link(d / "f", d / "g")
    yield ". g"
    os.unlink(d / "f")


@operation
def unlink_both_links(d):
    make(d / "f")
    os.link(d / "f", d / "g")
    yield ". g"
    os.unlink(d / "g")
    os.unlink(d / "f")


@operation
def unlink_link_in_other_directory(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    os.link(d / "a/f", d / "b/g")
    yield "a b a/f"
    os.unlink(d / "b/g")


@operation
def unlink_with_link_outside(d):
    make(d / "f")
    os.link(d / "f", d.out / "f")
    yield ". f"
    os.unlink(d / "f")


@operation
def unlink_link_outside(d):
    make(d / "f")
    os.link(d / "f", d.out / "f")
    yield ". f"
    os.unlink(d.out / "f")


@operation
def unlink_while_open(d):
    make(d / "f")
    fd = os.open(d / "f", os.O_RDWR)
    yield ". f"
    os.unlink(d / "f")
    yield
    os.write(fd, b"still here")
    yield
    os.close(fd)


@operation
def rmdir(d):
    os.mkdir(d / "sub")
    yield ". sub"
    os.rmdir(d / "sub")


@operation
def remove_tree(d):
    os.makedirs(d / "a/b/c")
    make(d / "a/x")
    make(d / "a/b/y")
    make(d / "a/b/c/z")
    yield ". a a/b a/b/c a/x a/b/c/z"
    for name in ("a/b/c/z", "a/b/y", "a/x"):
        os.unlink(d / name)
    for name in ("a/b/c", "a/b", "a"):
        os.rmdir(d / name)


@operation
def unlink_and_create_again(d):
    make(d / "f")
    yield ". f"
    os.unlink(d / "f")
    os.mknod(d / "f", stat.S_IFREG | 0o600)


@operation
def rmdir_and_mkdir_again(d):
    os.mkdir(d / "sub")
    yield ". sub"
    os.rmdir(d / "sub")
    os.mkdir(d / "sub")


@operation
def file_becomes_directory(d):
    make(d / "x")
    yield ". x"
    os.unlink(d / "x")
    os.mkdir(d / "x")


# What moves.

@operation
def rename(d):
    make(d / "f")
    yield ". f"
    os.rename(d / "f", d / "g")


@operation
def rename_unwatched(d):
    make(d / "f")
    yield "."
    os.rename(d / "f", d / "g")


@operation
def rename_other_directory(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    yield "a b a/f"
    os.rename(d / "a/f", d / "b/g")


@operation
def rename_over(d):
    make(d / "f")
    make(d / "g", b"the victim\n")
    yield ". f g"
    os.rename(d / "f", d / "g")


@operation
def rename_over_other_directory(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    make(d / "b/f")
    yield "a b a/f b/f"
    os.rename(d / "a/f", d / "b/f")


@operation
def rename_over_linked(d):
    make(d / "f")
    make(d / "g", b"the victim\n")
    os.link(d / "g", d / "g2")
    yield ". f g"
    os.rename(d / "f", d / "g")


@operation
def rename_over_linked_under_another_name(d):
    make(d / "f")
    make(d / "g", b"the victim\n")
    os.link(d / "g", d / "g2")
    yield ". f g2"
    os.rename(d / "f", d / "g")


@operation
def rename_over_open(d):
    make(d / "f")
    make(d / "g", b"the victim\n")
    fd = os.open(d / "g", os.O_RDWR)
    yield ". f g"
    os.rename(d / "f", d / "g")
    yield
    os.close(fd)


@operation
def rename_symlink(d):
    os.symlink("where", d / "s")
    yield ". s"
    os.rename(d / "s", d / "t")


@operation
def rename_directory(d):
    os.mkdir(d / "sub")
    make(d / "sub/x")
    yield ". sub sub/x"
    os.rename(d / "sub", d / "moved")


@operation
def rename_directory_elsewhere(d):
    os.makedirs(d / "a/sub")
    os.mkdir(d / "b")
    make(d / "a/sub/x")
    yield ". a b a/sub a/sub/x"
    os.rename(d / "a/sub", d / "b/sub")
    yield
    change(d / "b/sub/x", os.O_APPEND)


@operation
def rename_directory_over_empty(d):
    os.mkdir(d / "a")
    make(d / "a/x")
    os.mkdir(d / "b")
    yield ". a b"
    os.rename(d / "a", d / "b")


@operation
def rename_into_new_directory(d):
    make(d / "f")
    yield ". f"
    os.mkdir(d / "sub")
    os.rename(d / "f", d / "sub/f")


@operation
def rename_and_create_again(d):
    make(d / "log")
    yield ". log"
    os.rename(d / "log", d / "log.1")
    make(d / "log", b"fresh\n")


@operation
def rename_there_and_back(d):
    make(d / "f")
    yield ". f"
    os.rename(d / "f", d / "g")
    yield
    os.rename(d / "g", d / "f")


@operation
def swap_by_three_renames(d):
    make(d / "a")
    make(d / "b", b"b\n")
    yield ". a b"
    os.rename(d / "a", d / "t")
    os.rename(d / "b", d / "a")
    os.rename(d / "t", d / "b")


@operation
def exchange_files(d):
    make(d / "f")
    make(d / "g", b"g\n")
    yield ". f g"
    handles.exchange(d / "f", d / "g")


@operation
def exchange_over_directories(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    make(d / "b/g", b"g\n")
    yield "a b a/f b/g"
    handles.exchange(d / "a/f", d / "b/g")


@operation
def exchange_file_and_directory(d):
    make(d / "f")
    os.mkdir(d / "sub")
    make(d / "sub/x")
    yield ". f sub"
    handles.exchange(d / "f", d / "sub")


@operation
def exchange_directories(d):
    os.makedirs(d / "a/x")
    os.makedirs(d / "b/y")
    yield ". a b a/x"
    handles.exchange(d / "a", d / "b")


# What crosses the export's boundary.

@operation
def move_out_file(d):
    make(d / "f")
    yield ". f"
    os.rename(d / "f", d.out / "f")


@operation
def move_in_file(d):
    make(d.out / "f")
    yield "."
    os.rename(d.out / "f", d / "f")


@operation
def move_in_over_file(d):
    make(d.out / "f")
    make(d / "g", b"the victim\n")
    yield ". g"
    os.rename(d.out / "f", d / "g")


@operation
def move_out_directory(d):
    os.makedirs(d / "sub/deep")
    make(d / "sub/x")
    yield ". sub sub/x"
    os.rename(d / "sub", d.out / "sub")


@operation
def move_in_directory(d):
    os.makedirs(d.out / "sub/deep")
    make(d.out / "sub/x")
    yield "."
    os.rename(d.out / "sub", d / "sub")


@operation
def move_out_and_back(d):
    make(d / "f")
    yield ". f"
    os.rename(d / "f", d.out / "f")
    yield
    os.rename(d.out / "f", d / "g")


@operation
def move_directory_out_and_back(d):
    os.mkdir(d / "sub")
    make(d / "sub/x")
    yield ". sub sub/x"
    os.rename(d / "sub", d.out / "sub")
    yield
    os.rename(d.out / "sub", d / "sub")
    yield
    os.chmod(d / "sub/x", 0o600)


@operation
def exchange_with_outside(d):
    make(d / "f")
    make(d.out / "g", b"g\n")
    yield ". f"
    handles.exchange(d / "f", d.out / "g")


# Contents.

@operation
def append(d):
    make(d / "f")
    yield ". f"
    change(d / "f", os.O_APPEND)


@operation
def write_in_place(d):
    make(d / "f")
    yield ". f"
    change(d / "f", 0)


@operation
def open_for_writing_only(d):
    make(d / "f")
    yield ". f"
    change(d / "f", 0, None)


@operation
def write_through_open_descriptor(d):
    make(d / "f")
    fd = os.open(d / "f", os.O_WRONLY)
    yield ". f"
    os.pwrite(fd, b"NEW", 0)
    yield
    os.pwrite(fd, b"LONGER", 3)
    os.close(fd)


@operation
def truncate(d):
    make(d / "f")
    yield ". f"
    os.truncate(d / "f", 3)


@operation
def truncate_to_larger(d):
    make(d / "f")
    yield ". f"
    os.truncate(d / "f", 100000)


@operation
def open_truncating(d):
    make(d / "f")
    yield ". f"
    change(d / "f", os.O_TRUNC)


@operation
def write_mapped(d):
    make(d / "f", bytes(8192))
    yield ". f"
    fd = os.open(d / "f", os.O_RDWR)
    with mmap.mmap(fd, 8192) as memory:
        memory[:4] = b"mmap"
        memory.flush()
    os.close(fd)


@operation
def fallocate(d):
    make(d / "f")
    fd = os.open(d / "f", os.O_WRONLY)
    yield ". f"
    os.posix_fallocate(fd, 0, 65536)
    os.close(fd)


@operation
def copy_file_range(d):
    make(d.out / "source", b"x" * 5000)
    make(d / "f")
    source, fd = os.open(d.out / "source", os.O_RDONLY), os.open(d / "f", os.O_WRONLY)
    yield ". f"
    os.copy_file_range(source, fd, 5000)
    os.close(source)
    os.close(fd)


@operation
def write_through_other_link(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    os.link(d / "a/f", d / "b/g")
    yield "a b a/f"
    change(d / "b/g", os.O_APPEND)


@operation
def write_executable(d):
    make(d / "tool", b"#!/bin/true\n")
    os.chmod(d / "tool", 0o755)
    yield ". tool"
    change(d / "tool", os.O_APPEND)


@operation
def write_fifo(d):
    os.mkfifo(d / "f")
    fd = os.open(d / "f", os.O_RDWR)
    yield ". f"
    os.write(fd, b"x")
    yield
    os.close(fd)


@operation
def read(d):
    make(d / "f")
    os.mkdir(d / "sub")
    yield ". f sub"
    with open(d / "f", "rb") as file:
        file.read()
    os.listdir(d / "sub")


@operation
def list_directories(d):
    os.mkdir(d / "sub")
    make(d / "sub" / "f")
    yield ". sub sub/f"
    os.listdir(d.path)
    os.listdir(d / "sub")


@operation
def execute(d):
    shutil.copy("/bin/true", d / "tool")
    yield ". tool"
    subprocess.run([d / "tool"], check=True)


# Attributes.

@operation
def chmod(d):
    make(d / "f")
    yield ". f"
    os.chmod(d / "f", 0o400)


@operation
def chown(d):
    make(d / "f")
    yield ". f"
    os.chown(d / "f", 1234, 1234)


@operation
def utimens(d):
    make(d / "f")
    yield ". f"
    os.utime(d / "f", (1e9, 1e9))


@operation
def utimens_symlink(d):
    os.symlink("where", d / "s")
    yield ". s"
    os.utime(d / "s", (1e9, 1e9), follow_symlinks=False)


@operation
def setxattr(d):
    make(d / "f")
    yield ". f"
    os.setxattr(d / "f", "user.x", b"1")


@operation
def removexattr(d):
    make(d / "f")
    os.setxattr(d / "f", "user.x", b"1")
    yield ". f"
    os.removexattr(d / "f", "user.x")


@operation
def chmod_directory(d):
    os.mkdir(d / "sub")
    yield ". sub"
    os.chmod(d / "sub", 0o700)


@operation
def setxattr_directory(d):
    os.mkdir(d / "sub")
    yield ". sub"
    os.setxattr(d / "sub", "user.x", b"1")


@operation
def utimens_directory(d):
    os.mkdir(d / "sub")
    yield ". sub"
    os.utime(d / "sub", (1e9, 1e9))


@operation
def chmod_fifo(d):
    os.mkfifo(d / "f")
    yield ". f"
    os.chmod(d / "f", 0o600)


@operation
def chmod_through_other_link(d):
    os.mkdir(d / "a")
    os.mkdir(d / "b")
    make(d / "a/f")
    os.link(d / "a/f", d / "b/g")
    yield "a b a/f"
    os.chmod(d / "b/g", 0o600)


# Whole procedures.

@operation
def editor_saves(d):
    make(d / "notes")
    yield ". notes"
    make(d / ".notes.new", b"edited\n")
    yield
    os.rename(d / ".notes.new", d / "notes")


@operation
def editor_keeps_backup(d):
    make(d / "notes")
    yield ". notes"
    os.rename(d / "notes", d / "notes~")
    make(d / "notes", b"edited\n")
    yield
    os.unlink(d / "notes~")


@operation
def git_lock(d):
    make(d / "index")
    yield ". index"
    fd = os.open(d / "index.lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    yield
    os.write(fd, b"index")
    yield
    os.close(fd)
    yield
    os.rename(d / "index.lock", d / "index")


@operation
def git_lock_given_up(d):
    yield "."
    os.close(os.open(d / "lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    yield
    os.unlink(d / "lock")


@operation
def hidden_then_gone(d):
    yield "."
    os.mknod(d / ".tmp", stat.S_IFREG | 0o600)
    os.unlink(d / ".tmp")


@operation
def directory_then_gone(d):
    yield "."
    os.mkdir(d / "tmp")
    os.rmdir(d / "tmp")


@operation
def tree_made_and_moved(d):
    yield "."
    os.mkdir(d / "new")
    make(d / "new/x")
    yield
    os.rename(d / "new", d / "final")


@operation
def link_and_unlink(d):
    make(d / "f")
    yield ". f"
    os.link(d / "f", d / "g")
    yield
    os.unlink(d / "f")


@operation
def rotate(d):
    make(d / "log")
    make(d / "log.1")
    yield ". log log.1"
    os.unlink(d / "log.1")
    os.rename(d / "log", d / "log.1")
    os.mknod(d / "log", stat.S_IFREG | 0o640)


@operation
def many_names(d):
    yield "."
    for number in range(24):
        os.mknod(d / f"{number:03}", stat.S_IFREG | 0o600)
    yield
    for number in range(0, 24, 2):
        os.rename(d / f"{number:03}", d / f"renamed-{number}")
    yield
    for number in range(1, 24, 2):
        os.unlink(d / f"{number:03}")


@operation
def names_of_all_bytes(d):
    yield "."
    name = os.fsencode(d.path) + b"/\xff\xfe bytes \n"
    os.mknod(name, stat.S_IFREG | 0o600)
    os.mknod(d / ("n" * 255), stat.S_IFREG | 0o600)
