/* SPDX-License-Identifier: Apache-2.0 */
/* The process: its threads' ids, its session, its end, and who asks it from outside. */
#define FUSE_USE_VERSION 314
#include "CHostWatchFS.h"
#include "result.h"

#include <fuse_lowlevel.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* glibc's calls would change every thread. */
static int set_ids(uid_t uid, gid_t gid)
{
	if (syscall(SYS_setresgid, -1, gid, -1) < 0 ||
	    syscall(SYS_setresuid, -1, uid, -1) < 0)
		return -errno;
	return 0;
}

int hwfs_become(uid_t uid, gid_t gid, const gid_t *groups, size_t count,
		mode_t mask)
{
	static __thread bool own_context;
	int error;

	if (!own_context && unshare(CLONE_FS) < 0)
		return -errno;
	own_context = true;
	/* Who has not the right to that has changed nothing yet. */
	if (syscall(SYS_setgroups, count, groups) < 0)
		return -errno;
	error = set_ids(uid, gid);
	if (error)
		hwfs_restore();
	else
		umask(mask);
	return error;
}

void hwfs_restore(void)
{
	char text[100];

	umask(0);
	/* The effective uid first: only it may change the rest. */
	if (syscall(SYS_setresuid, -1, 0, -1) == 0 &&
	    syscall(SYS_setgroups, 0, NULL) == 0 && set_ids(0, 0) == 0)
		return;
	snprintf(text, sizeof(text),
		 "hostwatchfs: a thread's ids cannot be restored: %s\n",
		 strerror(errno));
	hwfs_print_error(text, strlen(text));
	abort();
}

int hwfs_notify_epoch(int fuse_fd)
{
	/* struct fuse_out_header with unique 0; the code stands for an error. */
	struct {
		uint32_t size;
		int32_t code;
		uint64_t unique;
	} message = { sizeof(message), 8 /* FUSE_NOTIFY_INC_EPOCH */, 0 };

	return write(fuse_fd, &message, sizeof(message)) < 0 ? -errno : 0;
}

static sigset_t ends;
static pthread_t looping;
static atomic_bool has_looped;

static void nothing(int number) { (void)number; }

void hwfs_block_ends(void)
{
	static const int numbers[] = { SIGHUP, SIGINT, SIGTERM };
	/* Without SA_RESTART: it ends a sem_wait(3). */
	struct sigaction waking = { .sa_handler = nothing }, before;
	sigset_t wakes;

	sigemptyset(&ends);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
		/* What nohup(1) has ignored stays so: sigwait(3) would see it. */
		if (sigaction(numbers[i], NULL, &before) == 0 &&
		    before.sa_handler != SIG_IGN)
			sigaddset(&ends, numbers[i]);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	signal(SIGPIPE, SIG_IGN);
	looping = pthread_self();
	sigaction(SIGUSR1, &waking, NULL);
	sigemptyset(&wakes);
	sigaddset(&wakes, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &wakes, NULL);
}

void hwfs_abort(const char *mount)
{
	(void)umount2(mount, MNT_FORCE | MNT_DETACH);
}

void hwfs_await_end(void)
{
	int number;

	while (sigwait(&ends, &number) != 0)
		;
}

void hwfs_wake_loop(void)
{
	/* Again, since libfuse may have looked before and go to sleep now. */
	while (!has_looped) {
		pthread_kill(looping, SIGUSR1);
		poll(NULL, 0, 10);
	}
}

int hwfs_session_loop(struct fuse_session *session, unsigned max_threads,
		      unsigned idle_threads)
{
	struct fuse_loop_config *config = fuse_loop_cfg_create();
	int result;

	if (!config)
		return -ENOMEM;
	fuse_loop_cfg_set_max_threads(config, max_threads);
	fuse_loop_cfg_set_idle_threads(config, idle_threads);
	result = fuse_session_loop_mt(session, config);
	fuse_loop_cfg_destroy(config);
	has_looped = true;
	return result;
}

static int starter = -1; /* the pipe to the process that waits */

int hwfs_daemonize(void)
{
	int ends[2];
	pid_t child;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child > 0) {
		unsigned char status = 70; /* EX_SOFTWARE: it died */
		ssize_t size;

		close(ends[1]);
		do
			size = read(ends[0], &status, 1);
		while (size < 0 && errno == EINTR);
		_exit(status);
	}
	close(ends[0]);
	starter = ends[1];
	if (setsid() < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

void hwfs_started(int status)
{
	unsigned char byte = (unsigned char)status;
	ssize_t size;

	if (starter < 0)
		return;
	do
		size = write(starter, &byte, 1);
	while (size < 0 && errno == EINTR);
	close(starter);
	starter = -1;
	if (status == 0) {
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);

		if (null >= 0) {
			dup2(null, 0);
			dup2(null, 1);
			dup2(null, 2);
			if (null > 2)
				close(null);
		}
	}
}

void hwfs_name_thread(const char *name)
{
	pthread_setname_np(pthread_self(), name);
}

int hwfs_event_new(void) { RESULT(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }

void hwfs_event_raise(int event) { eventfd_write(event, 1); }

void hwfs_event_wait(int event, int timeout_ms)
{
	struct pollfd poll_event = { .fd = event, .events = POLLIN };
	eventfd_t count;

	poll(&poll_event, 1, timeout_ms);
	eventfd_read(event, &count);
}

void hwfs_wait(int first, int second, int timeout_ms)
{
	struct pollfd fds[2] = { { .fd = first, .events = POLLIN },
				 { .fd = second, .events = POLLIN } };

	poll(fds, 2, timeout_ms);
}

/* Removes the sockets of servers that were killed: nobody listens, and no
 * process has the number that is the name. */
static void sweep(const char *directory)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	DIR *entries = opendir(directory);
	struct dirent *entry;

	while (entries && (entry = readdir(entries))) {
		char *end;
		long pid = strtol(entry->d_name, &end, 10);
		int probe, size = snprintf(address.sun_path,
					   sizeof(address.sun_path), "%s/%s",
					   directory, entry->d_name);

		if (pid <= 0 || strcmp(end, ".sock") != 0 || size < 0 ||
		    (size_t)size >= sizeof(address.sun_path) ||
		    kill((pid_t)pid, 0) == 0 || errno != ESRCH)
			continue;
		probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		if (probe < 0)
			break;
		if (connect(probe, (struct sockaddr *)&address,
			    sizeof(address)) < 0 && errno == ECONNREFUSED)
			unlink(address.sun_path);
		close(probe);
	}
	if (entries)
		closedir(entries);
}

int hwfs_listen(const char *directory, const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int listener, probe, error;
	int size = snprintf(address.sun_path, sizeof(address.sun_path), "%s/%s",
			    directory, name);

	if (size < 0 || (size_t)size >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	if (mkdir(directory, 0755) == 0)
		chmod(directory, 0755); /* the umask is 0 */
	else if (errno != EEXIST)
		return -errno;
	sweep(directory);
	probe = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (probe < 0)
		return -errno;
	error = connect(probe, (struct sockaddr *)&address,
			sizeof(address)) < 0 ? errno : EADDRINUSE;
	close(probe);
	if (error == ECONNREFUSED)
		unlink(address.sun_path);
	else if (error != ENOENT)
		return -error;
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (listener < 0)
		return -errno;
	/* The mode is that of the socket before bind(2). */
	if (fchmod(listener, 0600) < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(listener, 16) < 0) {
		error = errno;
		close(listener);
		return -error;
	}
	return listener;
}

int hwfs_accept(int socket)
{
	struct timeval limit = { .tv_sec = 1 };
	int peer = accept4(socket, NULL, NULL, SOCK_CLOEXEC);

	if (peer < 0)
		return -errno;
	setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	return peer;
}

long hwfs_receive(int socket, char *buffer, size_t size)
{
	RESULT(recv(socket, buffer, size, 0));
}

long hwfs_send(int socket, const char *data, size_t size)
{
	RESULT(send(socket, data, size, MSG_NOSIGNAL));
}

void hwfs_print_error(const char *text, size_t size)
{
	while (size > 0) {
		ssize_t written = write(STDERR_FILENO, text, size);

		if (written < 0 && errno != EINTR)
			return;
		if (written > 0) {
			text += written;
			size -= (size_t)written;
		}
	}
}

int hwfs_thread_id(void) { return (int)syscall(SYS_gettid); }

bool hwfs_has_capability(int capability)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3
	};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data) < 0)
		return false;
	return data[capability / 32].effective >> capability % 32 & 1;
}