/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: the group's fdinfo names the superblock under the mark (sdev, the
 * kernel's dev_t) and the mark's mask; the same device stands in mountinfo, and,
 * but on btrfs, in st_dev.
 * Relied on by: the check that a share is not hidden behind another filesystem
 * in the daemon's mount namespace, and -EXDEV.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	char path[64], line[1024], want[64];
	unsigned int sdev = 0, flags = 0, mask = 0;
	bool found = false;
	struct stat status;

	assume_begin(argc, argv);
	int group = watch(FAN_CREATE | FAN_ONDIR);
	sprintf(path, "/proc/self/fdinfo/%d", group);
	FILE *file = fopen(path, "r");
	HOLDS(file);
	while (fgets(line, sizeof(line), file))
		sscanf(line, "fanotify sdev:%x mflags:%x mask:%x", &sdev, &flags,
		       &mask);
	fclose(file);

	/* FAN_EVENT_ON_CHILD is the kernel's own addition. */
	HOLDS((mask & ~FAN_EVENT_ON_CHILD) == (FAN_CREATE | FAN_ONDIR));
	MUST(stat(".", &status));
	if (!on("btrfs"))
		HOLDS(sdev == (major(status.st_dev) << 20 | minor(status.st_dev)));
	sprintf(want, " %u:%u / /mnt/scratch ", sdev >> 20, sdev & 0xfffff);
	file = fopen("/proc/self/mountinfo", "r");
	while (fgets(line, sizeof(line), file))
		found |= strstr(line, want) != NULL;
	fclose(file);
	HOLDS(found);
	return 0;
}
