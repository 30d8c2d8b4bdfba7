/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a btrfs subvolume's path refuses the filesystem mark with EXDEV, while a
 * mount of subvolid=5 takes it and reports all subvolumes. All of them are one
 * superblock: `sdev` in the group's fdinfo is one device, which st_dev inside a
 * subvolume is not. A snapshot repeats inode number and generation; the root id
 * in the handle tells them apart.
 * Relied on by: attaching a share on btrfs, and the key of the node table.
 * Filesystems: btrfs
 */
#include "assume.h"

static unsigned int sdev_of(int group)
{
	char path[64], line[512];
	unsigned int sdev = 0;

	sprintf(path, "/proc/self/fdinfo/%d", group);
	FILE *file = fopen(path, "r");
	HOLDS(file);
	while (fgets(line, sizeof(line), file))
		sscanf(line, "fanotify sdev:%x", &sdev);
	fclose(file);
	return sdev;
}

int main(int argc, char **argv)
{
	struct stat top, sub;

	assume_begin(argc, argv);
	if (run("btrfs -q subvolume create s && touch s/f && "
		"btrfs -q subvolume snapshot s snap"))
		SKIP("btrfs-progs is missing");
	struct handle a = handle_of("s/f"), b = handle_of("snap/f");
	HOLDS(a.bytes == 20 && b.bytes == 20);
	HOLDS(memcmp(a.data, b.data, 8) == 0);
	HOLDS(memcmp(a.data + 16, b.data + 16, 4) == 0);
	HOLDS(memcmp(a.data + 8, b.data + 8, 8) != 0);

	int group = open_group(0);
	FAILS_WITH(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
				 AT_FDCWD, "s"), EXDEV);

	/* The subvolume alone is mounted; the top level is mounted privately. */
	MUST(mkdir("/mnt/sub", 0755));
	MUST(mkdir("/mnt/top", 0755));
	char *device = NULL;
	FILE *file = popen("findmnt -n -o SOURCE /mnt/scratch", "r");
	size_t room = 0;
	HOLDS(file && getline(&device, &room, file) > 0);
	pclose(file);
	device[strcspn(device, "[\n")] = 0;
	MUST(mount(device, "/mnt/sub", "btrfs", 0, "subvol=s"));
	MUST(mount(device, "/mnt/top", "btrfs", 0, "subvolid=5"));
	FAILS_WITH(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
				 AT_FDCWD, "/mnt/sub"), EXDEV);
	MUST(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, REST,
			   AT_FDCWD, "/mnt/top"));
	know("s", "/mnt/sub");
	touch("/mnt/sub/g");
	know("g", "/mnt/sub/g");
	EXPECT(group, "CREATE|CLOSE_WRITE s/g =g");

	MUST(stat("/mnt/top", &top));
	MUST(stat("/mnt/sub", &sub));
	HOLDS(top.st_dev != sub.st_dev);
	/* The kernel prints its own dev_t: 12 bits of major, 20 of minor. */
	unsigned int sdev = sdev_of(group);
	char want[32], line[1024];
	bool found = false;
	sprintf(want, " %u:%u /s /mnt/sub ", sdev >> 20, sdev & 0xfffff);
	file = fopen("/proc/self/mountinfo", "r");
	while (fgets(line, sizeof(line), file))
		found |= strstr(line, want) != NULL;
	fclose(file);
	HOLDS(found);
	return 0;
}
