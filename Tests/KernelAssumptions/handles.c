/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: where inode number and generation are in a file handle, for each
 * filesystem, and that FS_IOC_GETVERSION agrees where it exists (not on tmpfs).
 * Relied on by: the decoding of handles, and so every TREE record's identity.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"
#include <linux/fs.h>

static uint64_t number(const unsigned char *data, int bytes)
{
	uint64_t value = 0;

	memcpy(&value, data, bytes);
	return value;
}

static void check(const char *path)
{
	struct handle handle = handle_of(path);
	struct stat status;
	uint64_t ino = 0, generation = 0;
	/* The kernel writes an int, whatever the ioctl's number says. */
	unsigned int version[2] = { 0 };

	if (on("ext4")) {
		HOLDS(handle.type == 0x01 && handle.bytes == 8);
		ino = number(handle.data, 4);
		generation = number(handle.data + 4, 4);
	} else if (on("xfs")) {
		HOLDS(handle.type == 0x81 && handle.bytes == 12);
		ino = number(handle.data, 8);
		generation = number(handle.data + 8, 4);
	} else if (on("btrfs")) {
		HOLDS(handle.type == 0x4d && handle.bytes == 20);
		ino = number(handle.data, 8);
		HOLDS(number(handle.data + 8, 8) == 5);
		generation = number(handle.data + 16, 4);
	} else {
		HOLDS(handle.type == 0x01 && handle.bytes == 12);
		generation = number(handle.data, 4);
		ino = number(handle.data + 4, 4) | number(handle.data + 8, 4) << 32;
	}
	MUST(lstat(path, &status));
	HOLDS(ino == status.st_ino);
	int file = MUST(open(path, O_RDONLY));
	if (on("tmpfs")) {
		FAILS_WITH(ioctl(file, FS_IOC_GETVERSION, version), ENOTTY);
	} else {
		MUST(ioctl(file, FS_IOC_GETVERSION, version));
		HOLDS(version[0] == generation);
	}
	close(file);
}

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("d");
	touch("d/f");
	check(".");
	check("d");
	check("d/f");

	struct handle handle = handle_of("d/f");
	if (on("ext4")) {
		/* Generation 0 in a handle stands for any generation. */
		int mount_fd = MUST(open(".", O_RDONLY));
		memset(handle.data + 4, 0, 4);
		MUST(open_handle(mount_fd, &handle));
		handle.data[4] ^= 0x55;
		handle.data[5] ^= 0xaa;
		FAILS_WITH(open_handle(mount_fd, &handle), ESTALE);
	}
	return 0;
}
