/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a detached clone of the mount at a share's root, opened like a bind
 * mount, shows the paths of directories opened by handle relative to that root:
 * "/a/b" inside, "/" for the root itself. A directory outside opens as well (the
 * handle is the filesystem's), shows "/" too, and `..` from it fails with
 * ENOENT; `..` from inside climbs to the root and stays there.
 * Relied on by: the directory index, which finds by `..` whether a directory is
 * in the share, and WANT_PATH.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

static const char *path_of(int fd)
{
	static char path[PATH_MAX];
	char link[64];
	ssize_t length;

	sprintf(link, "/proc/self/fd/%d", fd);
	length = MUST(readlink(link, path, sizeof(path) - 1));
	path[length] = 0;
	return path;
}

#define SHOWS(fd, want) \
	do { \
		if (strcmp(path_of(fd), want)) \
			FAIL("path %s, not %s", path_of(fd), want); \
	} while (0)

static void check(int clone, const struct handle *handles)
{
	struct handle parent;
	int root = MUST(open_handle(clone, &handles[0]));
	int inside = MUST(open_handle(clone, &handles[1]));
	int outside = MUST(open_handle(clone, &handles[2]));
	int above = MUST(open_handle(clone, &handles[3]));
	int deep = MUST(open_handle(clone, &handles[4]));

	SHOWS(root, "/");
	SHOWS(inside, "/a/b");
	SHOWS(outside, "/");
	SHOWS(above, "/");
	SHOWS(deep, "/");

	parent = handle_at(inside, "..");
	int a = MUST(openat(inside, "..", O_PATH | O_DIRECTORY));
	SHOWS(a, "/a");
	int top = MUST(openat(a, "..", O_PATH | O_DIRECTORY));
	parent = handle_at(top, "");
	HOLDS(same_handle(&parent, &handles[0]));
	int still = MUST(openat(top, "..", O_PATH | O_DIRECTORY));
	parent = handle_at(still, "");
	HOLDS(same_handle(&parent, &handles[0]));

	FAILS_WITH(openat(outside, "..", O_PATH | O_DIRECTORY), ENOENT);
	FAILS_WITH(openat(above, "..", O_PATH | O_DIRECTORY), ENOENT);
	FAILS_WITH(openat(deep, "..", O_PATH | O_DIRECTORY), ENOENT);
	close(root), close(inside), close(outside), close(above), close(deep);
	close(a), close(top), close(still);
}

int main(int argc, char **argv)
{
	struct handle handles[5];

	assume_begin(argc, argv);
	make_directory("share");
	make_directory("share/a");
	make_directory("share/a/b");
	make_directory("out");
	make_directory("out/side");
	handles[0] = handle_of("share");
	handles[1] = handle_of("share/a/b");
	handles[2] = handle_of("out");
	handles[3] = handle_of(".");
	handles[4] = handle_of("out/side");
	int tree = MUST(open_tree(AT_FDCWD, "share",
				  OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	/* open_tree's descriptor is O_PATH, which open_by_handle_at refuses. */
	FAILS_WITH(open_handle(tree, &handles[0]), EBADF);
	int clone = MUST(openat(tree, ".", O_RDONLY | O_DIRECTORY));
	close(tree);

	check(clone, handles);
	/* Handles of directories connect again once the caches are cold. */
	sync();
	run("echo 2 > /proc/sys/vm/drop_caches");
	check(clone, handles);

	/* A directory that moves out and in changes sides at once. */
	int b = MUST(open_handle(clone, &handles[1]));
	move("share/a/b", "out/b");
	FAILS_WITH(openat(b, "..", O_PATH | O_DIRECTORY), ENOENT);
	move("out/b", "share/b");
	SHOWS(b, "/b");
	HOLDS(openat(b, "..", O_PATH | O_DIRECTORY) >= 0);

	/* A removed directory that is held still climbs: only its link count tells. */
	struct stat status;
	MUST(rmdir("share/b"));
	HOLDS(openat(b, "..", O_PATH | O_DIRECTORY) >= 0);
	MUST(fstat(b, &status));
	HOLDS(status.st_nlink == 0);
	return 0;
}
