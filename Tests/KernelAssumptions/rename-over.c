/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a rename over an existing file reads as RENAME, then at once, from the
 * same pid, the victim's own record without a directory: ATTRIB|DELETE_SELF, or
 * ATTRIB alone while the victim is open or has other names. There is no DELETE.
 * Relied on by: the reconciler, which tells REPLACED by it.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	know("root", ".");
	touch("victim");
	touch("f");
	know("victim", "victim");
	know("f", "f");
	int group = watch(REST);

	move("f", "victim");
	EXPECT(group, "RENAME root/f > root/victim =f",
	       "ATTRIB|DELETE_SELF =victim");
	HOLDS(records[0].pid == getpid() && records[1].pid == getpid());

	touch("linked");
	MUST(link("linked", "other"));
	know("linked", "linked");
	drain(group);
	move("victim", "linked");
	EXPECT(group, "RENAME root/victim > root/linked =f", "ATTRIB =linked");

	touch("open");
	know("open", "open");
	int file = MUST(open("open", O_RDONLY));
	drain(group);
	move("linked", "open");
	EXPECT(group, "RENAME root/linked > root/open =f", "ATTRIB =open");
	close(file);
	EXPECT(group, "DELETE_SELF =open");
	return 0;
}
