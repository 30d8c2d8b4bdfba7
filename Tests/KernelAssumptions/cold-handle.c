/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a write to a file that was opened by a cold handle reports the object
 * alone, without directory and name; the same file opened by its name has both.
 * Relied on by: the router, which finds files by their own handle, not only
 * through their directory.
 * Filesystems: ext4 xfs btrfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	append("f", "x");
	know("f", "f");
	struct handle handle = handle_of("f");
	int mount_fd = MUST(open(".", O_RDONLY | O_DIRECTORY));
	int group = watch(REST);

	sync();
	for (int try = 0; try < 20; try++) {
		run("echo 2 > /proc/sys/vm/drop_caches");
		int file = MUST(open_by_handle_at(mount_fd,
			(struct file_handle *)&handle, O_WRONLY));
		drain(group);
		MUST(write(file, "y", 1));
		drain(group);
		HOLDS(record_count == 1);
		if (!records[0].dir.present) {
			HOLDS(strcmp(show(&records[0]), "MODIFY =f") == 0);
			return 0;
		}
		close(file);
	}
	SKIP("the dentry does not leave the cache");
}
