/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a record's pid is that of the process (tgid), from a thread as well.
 * Relied on by: origin and SUPPRESS_ECHO.
 * Filesystems: ext4 tmpfs
 */
#include "assume.h"
#include <pthread.h>

static void *in_thread(void *unused)
{
	touch("f");
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	assume_begin(argc, argv);
	int group = watch(REST);
	HOLDS(pthread_create(&thread, NULL, in_thread, NULL) == 0);
	pthread_join(thread, NULL);
	HOLDS(drain(group) == 1);
	HOLDS(records[0].pid == getpid());
	return 0;
}
