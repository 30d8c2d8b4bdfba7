/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: while a process holds an O_PATH descriptor of a file, its DELETE_SELF
 * waits for that descriptor's close and carries the closer's pid.
 * Relied on by: the daemon never dropping its own pid's records unseen, and not
 * keeping descriptors of objects.
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
	int held = MUST(open("f", O_PATH));

	IN_CHILD(MUST(unlink("f")));
	EXPECT(group, "ATTRIB =f", "DELETE root/f =f");
	HOLDS(records[0].pid != getpid());
	close(held);
	EXPECT(group, "DELETE_SELF =f");
	HOLDS(records[0].pid == getpid());
	return 0;
}
