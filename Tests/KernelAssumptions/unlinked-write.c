/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a write to a file that was unlinked while open keeps the old directory
 * and name, even when the name belongs to another file by now; the record's
 * own handle tells them apart.
 * Relied on by: the router, which goes by the object's handle and never by name.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	know("root", ".");
	int file = MUST(open("f", O_WRONLY | O_CREAT, 0644));
	know("old", "f");
	int group = watch(REST);

	MUST(unlink("f"));
	EXPECT(group, "ATTRIB =old", "DELETE root/f =old");
	touch("f");
	know("new", "f");
	drain(group);
	MUST(write(file, "x", 1));
	EXPECT(group, "MODIFY root/f =old");
	close(file);
	EXPECT(group, "CLOSE_WRITE root/f =old", "DELETE_SELF =old");
	return 0;
}
