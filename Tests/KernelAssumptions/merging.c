/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: the kernel ORs a new event into an older queued one of the same pid,
 * directory, name and object, whatever lies between them. So
 *   - mv A B; mv B A; mv A B reads as two renames, which replayed end in A;
 *   - CREATE|DELETE of a name stands for a name that is gone, or for one that
 *     was linked again;
 *   - a DELETE may sit in a record from before a rename.
 * Relied on by: the reconciler, whose reason to exist this is. If it stops being
 * so, nothing breaks, but the lookups are no longer needed.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	touch("A");
	know("root", ".");
	know("A", "A");
	int group = watch(REST);

	move("A", "B");
	move("B", "A");
	move("A", "B");
	EXPECT(group, "RENAME root/A > root/B =A", "RENAME root/B > root/A =A");

	int file = MUST(open("x", O_WRONLY | O_CREAT, 0644));
	know("x", "x");
	MUST(unlink("x"));
	EXPECT(group, "CREATE|DELETE root/x =x", "ATTRIB =x");
	close(file);
	drain(group);

	touch("y");
	know("y", "y");
	drain(group);
	MUST(link("y", "z"));
	MUST(unlink("z"));
	MUST(link("y", "z"));
	/* The same mask as above, and the name is there. */
	EXPECT(group, "ATTRIB =y", "CREATE|DELETE root/z =y");

	touch("w");
	know("w", "w");
	drain(group);
	append("w", "1");
	move("w", "v");
	move("v", "w");
	MUST(unlink("w"));
	EXPECT(group, "MODIFY|CLOSE_WRITE|DELETE root/w =w",
	       "RENAME root/w > root/v =w", "RENAME root/v > root/w =w",
	       "ATTRIB|DELETE_SELF =w");
	return 0;
}
