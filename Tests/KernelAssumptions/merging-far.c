/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a new event is merged into an older one across thousands of events in
 * between: the reconciler cannot bound the distance.
 * Relied on by: the reconciler (no window is long enough; the filesystem is asked).
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	char name[32];

	assume_begin(argc, argv);
	know("root", ".");
	touch("first");
	know("first", "first");
	for (int i = 0; i < 5000; i++) {
		sprintf(name, "f%d", i);
		touch(name);
	}
	int group = watch(REST);

	append("first", "x");
	for (int i = 0; i < 5000; i++) {
		sprintf(name, "f%d", i);
		MUST(chmod(name, 0600));
	}
	MUST(unlink("first"));
	drain(group);
	HOLDS(strcmp(show(&records[0]), "MODIFY|CLOSE_WRITE|DELETE root/first =first") == 0);
	return 0;
}
