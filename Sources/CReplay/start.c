/* SPDX-License-Identifier: Apache-2.0 */
/* The server's side of the replayer. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "CReplay.h"

extern char **environ;

/* A descriptor at or above 10, so that those the child expects are free. */
static int away(int fd)
{
	return fcntl(fd, F_DUPFD_CLOEXEC, 10);
}

pid_t replay_start(const char *program, const char *argument, int mount, int *socket)
{
	char *arguments[] = { (char *)(uintptr_t)program, (char *)(uintptr_t)argument, NULL };
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	int pair[2], theirs, root, error;
	pid_t pid = -1;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	theirs = away(pair[1]);
	root = away(mount);
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &all);
	/* A session of its own: ^C is for the server, which sees to an end. */
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						      POSIX_SPAWN_SETSID);
	posix_spawn_file_actions_adddup2(&actions, theirs, REPLAY_SOCKET);
	posix_spawn_file_actions_adddup2(&actions, root, REPLAY_MOUNT);
	error = theirs < 0 || root < 0 ?
			EMFILE :
			posix_spawn(&pid, program, &actions, &attributes, arguments, environ);
	posix_spawn_file_actions_destroy(&actions);
	posix_spawnattr_destroy(&attributes);
	close(pair[1]);
	if (theirs >= 0)
		close(theirs);
	if (root >= 0)
		close(root);
	if (error) {
		close(pair[0]);
		return -error;
	}
	*socket = pair[0];
	return pid;
}

int replay_wait(pid_t pid)
{
	siginfo_t info;

	while (waitid(P_PID, pid, &info, WEXITED | WNOWAIT) < 0)
		if (errno != EINTR)
			return -errno;
	return 0;
}

int replay_call(int socket, const struct replay_request *request, const void *name,
		const void *new_name, const void *path, const void *new_path,
		struct replay_answer *answer)
{
	struct iovec parts[5] = {
		{ (void *)(uintptr_t)request, sizeof(*request) },
		{ (void *)(uintptr_t)name, request->name_size },
		{ (void *)(uintptr_t)new_name, request->new_name_size },
		{ (void *)(uintptr_t)path, request->dir.path_size },
		{ (void *)(uintptr_t)new_path, request->new_dir.path_size },
	};
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 5 };
	ssize_t size;

	do
		size = sendmsg(socket, &message, MSG_NOSIGNAL);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	do
		size = recv(socket, answer, sizeof(*answer), 0);
	while (size < 0 && errno == EINTR);
	if (size < 0)
		return errno == ECONNRESET ? -EPIPE : -errno;
	return size == sizeof(*answer) ? 0 : -EPIPE;
}
