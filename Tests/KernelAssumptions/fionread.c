/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: FIONREAD of a group counts 24 bytes for every queued event, whatever the
 * records' length is.
 * Relied on by: the barrier behind SYNC, which must count events and not bytes.
 * Filesystems: ext4 tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	char name[64];
	int size;

	assume_begin(argc, argv);
	int group = watch(REST);
	MUST(ioctl(group, FIONREAD, &size));
	HOLDS(size == 0);
	for (int i = 0; i < 10; i++) {
		sprintf(name, "a-rather-long-name-of-a-file-%d", i);
		touch(name);
	}
	MUST(ioctl(group, FIONREAD, &size));
	HOLDS(size == 10 * 24);
	HOLDS(drain(group) == 10);
	HOLDS(records[0].length > 24);
	return 0;
}
