/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints what happens below a directory or in a configured share.
 *
 *   $ cd Sources/CHostWatch
 *   $ cc -pthread -Iinclude -o watch ../../examples/watch.c *.c
 *   # ./watch /srv/src
 *   1 CREATE notes.txt
 *   2 RENAME notes.txt -> archive/notes.txt
 */
#define _POSIX_C_SOURCE 200809L
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "hostwatch.h"

static const struct {
	uint32_t bit;
	const char *name;
} bits[] = {
	{ HW_CREATE, "CREATE" }, { HW_MODIFY, "MODIFY" },
	{ HW_ATTRIB, "ATTRIB" }, { HW_CLOSE_WRITE, "CLOSE_WRITE" },
	{ HW_DELETE, "DELETE" }, { HW_DELETE_SELF, "DELETE_SELF" },
	{ HW_RENAME, "RENAME" },
};

static void print_name(const char *path, uint32_t path_size,
		       const char *name, uint32_t name_size)
{
	printf("%.*s%s%.*s", (int)path_size, path,
	       path_size && name_size ? "/" : "", (int)name_size, name);
}

static void print_event(const struct hostwatch_event *e)
{
	printf("%llu ", (unsigned long long)e->sequence);
	for (size_t i = 0; i < sizeof(bits) / sizeof(*bits); i++)
		if (e->mask & bits[i].bit)
			printf("%s ", bits[i].name);
	if (e->flags & HW_RECHECK)
		printf("RECHECK ");
	print_name(e->path, e->path_size, e->name, e->name_size);
	if (e->mask & HW_RENAME) {
		printf(" -> ");
		print_name(e->new_path, e->new_path_size, e->new_name,
			   e->new_name_size);
	}
	putchar('\n');
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct hostwatch_options options;
	struct hostwatch_event event;
	struct hostwatch *h;

	hostwatch_options_init(&options, sizeof(options));
	options.mode = HW_MODE_TREE;
	options.options = HW_WANT_PATH;
	if (argc > 1 && strchr(argv[1], '/')) {
		options.root_fd = open(argv[1], O_RDONLY | O_DIRECTORY);
		if (options.root_fd < 0) {
			perror(argv[1]);
			return 1;
		}
	} else if (argc > 1) {
		options.share = argv[1];
	}
	if (hostwatch_open(&options, &h) < 0) {
		fprintf(stderr, "watch: %s\n", hostwatch_error_text());
		return 1;
	}
	while (hostwatch_next(h, &event, -1) == 1) {
		if (event.kind == HOSTWATCH_EVENT)
			print_event(&event);
		else if (event.kind == HOSTWATCH_DISCONNECTED)
			fprintf(stderr, "watch: %s\n", event.text);
		else if (event.kind == HOSTWATCH_LOST)
			puts("events were lost");
	}
	hostwatch_close(h);
	return 1;
}
