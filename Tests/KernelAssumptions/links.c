/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: link(2) and unlink(2) of one name of several report the link count as
 * an ATTRIB without a directory before CREATE or DELETE with the name. A write
 * through one of several names reports the name that was opened alone.
 * Relied on by: the router (a file has several parents) and the reconciler
 * (ATTRIB without a directory reaches NODES sessions only).
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("d");
	touch("f");
	know("root", ".");
	know("d", "d");
	know("f", "f");
	int group = watch(REST);

	MUST(link("f", "d/g"));
	EXPECT(group, "ATTRIB =f", "CREATE d/g =f");
	append("d/g", "x");
	EXPECT(group, "MODIFY|CLOSE_WRITE d/g =f");
	append("f", "x");
	EXPECT(group, "MODIFY|CLOSE_WRITE root/f =f");
	MUST(unlink("f"));
	EXPECT(group, "ATTRIB =f", "DELETE root/f =f");
	/* The same place of both names: rename does nothing and says nothing. */
	MUST(link("d/g", "d/h"));
	drain(group);
	move("d/g", "d/h");
	EXPECT_NOTHING(group);
	return 0;
}
