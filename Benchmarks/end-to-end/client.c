// SPDX-License-Identifier: Apache-2.0
//
// A FUSE server's side of hostwatchd, with the C library.
//
//     client SOCKET DIR latency FILE COUNT US
//         writes to FILE every US microseconds, COUNT times, and says how long it
//         took until the event was there
//     client SOCKET DIR count NODES SESSIONS QUEUE
//         registers the 64 directories of DIR (storm prepare) and NODES of its nodes,
//         opens SESSIONS - 1 further sessions that register nothing, and counts
//         what comes until SIGTERM. QUEUE: bytes of the daemon's queue, 0 = default.
//         Prints a line of JSON when it is ready, for each LOST and RESYNCED, and at
//         the end.

#define _GNU_SOURCE
#include "common.h"
#include "hostwatch.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { BATCH = 250 };

static const char *socket_path;
static uint64_t records, lost, kinds[32];

static struct hostwatch *open_session(int root, uint32_t queue)
{
	struct hostwatch_options options;
	struct hostwatch *session;

	hostwatch_options_init(&options, sizeof(options));
	options.socket_path = socket_path;
	options.root_fd = root;
	options.queue_limit = queue;
	options.max_delay_us = 1000;
	int result = hostwatch_open(&options, &session);
	if (result < 0)
		errx(1, "hostwatch_open: %s: %s", strerror(-result),
		     hostwatch_error_text());
	return session;
}

static void register_path(struct hostwatch *session, int top, const char *path,
			  uint64_t nodeid)
{
	int fd = openat(top, path, O_PATH);
	int result = fd < 0 ? -1
			    : hostwatch_register(session, fd, nodeid, nodeid, 0,
						 NULL);

	if (result < 0)
		errx(1, "%s: %s", path, hostwatch_error_text());
	close(fd);
}

static void register_nodes(struct hostwatch *session, int top, uint64_t nodes)
{
	struct hw_register_entry entries[BATCH];
	int fds[BATCH];
	int32_t statuses[BATCH];
	char path[64];

	for (uint64_t done = 0; done < nodes;) {
		uint64_t count = nodes - done < BATCH ? nodes - done : BATCH;
		memset(entries, 0, sizeof(entries));
		for (uint64_t i = 0; i < count; i++) {
			node_path(path, sizeof(path), done + i);
			fds[i] = openat(top, path, O_PATH);
			if (fds[i] < 0)
				err(1, "%s", path);
			entries[i].nodeid = 1000 + done + i;
			entries[i].generation = 1;
		}
		if (hostwatch_register_many(session, entries, fds, count,
					    statuses) != (int)count)
			errx(1, "register: %s", hostwatch_error_text());
		for (uint64_t i = 0; i < count; i++)
			close(fds[i]);
		done += count;
	}
}

static void latency(int top, char **arguments)
{
	size_t count = strtoull(arguments[1], NULL, 10);
	useconds_t interval = (useconds_t)strtoul(arguments[2], NULL, 10);
	uint64_t *latencies = calloc(count, sizeof(*latencies));
	struct hostwatch *session = open_session(top, 0);
	struct hostwatch_event event;
	int fd = openat(top, arguments[0], O_WRONLY);

	if (fd < 0 || !latencies)
		err(1, "%s", arguments[0]);
	register_path(session, top, arguments[0], 2);
	for (size_t i = 0; i < count; i++) {
		usleep(interval);
		/* A change may be two records: those left are not the next one's. */
		while (hostwatch_next(session, &event, 0) == 1)
			;
		uint64_t began = now_ns();
		if (pwrite(fd, &began, sizeof(began), 0) != sizeof(began))
			err(1, "write");
		do {
			if (hostwatch_next(session, &event, -1) != 1)
				errx(1, "%s", hostwatch_error_text());
		} while (event.kind != HOSTWATCH_EVENT);
		latencies[i] = now_ns() - began;
	}
	print_latencies(latencies, count);
	hostwatch_close(session);
}

static void *read_events(void *session)
{
	struct hostwatch_event event;

	while (hostwatch_next(session, &event, -1) == 1) {
		switch (event.kind) {
		case HOSTWATCH_EVENT:
			records++;
			for (int bit = 0; bit < 32; bit++)
				kinds[bit] += event.mask >> bit & 1;
			break;
		case HOSTWATCH_LOST:
			lost++;
			printf("{\"lost\": %u, \"at_ns\": %lu}\n", event.reason,
			       now_ns());
			fflush(stdout);
			break;
		case HOSTWATCH_RESYNCED:
			printf("{\"resynced\": %lu, \"reported\": %lu, "
			       "\"at_ns\": %lu}\n",
			       event.nodes_checked, event.nodes_reported,
			       now_ns());
			fflush(stdout);
			break;
		case HOSTWATCH_DISCONNECTED:
			return NULL;
		}
	}
	return NULL;
}

static void count_events(int top, char **arguments)
{
	uint64_t nodes = strtoull(arguments[0], NULL, 10);
	uint64_t sessions = strtoull(arguments[1], NULL, 10);
	struct hostwatch *session =
		open_session(top, (uint32_t)strtoul(arguments[2], NULL, 10));
	int elsewhere = openat(top, "elsewhere", O_RDONLY | O_DIRECTORY);
	pthread_t reader;
	sigset_t signals;
	char path[16];
	int number;

	for (int i = 0; i < DIRECTORIES; i++) {
		snprintf(path, sizeof(path), "d%d", i);
		register_path(session, top, path, 2 + (uint64_t)i);
	}
	uint64_t began = now_ns();
	register_nodes(session, top, nodes);
	uint64_t took = now_ns() - began;
	for (uint64_t i = 1; i < sessions; i++)
		open_session(elsewhere, 0);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	if (pthread_create(&reader, NULL, read_events, session))
		errx(1, "pthread_create");
	printf("{\"ready\": true, \"registered\": %lu, \"took_ns\": %lu}\n",
	       nodes, took);
	fflush(stdout);
	sigwait(&signals, &number);
	if (hostwatch_sync(session) < 0)
		errx(1, "sync: %s", hostwatch_error_text());
	hostwatch_shutdown(session);
	pthread_join(reader, NULL);
	printf("{\"records\": %lu, \"lost\": %lu, \"create\": %lu, "
	       "\"modify\": %lu, \"rename\": %lu, \"delete\": %lu, "
	       "\"cpu_ns\": %lu}\n",
	       records, lost, kinds[8], kinds[1], kinds[28], kinds[9], cpu_ns());
	exit(0);
}

int main(int argc, char **argv)
{
	if (argc != 7)
		errx(64, "usage: client SOCKET DIR latency FILE COUNT US | "
			 "client SOCKET DIR count NODES SESSIONS QUEUE");
	socket_path = argv[1];
	int top = open(argv[2], O_RDONLY | O_DIRECTORY);
	if (top < 0)
		err(1, "%s", argv[2]);
	if (!strcmp(argv[3], "latency"))
		latency(top, argv + 4);
	else
		count_events(top, argv + 4);
	return 0;
}
