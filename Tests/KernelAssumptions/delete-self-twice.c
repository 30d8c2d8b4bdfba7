/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: DELETE_SELF comes once for every name whose last user goes after the
 * link count has become 0, so an object with two names that are both open has
 * two, and other records of it may come in between.
 * Relied on by: the rule that DELETE_SELF is an object's last record, which the
 * daemon has to see to itself.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	touch("f");
	MUST(link("f", "g"));
	know("root", ".");
	know("f", "f");
	int group = watch(REST);
	int one = MUST(open("f", O_WRONLY));
	int other = MUST(open("g", O_WRONLY));

	MUST(unlink("f"));
	MUST(unlink("g"));
	drain(group);
	close(one);
	EXPECT(group, "CLOSE_WRITE root/f =f", "DELETE_SELF =f");
	MUST(write(other, "x", 1));
	EXPECT(group, "MODIFY root/g =f");
	close(other);
	EXPECT(group, "CLOSE_WRITE root/g =f", "DELETE_SELF =f");
	return 0;
}
