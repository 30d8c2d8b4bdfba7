/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: unlink and rmdir queue DELETE_SELF before the DELETE with the name, so a
 * read can end between the two. Both are queued under the directory's lock:
 * after a statx of an over-long name in that directory, DELETE can be read.
 * Relied on by: the reconciler, which holds DELETE_SELF back until it can be an
 * object's last record.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

static struct record last;

/* Reads until a batch ends with DELETE_SELF; false when the time is over. */
static bool ends_with_delete_self(int group, time_t end)
{
	while (time(NULL) < end) {
		record_count = 0;
		if (!read_once(group, 262144))
			continue;
		last = records[record_count - 1];
		if (last.mask & FAN_DELETE_SELF)
			return true;
	}
	return false;
}

int main(int argc, char **argv)
{
	static char name[301];
	struct statx status;
	int races = 0, late = 0;

	assume_begin(argc, argv);
	memset(name, 'n', 300);
	make_directory("d");
	int group = watch(FAN_ATTRIB | FAN_DELETE | FAN_DELETE_SELF | FAN_ONDIR);
	int directory = MUST(open("d", O_PATH | O_DIRECTORY));
	pid_t writer = MUST(fork());

	if (writer == 0)
		for (;;) {
			touch("d/f");
			MUST(unlink("d/f"));
			make_directory("d/g");
			MUST(rmdir("d/g"));
		}
	time_t end = time(NULL) + 5;
	while (races < 300 && ends_with_delete_self(group, end)) {
		races++;
		FAILS_WITH(syscall(SYS_statx, directory, name, 0,
				   STATX_BASIC_STATS, &status), ENAMETOOLONG);
		record_count = 0;
		if (!read_once(group, 262144) || !(records[0].mask & FAN_DELETE))
			late++;
	}
	kill(writer, SIGKILL);
	waitpid(writer, NULL, 0);
	printf("%d reads ended with DELETE_SELF, %d had no DELETE behind it\n",
	       races, late);
	if (races < 20)
		SKIP("%d races in 5 s are too few", races);
	HOLDS(late == 0);
	return 0;
}
