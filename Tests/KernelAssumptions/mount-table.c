/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: /proc/self/mountinfo polls POLLPRI after every change of the mount table.
 * Relied on by: noticing unmounts (DETACHED 1) and remounts.
 * Filesystems: tmpfs
 */
#include "assume.h"

static bool changed(int table)
{
	struct pollfd poll_for = { .fd = table, .events = POLLPRI };

	return MUST(poll(&poll_for, 1, 0)) == 1 && poll_for.revents & POLLPRI;
}

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	int table = MUST(open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
	make_directory("m");
	changed(table);
	HOLDS(!changed(table));
	MUST(mount("t", "m", "tmpfs", 0, ""));
	HOLDS(changed(table));
	HOLDS(!changed(table));
	MUST(umount("m"));
	HOLDS(changed(table));
	MUST(mount("t", "m", "tmpfs", 0, ""));
	HOLDS(changed(table));
	MUST(umount2("m", MNT_DETACH));
	HOLDS(changed(table));
	return 0;
}
