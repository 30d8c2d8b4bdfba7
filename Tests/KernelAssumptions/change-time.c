/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a change's ctime is not before CLOCK_REALTIME_COARSE read before the
 * change, less 1 ns, and has been stamped when the event can be read. A change
 * after a statx is always seen in the ctime (multigrain timestamps, since 6.13).
 * Relied on by: `since` of REGISTER, and the resync after a loss.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

static int64_t nanoseconds(struct timespec time)
{
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static int64_t ctime_of(const char *path)
{
	struct stat status;

	MUST(stat(path, &status));
	return nanoseconds(status.st_ctim);
}

int main(int argc, char **argv)
{
	struct timespec before;

	assume_begin(argc, argv);
	touch("f");
	int group = watch(REST);
	for (int i = 0; i < 2000; i++) {
		MUST(clock_gettime(CLOCK_REALTIME_COARSE, &before));
		MUST(chmod("f", i & 1 ? 0600 : 0640));
		HOLDS(drain(group) == 1);
		HOLDS(ctime_of("f") > nanoseconds(before) - 1);
	}
	for (int i = 0; i < 2000; i++) {
		int64_t seen = ctime_of("f");

		MUST(chmod("f", i & 1 ? 0600 : 0640));
		HOLDS(ctime_of("f") > seen);
	}
	return 0;
}
