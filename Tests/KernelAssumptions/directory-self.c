/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: an event on a directory itself comes with that directory's handle and
 * the name ".", without a handle of its own, for the filesystem's root as well.
 * Relied on by: the reconciler (a record about the directory, not about a name).
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("d");
	know("root", ".");
	know("d", "d");
	int group = watch(REST);

	MUST(chmod("d", 0700));
	EXPECT(group, "ATTRIB|DIR d/.");
	MUST(chmod(".", 0700));
	EXPECT(group, "ATTRIB|DIR root/.");
	return 0;
}
