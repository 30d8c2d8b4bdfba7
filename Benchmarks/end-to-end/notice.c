// SPDX-License-Identifier: Apache-2.0
//
// How long it takes from a change to its inotify event.
//
//     notice CHANGED WATCHED COUNT US
//         changes the directory CHANGED, COUNT times a change every US microseconds, for
//         each kind of change, and waits for the event in WATCHED, which is the same
//         directory or a mount's view of it. Prints a line of JSON for each kind.

#define _GNU_SOURCE
#include "common.h"
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

static int directory, watch;

static void make(void)
{
	if (mknodat(directory, "f", S_IFREG | 0600, 0))
		err(1, "mknod");
}

static void change_mode(void)
{
	static mode_t mode = 0600;

	if (fchmodat(directory, "f", mode ^= 0100, 0))
		err(1, "chmod");
}

/* The time counts from the close, which comes last and raises the event. */
static void write_file(void)
{
	int fd = openat(directory, "f", O_WRONLY);

	if (fd < 0 || write(fd, "x", 1) != 1 || close(fd))
		err(1, "write");
}

static void move(void)
{
	if (renameat(directory, "f", directory, "g"))
		err(1, "rename");
}

static void take_away(void)
{
	if (unlinkat(directory, "f", 0))
		err(1, "unlink");
}

static void take_moved(void)
{
	if (unlinkat(directory, "g", 0))
		err(1, "unlink");
}

static void nothing(void)
{
}

static const struct {
	const char *name;
	void (*before)(void), (*change)(void), (*after)(void);
	uint32_t event;
} kinds[] = {
	{ "create", nothing, make, take_away, IN_CREATE },
	{ "chmod", make, change_mode, take_away, IN_ATTRIB },
	{ "write", make, write_file, take_away, IN_CLOSE_WRITE },
	{ "rename", make, move, take_moved, IN_MOVED_TO },
	{ "unlink", make, take_away, nothing, IN_DELETE },
};

/* Reads until the event is there; without one, what there is. */
static void wait_for(uint32_t event)
{
	char buffer[16384] __attribute__((aligned(8)));
	struct pollfd fd = { .fd = watch, .events = POLLIN };

	while (poll(&fd, 1, event ? 10000 : 0) > 0) {
		ssize_t size = read(watch, buffer, sizeof(buffer));
		for (char *at = buffer; at < buffer + size;) {
			struct inotify_event *one = (void *)at;
			if (one->mask & event)
				return;
			at += sizeof(*one) + one->len;
		}
	}
	if (event)
		errx(1, "no event in 10 s");
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(64, "usage: notice CHANGED WATCHED COUNT US");
	size_t count = strtoull(argv[3], NULL, 10);
	useconds_t interval = (useconds_t)strtoul(argv[4], NULL, 10);
	uint64_t *latencies = calloc(count, sizeof(*latencies));
	directory = open(argv[1], O_RDONLY | O_DIRECTORY);
	watch = inotify_init1(IN_CLOEXEC);
	if (directory < 0 || watch < 0 || !latencies ||
	    inotify_add_watch(watch, argv[2], IN_ALL_EVENTS) < 0)
		err(1, "%s", argv[2]);
	for (size_t kind = 0; kind < sizeof(kinds) / sizeof(kinds[0]); kind++) {
		for (size_t i = 0; i < count; i++) {
			kinds[kind].before();
			usleep(interval);
			wait_for(0);
			uint64_t began = now_ns();
			kinds[kind].change();
			wait_for(kinds[kind].event);
			latencies[i] = now_ns() - began;
			usleep(interval);
			kinds[kind].after();
		}
		printf("%s ", kinds[kind].name);
		print_latencies(latencies, count);
		fflush(stdout);
	}
	return 0;
}
