/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: the handle of a deleted object opens with ESTALE, or, while somebody
 * holds it, with a link count of 0. An inode number that is used again has
 * another handle.
 * Relied on by: the resync (what is gone gets DELETE_SELF) and the reconciler.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	struct stat status;

	assume_begin(argc, argv);
	int mount_fd = MUST(open(".", O_RDONLY));
	touch("f");
	touch("held");
	make_directory("d");
	struct handle file = handle_of("f"), held = handle_of("held");
	struct handle directory = handle_of("d");
	int holder = MUST(open("held", O_RDONLY));

	MUST(unlink("f"));
	MUST(unlink("held"));
	MUST(rmdir("d"));
	FAILS_WITH(open_handle(mount_fd, &file), ESTALE);
	FAILS_WITH(open_handle(mount_fd, &directory), ESTALE);
	int opened = MUST(open_handle(mount_fd, &held));
	MUST(fstat(opened, &status));
	HOLDS(status.st_nlink == 0);
	close(opened);
	close(holder);

	for (int i = 0; i < 200; i++) {
		touch("f");
		struct handle again = handle_of("f");
		HOLDS(!same_handle(&file, &again));
		MUST(unlink("f"));
		FAILS_WITH(open_handle(mount_fd, &again), ESTALE);
		file = again;
	}
	return 0;
}
