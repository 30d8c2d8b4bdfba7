/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: an overlay with index=on,nfs_export=on takes the filesystem mark and has
 * file handles; one with the defaults refuses the mark with EOPNOTSUPP, as /proc
 * and /sys do.
 * Relied on by: attaching a share, and what its refusal tells the operator.
 * Filesystems: tmpfs ext4
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("lower");
	touch("lower/f");
	make_directory("upper");
	make_directory("work");
	make_directory("o");
	int group = open_group(0);

	FAILS_WITH(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
				 AT_FDCWD, "/proc"), EOPNOTSUPP);
	FAILS_WITH(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
				 AT_FDCWD, "/sys"), EOPNOTSUPP);
	if (mount("o", "o", "overlay", 0,
		  "lowerdir=lower,upperdir=upper,workdir=work") == -1)
		SKIP("no overlay: %s", strerror(errno));
	FAILS_WITH(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
				 AT_FDCWD, "o"), EOPNOTSUPP);
	MUST(umount("o"));
	run("rm -rf upper work; mkdir upper work");

	MUST(mount("o", "o", "overlay", 0, "lowerdir=lower,upperdir=upper,"
		   "workdir=work,index=on,nfs_export=on,redirect_dir=on"));
	MUST(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
			   AT_FDCWD, "o"));
	struct handle handle = handle_of("o/f");
	HOLDS(handle.type == 0xf8);
	know("root", "o");
	know("f", "o/f");
	MUST(chmod("o/f", 0600));
	EXPECT(group, "ATTRIB root/f =f");
	/* Copied up by now; its handle is still the same. */
	append("o/f", "x");
	EXPECT(group, "MODIFY|CLOSE_WRITE root/f =f");
	return 0;
}
