// SPDX-License-Identifier: Apache-2.0
//
// Changes a filesystem, and says what that cost the one who did it.
//
//     storm DIR prepare NODES            64 directories d0..d63, `elsewhere`, and
//                                        NODES empty files nodes/N/N
//     storm DIR churn COUNT RATE SECONDS create, write, rename, unlink a file
//     storm DIR replace ...              write to a temporary file, rename it over
//     storm DIR cycle ...                rename a file there and back and there, which
//                                        the kernel's queue makes ambiguous
//     storm DIR overwrite ... NODES      write to a random one of the NODES files
//     storm DIR append ...               write to 64 open files
//
// COUNT is the number of rounds, 0 for no limit but SECONDS. RATE is rounds a
// second, 0 for as fast as it goes. Prints one line of JSON: rounds, changes
// (system calls that change something), its own CPU and the time it took.

#define _GNU_SOURCE
#include "common.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int directories[DIRECTORIES];
static int held[DIRECTORIES];
static char block[64];

static void make_directory(int at, const char *name)
{
	if (mkdirat(at, name, 0755) && errno != EEXIST)
		err(1, "mkdir %s", name);
}

static void prepare(int top, uint64_t nodes)
{
	char path[64];

	for (int i = 0; i < DIRECTORIES; i++) {
		snprintf(path, sizeof(path), "d%d", i);
		make_directory(top, path);
	}
	make_directory(top, "elsewhere");
	make_directory(top, "nodes");
	for (uint64_t i = 0; i < nodes; i++) {
		if (i % FILES_PER_DIRECTORY == 0) {
			snprintf(path, sizeof(path), "nodes/%lu",
				 i / FILES_PER_DIRECTORY);
			make_directory(top, path);
		}
		node_path(path, sizeof(path), i);
		if (mknodat(top, path, S_IFREG | 0644, 0) && errno != EEXIST)
			err(1, "mknod %s", path);
	}
}

static void put(int fd)
{
	if (pwrite(fd, block, sizeof(block), 0) != sizeof(block))
		err(1, "write");
}

static int create(int directory, const char *name)
{
	int fd = openat(directory, name, O_CREAT | O_TRUNC | O_WRONLY, 0644);

	if (fd < 0)
		err(1, "create %s", name);
	return fd;
}

/* Each returns how many changes it made. */

static unsigned churn(uint64_t i)
{
	int directory = directories[i % DIRECTORIES];
	char from[24], to[24];

	snprintf(from, sizeof(from), "f%lu", i % 100000);
	snprintf(to, sizeof(to), "g%lu", i % 100000);
	int fd = create(directory, from);
	put(fd);
	close(fd);
	if (renameat(directory, from, directory, to))
		err(1, "rename");
	if (unlinkat(directory, to, 0))
		err(1, "unlink");
	return 4;
}

static unsigned replace(uint64_t i)
{
	int directory = directories[i % DIRECTORIES];
	int fd = create(directory, "document.new");

	put(fd);
	close(fd);
	if (renameat(directory, "document.new", directory, "document"))
		err(1, "rename");
	return 3;
}

static unsigned cycle(uint64_t i)
{
	int directory = directories[i % DIRECTORIES];
	char from[24], to[24];

	snprintf(from, sizeof(from), "a%lu", i % 1000);
	snprintf(to, sizeof(to), "b%lu", i % 1000);
	close(create(directory, from));
	for (int step = 0; step < 3; step++)
		if (renameat(directory, step == 1 ? to : from, directory,
			     step == 1 ? from : to))
			err(1, "rename");
	return 4;
}

static unsigned append(uint64_t i)
{
	put(held[i % DIRECTORIES]);
	return 1;
}

static int top;
static uint64_t nodes;

static unsigned overwrite(uint64_t i)
{
	char path[64];
	/* splitmix64: the same files in every run. */
	uint64_t z = (i + 1) * 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	node_path(path, sizeof(path), (z ^ z >> 31) % nodes);
	int fd = openat(top, path, O_WRONLY);
	if (fd < 0)
		err(1, "open %s", path);
	put(fd);
	close(fd);
	return 1;
}

static void open_directories(void)
{
	char name[8];

	for (int i = 0; i < DIRECTORIES; i++) {
		snprintf(name, sizeof(name), "d%d", i);
		directories[i] = openat(top, name, O_PATH | O_DIRECTORY);
		if (directories[i] < 0)
			err(1, "open %s", name);
	}
}

int main(int argc, char **argv)
{
	if (argc < 4)
		errx(64, "usage: storm DIR prepare NODES | "
			 "storm DIR MODE COUNT RATE SECONDS [NODES]");
	top = open(argv[1], O_PATH | O_DIRECTORY);
	if (top < 0)
		err(1, "%s", argv[1]);
	if (!strcmp(argv[2], "prepare")) {
		prepare(top, strtoull(argv[3], NULL, 10));
		return 0;
	}
	if (argc < 6)
		errx(64, "storm: COUNT RATE SECONDS are missing");
	uint64_t count = strtoull(argv[3], NULL, 10);
	uint64_t rate = strtoull(argv[4], NULL, 10);
	uint64_t limit = strtoull(argv[5], NULL, 10) * 1000000000;
	unsigned (*round)(uint64_t);

	nodes = argc > 6 ? strtoull(argv[6], NULL, 10) : 0;
	open_directories();
	if (!strcmp(argv[2], "churn")) {
		round = churn;
	} else if (!strcmp(argv[2], "replace")) {
		round = replace;
	} else if (!strcmp(argv[2], "cycle")) {
		round = cycle;
	} else if (!strcmp(argv[2], "overwrite") && nodes) {
		round = overwrite;
	} else if (!strcmp(argv[2], "append")) {
		round = append;
		for (int i = 0; i < DIRECTORIES; i++)
			held[i] = create(directories[i], "appended");
	} else {
		errx(64, "storm: no mode %s", argv[2]);
	}
	uint64_t began = now_ns(), spent = cpu_ns(), changes = 0, done = 0;
	while (!count || done < count) {
		changes += round(done++);
		if (done % 16)
			continue;
		if (limit && now_ns() - began >= limit)
			break;
		if (rate)
			sleep_until(began + done * 1000000000 / rate);
	}
	printf("{\"rounds\": %lu, \"changes\": %lu, \"cpu_ns\": %lu, "
	       "\"wall_ns\": %lu}\n",
	       done, changes, cpu_ns() - spent, now_ns() - began);
	return 0;
}
