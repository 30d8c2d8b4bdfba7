/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a directory that goes, by rmdir or by a rename over it, reports
 * DELETE_SELF as an event on itself, with its own handle as directory, the
 * name "." and ONDIR; never as a record without a directory, which a file's
 * victim gets. ATTRIB of the link count comes with it after a rename over it,
 * not after rmdir.
 * Relied on by: the reconciler, which passes DELETE_SELF of directories on and
 * tells REPLACED by it.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	know("root", ".");
	make_directory("gone");
	make_directory("victim");
	make_directory("d");
	know("gone", "gone");
	know("victim", "victim");
	know("d", "d");
	int group = watch(REST);

	MUST(rmdir("gone"));
	EXPECT(group, "DELETE_SELF|DIR gone/.", "DELETE|DIR root/gone =gone");
	move("d", "victim");
	EXPECT(group, "RENAME|DIR root/d > root/victim =d", "ATTRIB|DELETE_SELF|DIR victim/.");
	return 0;
}
