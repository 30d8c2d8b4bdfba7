/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a queue at its limit ends with one overflow record: 24 bytes, pid 0, no
 * descriptor, no information. What comes later is dropped until something is
 * read. The limit is taken from fs.fanotify.max_queued_events when the group is
 * made.
 * Relied on by: the group (it raises the limit before), and LOST.
 * Filesystems: tmpfs
 */
#include "assume.h"

static void set_limit(int limit)
{
	FILE *file = fopen("/proc/sys/fs/fanotify/max_queued_events", "w");

	if (!file || fprintf(file, "%d\n", limit) < 0 || fclose(file))
		SKIP("fs.fanotify.max_queued_events cannot be set");
}

int main(int argc, char **argv)
{
	char name[32];
	int limit;

	assume_begin(argc, argv);
	FILE *file = fopen("/proc/sys/fs/fanotify/max_queued_events", "r");
	if (!file || fscanf(file, "%d", &limit) != 1)
		SKIP("no fs.fanotify.max_queued_events");
	fclose(file);
	/* A raised limit takes long to fill: lowered for this one call. */
	int former = limit;
	if (limit > 16384)
		limit = 16384;
	set_limit(limit);
	int group = open_group(0);
	set_limit(former);
	MUST(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_CREATE,
			   AT_FDCWD, "."));
	for (int i = 0; i < limit + 100; i++) {
		sprintf(name, "f%d", i);
		MUST(mknod(name, S_IFREG | 0600, 0));
	}
	int queued = 0, after = 0, overflows = 0;
	for (record_count = 0; read_once(group, 65536); record_count = 0)
		for (unsigned int i = 0; i < record_count; i++) {
			queued++;
			after += overflows;
			if (!(records[i].mask & FAN_Q_OVERFLOW))
				continue;
			overflows++;
			HOLDS(records[i].length == 24);
			HOLDS(records[i].pid == 0 && records[i].fd == FAN_NOFD);
			HOLDS(!records[i].dir.present && !records[i].self.present);
		}
	HOLDS(overflows == 1);
	HOLDS(after == 0);
	HOLDS(queued == limit + 1);
	touch("later");
	HOLDS(drain(group) == 1);
	return 0;
}
