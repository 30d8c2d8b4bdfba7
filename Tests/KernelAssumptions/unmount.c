/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: neither a filesystem mark nor a detached clone of the mount makes umount
 * fail; an O_PATH descriptor of the root does, with EBUSY. The clone keeps the
 * filesystem alive and the mark on it; without one the mark goes silently, and a
 * remount has none.
 * Relied on by: how a share holds its root, and DETACHED 1.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

static bool marked(int group)
{
	char path[64], line[512];
	bool found = false;

	sprintf(path, "/proc/self/fdinfo/%d", group);
	FILE *file = fopen(path, "r");
	while (fgets(line, sizeof(line), file))
		found |= strstr(line, "sdev:") != NULL;
	fclose(file);
	return found;
}

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	touch("f");
	int group = watch(REST);
	MUST(chdir("/"));

	int path_fd = MUST(open(assume_root, O_PATH | O_CLOEXEC));
	FAILS_WITH(umount(assume_root), EBUSY);
	int clone = open_tree(path_fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC |
			      AT_EMPTY_PATH);
	MUST(clone);
	/* What opening by handle needs: a descriptor open for reading. */
	int reading = MUST(openat(clone, ".", O_RDONLY | O_DIRECTORY));
	close(path_fd);
	MUST(umount(assume_root));
	HOLDS(marked(group));
	struct stat status;
	MUST(fstatat(clone, "f", &status, 0));
	drain(group);
	IN_CHILD(MUST(fchmodat(clone, "f", 0600, 0)));
	HOLDS(drain(group) == 1);
	close(clone);
	HOLDS(marked(group));
	close(reading);
	/* The superblock goes now, perhaps a moment later. */
	for (int i = 0; i < 5000 && marked(group); i++)
		usleep(1000);
	HOLDS(!marked(group));
	HOLDS(drain(group) == 0 || !records[0].dir.present);
	return 0;
}
