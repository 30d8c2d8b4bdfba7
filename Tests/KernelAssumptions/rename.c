/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a rename is one record with the old directory and name, the new
 * directory and name, and the object; a filesystem mark sees both sides.
 * RENAME_EXCHANGE is two such records. A directory that moves is one record,
 * and its descendants are silent.
 * Relied on by: the record parser, the router, and the subtree decision (a TREE
 * client must read a directory that moved in).
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("a");
	make_directory("b");
	make_directory("a/deep");
	make_directory("a/deep/er");
	touch("a/deep/er/leaf");
	touch("a/f");
	touch("b/g");
	know("root", ".");
	know("a", "a");
	know("b", "b");
	know("deep", "a/deep");
	know("f", "a/f");
	know("g", "b/g");
	int group = watch(REST);

	move("a/f", "a/f2");
	EXPECT(group, "RENAME a/f > a/f2 =f");
	move("a/f2", "b/f");
	EXPECT(group, "RENAME a/f2 > b/f =f");
	move("a/deep", "b/deeper");
	EXPECT(group, "RENAME|DIR a/deep > b/deeper =deep");

	exchange("b/f", "b/g");
	drain(group);
	HOLDS(record_count == 2);
	HOLDS(records[0].mask == FAN_RENAME && records[1].mask == FAN_RENAME);
	exchange("b/f", "b/g");
	drain(group);

	exchange("b/f", "a");
	EXPECT(group, "RENAME b/f > root/a =f", "RENAME|DIR root/a > b/f =a");
	return 0;
}
