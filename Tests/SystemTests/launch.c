/* SPDX-License-Identifier: Apache-2.0
 *
 * launch SOCKET PROGRAM ARGUMENT...
 *
 * Becomes PROGRAM as a service manager would start it: with the descriptors that it is
 * given over the Unix socket SOCKET from 3 on, and their names. A tracer that started this
 * one has no copies of them.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { most = 16 };

int main(int argc, char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char names[4096] = "", number[32];
	union {
		char space[CMSG_SPACE(most * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = names, .iov_len = sizeof names - 1 };
	struct msghdr message = { .msg_iov = &iov,
				  .msg_iovlen = 1,
				  .msg_control = control.space,
				  .msg_controllen = sizeof control.space };
	int fds[most], count = 0;
	int from = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (argc < 3 || strlen(argv[1]) >= sizeof address.sun_path)
		return 64;
	strcpy(address.sun_path, argv[1]);
	/* Out of the way of what is to be at 3 and behind it. */
	from = from < 0 ? -1 : dup3(from, 100, O_CLOEXEC);
	close(3);
	if (connect(from, (struct sockaddr *)&address, sizeof address) ||
	    recvmsg(from, &message, 0) <= 0) {
		perror("launch");
		return 71;
	}
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	if (c && c->cmsg_type == SCM_RIGHTS) {
		count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), (size_t)count * sizeof(int));
	}
	for (int i = 0; i < count; i++)
		if (fds[i] != 3 + i && dup2(fds[i], 3 + i) < 0)
			return 71;
	snprintf(number, sizeof number, "%d", getpid());
	setenv("SYSTEMD_EXEC_PID", number, 1);
	setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent", 1);
	if (count) {
		setenv("LISTEN_PID", number, 1);
		setenv("LISTEN_FDNAMES", names + 1, 1);
		snprintf(number, sizeof number, "%d", count);
		setenv("LISTEN_FDS", number, 1);
	}
	execv(argv[2], argv + 2);
	perror(argv[2]);
	return 71;
}
