// SPDX-License-Identifier: Apache-2.0
//
// The least that a watcher can do: what hostwatchd is measured against.
//
//     reference r1 DIR                  reads and discards events as they come
//     reference r2 DIR                  the same, and sleeps 1 ms before each read
//     reference r3 DIR FILE COUNT US    answers each record at once with a message of
//                                       128 bytes to a second process, which writes to
//                                       FILE every US microseconds, COUNT times, and
//                                       says how long the answers took
//     reference r4 DIR COUNT            receives the nodes of DIR (storm prepare), 250
//                                       descriptors a message: recvmsg, and for each
//                                       name_to_handle_at, statx, close
//     reference record DIR FILE BYTES   writes what one read gives to FILE, whole records
//                                       and no more than BYTES
//
// r1 and r2 print "ready", and at SIGTERM one line of JSON. r3 and r4 print one
// line of JSON and end.

#define _GNU_SOURCE
#include "common.h"
#include "hostwatch_protocol.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FAN_REPORT_TARGET_FID
#define FAN_REPORT_TARGET_FID 0x1000
#endif
#ifndef FAN_RENAME
#define FAN_RENAME 0x10000000
#endif

enum { BATCH = 250, BUFFER = 256 * 1024 };

static volatile sig_atomic_t stopped;
static char buffer[BUFFER];

static void on_signal(int number)
{
	(void)number;
	stopped = 1;
}

/* The same group and mark as the daemon's. */
static int watch(const char *directory)
{
	int group = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_DIR_FID |
					  FAN_REPORT_NAME | FAN_REPORT_FID |
					  FAN_REPORT_TARGET_FID | FAN_CLOEXEC,
				  O_RDONLY | O_CLOEXEC | O_LARGEFILE);
	if (group < 0)
		err(1, "fanotify_init");
	uint64_t mask = HW_EVENTS_DEFAULT | HW_CREATE | HW_DELETE | HW_RENAME |
			HW_ATTRIB | HW_DELETE_SELF | FAN_ONDIR;
	if (fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask,
			  AT_FDCWD, directory))
		err(1, "fanotify_mark %s", directory);
	return group;
}

static void discard(int group, bool sleeps)
{
	struct sigaction action = {.sa_handler = on_signal};
	uint64_t records = 0, reads = 0, overflows = 0, largest = 0;

	sigaction(SIGTERM, &action, NULL);
	printf("ready\n");
	fflush(stdout);
	while (!stopped) {
		if (sleeps)
			usleep(1000);
		ssize_t size = read(group, buffer, sizeof(buffer));
		if (size < 0 && errno == EINTR)
			continue;
		if (size < 0)
			err(1, "read");
		uint64_t before = records;
		struct fanotify_event_metadata *e = (void *)buffer;
		for (; FAN_EVENT_OK(e, size); e = FAN_EVENT_NEXT(e, size)) {
			records++;
			overflows += (e->mask & FAN_Q_OVERFLOW) != 0;
		}
		reads++;
		if (records - before > largest)
			largest = records - before;
	}
	printf("{\"records\": %lu, \"reads\": %lu, \"largest_batch\": %lu, "
	       "\"overflows\": %lu, \"cpu_ns\": %lu}\n",
	       records, reads, largest, overflows, cpu_ns());
}

/* Waits for SIGTERM while events gather, then reads once. */
static void record(int group, const char *file, size_t limit)
{
	sigset_t signals;
	int number;

	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	printf("ready\n");
	fflush(stdout);
	sigwait(&signals, &number);
	ssize_t size = read(group, buffer, limit < BUFFER ? limit : BUFFER);
	FILE *out = fopen(file, "w");
	if (size < 0 || !out || fwrite(buffer, 1, (size_t)size, out) != (size_t)size ||
	    fclose(out))
		err(1, "%s", file);
}

/* The second process of r3. */
static void change_and_wait(int answers, const char *file, size_t count,
			    uint64_t interval_us)
{
	uint64_t *latencies = calloc(count, sizeof(*latencies));
	int fd = open(file, O_WRONLY);
	char message[128];

	if (fd < 0 || !latencies)
		err(1, "%s", file);
	for (size_t i = 0; i < count; i++) {
		usleep((useconds_t)interval_us);
		uint64_t began = now_ns();
		if (pwrite(fd, &began, sizeof(began), 0) != sizeof(began))
			err(1, "write");
		if (recv(answers, message, sizeof(message), 0) < 0)
			err(1, "recv");
		latencies[i] = now_ns() - began;
	}
	print_latencies(latencies, count);
	/* Without closing it, which would be an event. */
	_exit(0);
}

static void answer(int group, char **arguments)
{
	int pair[2];
	char message[128] = {0};

	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		err(1, "socketpair");
	pid_t child = fork();
	if (!child)
		change_and_wait(pair[1], arguments[0],
				strtoull(arguments[1], NULL, 10),
				strtoull(arguments[2], NULL, 10));
	close(pair[1]);
	/* A record each: no two writes are under way at a time. */
	for (size_t left = strtoull(arguments[1], NULL, 10); left;) {
		ssize_t size = read(group, buffer, sizeof(buffer));
		if (size < 0)
			err(1, "read");
		struct fanotify_event_metadata *e = (void *)buffer;
		for (; left && FAN_EVENT_OK(e, size);
		     e = FAN_EVENT_NEXT(e, size), left--) {
			memcpy(message, e,
			       e->event_len < sizeof(message) ? e->event_len
							      : sizeof(message));
			if (send(pair[0], message, sizeof(message),
				 MSG_NOSIGNAL) < 0)
				err(1, "send");
		}
	}
	waitpid(child, NULL, 0);
}

static void send_descriptors(int socket, const int *fds)
{
	char space[CMSG_SPACE(BATCH * sizeof(int))] = {0}, byte = 0;
	struct iovec piece = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {.msg_iov = &piece,
				 .msg_iovlen = 1,
				 .msg_control = space,
				 .msg_controllen = sizeof(space)};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(BATCH * sizeof(int));
	memcpy(CMSG_DATA(header), fds, BATCH * sizeof(int));
	if (sendmsg(socket, &message, 0) < 0)
		err(1, "sendmsg");
}

static void receive_nodes(int socket)
{
	char space[CMSG_SPACE(BATCH * sizeof(int))], byte;
	struct {
		struct file_handle handle;
		unsigned char bytes[128];
	} handle;
	struct statx status;
	uint64_t nodes = 0, spent = cpu_ns();
	int mount;

	while (1) {
		struct iovec piece = {.iov_base = &byte, .iov_len = 1};
		struct msghdr message = {.msg_iov = &piece,
					 .msg_iovlen = 1,
					 .msg_control = space,
					 .msg_controllen = sizeof(space)};
		if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) <= 0)
			break;
		const int *fds = (void *)CMSG_DATA(CMSG_FIRSTHDR(&message));
		for (int i = 0; i < BATCH; i++) {
			handle.handle.handle_bytes = 128;
			if (name_to_handle_at(fds[i], "", &handle.handle, &mount,
					      AT_EMPTY_PATH))
				err(1, "name_to_handle_at");
			if (statx(fds[i], "", AT_EMPTY_PATH,
				  STATX_BASIC_STATS, &status))
				err(1, "statx");
			close(fds[i]);
			nodes++;
		}
		if (send(socket, &byte, 1, 0) < 0)
			err(1, "send");
	}
	printf("{\"nodes\": %lu, \"cpu_ns\": %lu}\n", nodes, cpu_ns() - spent);
}

static void register_bare(const char *directory, uint64_t count)
{
	int pair[2], fds[BATCH], top = open(directory, O_PATH | O_DIRECTORY);
	char path[64], byte;

	if (top < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair))
		err(1, "%s", directory);
	pid_t child = fork();
	if (!child) {
		close(pair[0]);
		receive_nodes(pair[1]);
		exit(0);
	}
	close(pair[1]);
	for (uint64_t done = 0; done + BATCH <= count; done += BATCH) {
		for (int i = 0; i < BATCH; i++) {
			node_path(path, sizeof(path), done + (uint64_t)i);
			fds[i] = openat(top, path, O_PATH);
			if (fds[i] < 0)
				err(1, "%s", path);
		}
		send_descriptors(pair[0], fds);
		for (int i = 0; i < BATCH; i++)
			close(fds[i]);
		if (recv(pair[0], &byte, 1, 0) != 1)
			errx(1, "the receiver ended");
	}
	close(pair[0]);
	waitpid(child, NULL, 0);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		errx(64, "usage: reference r1|r2|r3|r4 DIR ...");
	if (!strcmp(argv[1], "r4") && argc == 4)
		register_bare(argv[2], strtoull(argv[3], NULL, 10));
	else if (!strcmp(argv[1], "r3") && argc == 6)
		answer(watch(argv[2]), argv + 3);
	else if (!strcmp(argv[1], "record") && argc == 5)
		record(watch(argv[2]), argv[3], strtoull(argv[4], NULL, 10));
	else if (!strcmp(argv[1], "r1") || !strcmp(argv[1], "r2"))
		discard(watch(argv[2]), argv[1][1] == '2');
	else
		errx(64, "reference: wrong arguments");
	return 0;
}
