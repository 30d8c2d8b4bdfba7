/* SPDX-License-Identifier: Apache-2.0 */
/* The mount that is replayed on, apart from what is mounted for others. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "CReplay.h"

#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000U
#endif

int replay_open_mount(const char *path, struct replay_mount *mount)
{
	struct statx status;
	int tree, fd;

	if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_MNT_ID, &status) < 0)
		return -errno;
	*mount = (struct replay_mount){ status.stx_mnt_id, status.stx_dev_major,
					status.stx_dev_minor };
	tree = (int)syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | O_CLOEXEC);
	if (tree < 0)
		return -errno;
	/* What opens by handle does not take O_PATH. */
	fd = openat(tree, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		fd = -errno;
	close(tree);
	return fd;
}

int replay_make_read_only(const char *path)
{
	/* struct mount_attr, of Linux 5.12, which not every header has. */
	struct {
		uint64_t set, clear, propagation, userns_fd;
	} attributes = { 1 /* MOUNT_ATTR_RDONLY */, 0, 0, 0 };

	return syscall(442 /* mount_setattr */, AT_FDCWD, path, 0, &attributes,
		       sizeof(attributes)) < 0 ?
		       -errno :
		       0;
}

/* Whether a line of the mount table begins with the id and, after the parent's, has
 * the device; a negative errno. */
static int is_mounted(struct replay_mount mount)
{
	FILE *table = fopen("/proc/self/mountinfo", "re");
	char line[4096];
	bool at_start = true, found = false;

	if (!table)
		return -errno;
	while (!found && fgets(line, sizeof(line), table)) {
		uint64_t id;
		uint32_t major, minor;

		found = at_start &&
			sscanf(line, "%" SCNu64 " %*u %" SCNu32 ":%" SCNu32, &id,
			       &major, &minor) == 3 &&
			id == mount.id && major == mount.major &&
			minor == mount.minor;
		at_start = false;
		for (const char *at = line; *at; at++)
			at_start = *at == '\n';
	}
	fclose(table);
	return found;
}

int replay_wait_unmount(struct replay_mount mount)
{
	int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC), result;
	struct pollfd changed = { .fd = fd, .events = POLLPRI };

	if (fd < 0)
		return -errno;
	while ((result = is_mounted(mount)) > 0)
		if (poll(&changed, 1, -1) < 0 && errno != EINTR) {
			result = -errno;
			break;
		}
	close(fd);
	return result;
}

uint32_t replay_major(uint64_t device)
{
	return major(device);
}

uint32_t replay_minor(uint64_t device)
{
	return minor(device);
}
