/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: events of different pids never merge, and neither does an event with one
 * that has been read already.
 * Relied on by: the reconciler (what a batch ended with stays true), and origin
 * and SUPPRESS_ECHO (a record has one author).
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	touch("f");
	know("root", ".");
	know("f", "f");
	int group = watch(REST);

	MUST(chmod("f", 0600));
	IN_CHILD(MUST(chmod("f", 0640)));
	MUST(chmod("f", 0600));
	EXPECT(group, "ATTRIB root/f =f", "ATTRIB root/f =f");
	HOLDS(records[0].pid == getpid() && records[1].pid != getpid());

	MUST(chmod("f", 0640));
	EXPECT(group, "ATTRIB root/f =f");
	MUST(truncate("f", 10));
	EXPECT(group, "MODIFY root/f =f");
	return 0;
}
