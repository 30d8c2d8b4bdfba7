/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a read into a buffer that is too small for the next event fails with
 * EINVAL and the event stays; what fits is returned in whole records.
 * Relied on by: the read buffer, which is never below 64 KiB.
 * Filesystems: ext4 tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	char buffer[4096];

	assume_begin(argc, argv);
	int group = watch(REST);
	touch("f");
	touch("g");
	FAILS_WITH(read(group, buffer, 32), EINVAL);
	FAILS_WITH(read(group, buffer, 32), EINVAL);
	HOLDS(drain(group) == 2);

	unsigned int first = records[0].length;
	touch("h");
	touch("i");
	HOLDS(read(group, buffer, first + 30) == first);
	HOLDS(drain(group) == 1);
	FAILS_WITH(read(group, buffer, sizeof(buffer)), EAGAIN);
	return 0;
}
