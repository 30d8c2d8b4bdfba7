/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a handle is taken from an O_PATH descriptor without privilege; opening
 * by handle needs it. Opening and closing with O_PATH raises no event.
 * Relied on by: REGISTER of descriptors, and the daemon's own lookups, which
 * must not feed the group they serve.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	touch("f");
	struct handle handle = handle_of("f");
	int mount_fd = MUST(open(".", O_RDONLY));
	int path_fd = MUST(open("f", O_PATH));
	int group = watch(REST | FAN_OPEN | FAN_ACCESS | FAN_CLOSE_NOWRITE);

	int again = MUST(open_handle(mount_fd, &handle));
	close(again);
	EXPECT_NOTHING(group);
	IN_CHILD({
		MUST(setresuid(65534, 65534, 65534));
		struct handle taken = handle_at(path_fd, "");
		HOLDS(same_handle(&handle, &taken));
		FAILS_WITH(open_handle(mount_fd, &handle), EPERM);
	});
	return 0;
}
