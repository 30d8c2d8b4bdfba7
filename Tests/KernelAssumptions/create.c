/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: creating, writing and closing a file reads as one record with the
 * directory, the name and the file itself, its bits OR-ed when nobody read in
 * between; mkdir, symlink, mknod and link likewise.
 * Relied on by: the record parser, and the reconciler, which takes it apart.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	know("root", ".");
	int group = watch(REST);

	append("f", "x");
	know("f", "f");
	EXPECT(group, "CREATE|MODIFY|CLOSE_WRITE root/f =f");

	int file = MUST(open("g", O_WRONLY | O_CREAT, 0644));
	know("g", "g");
	EXPECT(group, "CREATE root/g =g");
	MUST(write(file, "x", 1));
	EXPECT(group, "MODIFY root/g =g");
	close(file);
	EXPECT(group, "CLOSE_WRITE root/g =g");

	make_directory("d");
	know("d", "d");
	EXPECT(group, "CREATE|DIR root/d =d");
	MUST(symlink("f", "d/s"));
	know("s", "d/s");
	EXPECT(group, "CREATE d/s =s");
	MUST(mknod("d/p", S_IFIFO | 0644, 0));
	know("p", "d/p");
	EXPECT(group, "CREATE d/p =p");
	MUST(unlink("f"));
	EXPECT(group, "ATTRIB|DELETE_SELF =f", "DELETE root/f =f");
	return 0;
}
