/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: statx of a name of 300 bytes fails with ENAMETOOLONG, and only once it
 * has had the directory's lock: it waits for a rename that is under way in that
 * directory, which queues all its records before it lets go. So after a RENAME
 * has been read at the queue's end, this call and another read have the
 * victim's record for certain.
 * Relied on by: the reconciler, which tells REPLACED and the victim by it.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

/* How many renames had no record of their victim after them. */
static int lacking_victim(int group, int directory, bool barrier, int rounds)
{
	static char name[301];
	struct statx status;
	int races = 0, lacking = 0;
	time_t end = time(NULL) + 5;

	memset(name, 'n', 300);
	while (races < rounds && time(NULL) < end) {
		record_count = 0;
		if (!read_once(group, 262144))
			continue;
		struct record last = records[record_count - 1];
		if (!(last.mask & FAN_RENAME))
			continue;
		races++;
		if (barrier)
			FAILS_WITH(syscall(SYS_statx, directory, name, 0,
					   STATX_BASIC_STATS, &status),
				   ENAMETOOLONG);
		record_count = 0;
		if (!read_once(group, 262144) ||
		    !(records[0].mask & FAN_ATTRIB) || records[0].dir.present)
			lacking++;
	}
	printf("%d of %d renames at the queue's end lacked their victim's record "
	       "%s\n", lacking, races, barrier ? "after the call" : "without it");
	if (races < 50)
		SKIP("%d races in 5 s are too few", races);
	return lacking;
}

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("d");
	int group = watch(FAN_RENAME | FAN_ATTRIB | FAN_DELETE_SELF | FAN_ONDIR);
	int directory = MUST(open("d", O_PATH | O_DIRECTORY));
	pid_t writer = MUST(fork());

	if (writer == 0)
		for (unsigned int i = 0;; i++) {
			char name[32];

			sprintf(name, "d/f%u", i % 64);
			touch(name);
			move(name, "d/target");
		}
	lacking_victim(group, directory, false, 100);
	int lacking = lacking_victim(group, directory, true, 2000);
	kill(writer, SIGKILL);
	waitpid(writer, NULL, 0);
	HOLDS(lacking == 0);
	return 0;
}
