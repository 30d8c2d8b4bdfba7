/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets, and descriptors that other processes send or get. */
#include "CFanotify.h"
#include "checked.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* What a helper needs, before its stack in one mapping. */
struct helper {
	unsigned int count;
	int descriptors[hw_close_elsewhere_max];
};

enum { helper_memory = 32768, helpers_max = 256 };

/* Those that have not been waited for. */
static struct {
	pid_t pid; /* 0: free */
	void *memory;
} helpers[helpers_max];

/* In the helper, whose memory is the parent's, and so is errno: nothing is called
 * that may set it. close_range() says nothing of what close() would fail with. */
__attribute__((no_sanitize("address", "thread"))) static int
close_all(void *argument)
{
	const struct helper *own = argument;

	syscall(SYS_prctl, PR_SET_NAME, "close");
	for (unsigned int i = 0; i < own->count; i++)
		syscall(SYS_close_range, own->descriptors[i],
			own->descriptors[i], 0);
	return 0;
}

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WITH_THREAD_SANITIZER
#endif
#endif

static pid_t start_helper(struct helper *own, char *end_of_stack)
{
#ifdef WITH_THREAD_SANITIZER
	/* Its clone() does what a fork needs in the child as well, in memory that
	 * is shared here. The child is a copy then. */
	(void)end_of_stack;
	const pid_t pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, NULL,
					 NULL, NULL, NULL);
	if (pid == 0)
		syscall(SYS_exit, close_all(own));
	return pid;
#else
	return clone(close_all, end_of_stack, CLONE_VM | CLONE_FILES | SIGCHLD,
		     own);
#endif
}

static void free_place(unsigned int place)
{
	munmap(helpers[place].memory, helper_memory);
	helpers[place].pid = 0;
}

/* A place for a helper, or helpers_max. */
static unsigned int find_place(void)
{
	unsigned int place = 0;

	while (place < helpers_max && helpers[place].pid)
		place++;
	if (place < helpers_max)
		return place;
	/* Those of a hub that is gone are waited for by nobody. */
	for (unsigned int i = 0; i < helpers_max; i++) {
		const pid_t ended = waitpid(helpers[i].pid, NULL, WNOHANG);
		if (ended == helpers[i].pid || (ended < 0 && errno == ECHILD)) {
			free_place(i);
			place = i;
		}
	}
	return place;
}

int hw_close_elsewhere(const int *descriptors, unsigned int count)
{
	if (count > hw_close_elsewhere_max)
		return -EINVAL;
	const unsigned int place = find_place();
	if (place == helpers_max)
		return -EAGAIN;
	char *memory = mmap(NULL, helper_memory, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (memory == MAP_FAILED)
		return -errno;
	struct helper *own = (struct helper *)memory;
	own->count = count;
	memcpy(own->descriptors, descriptors, count * sizeof descriptors[0]);
	const int pid = checked(start_helper(own, memory + helper_memory));
	if (pid < 0) {
		munmap(memory, helper_memory);
		return pid;
	}
	helpers[place].pid = pid;
	helpers[place].memory = memory;
	return pid;
}

void hw_closed_elsewhere(pid_t pid)
{
	for (unsigned int i = 0; i < helpers_max; i++) {
		if (helpers[i].pid == pid) {
			free_place(i);
			return;
		}
	}
}

struct hw_received hw_receive(int socket, void *buffer, size_t size,
			      int *descriptors)
{
	struct hw_received received = { 0 };
	union {
		char space[CMSG_SPACE(hw_descriptors_max * sizeof(int)) +
			   CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = buffer, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov,
				  .msg_iovlen = 1,
				  .msg_control = control.space,
				  .msg_controllen = sizeof control.space };
	ssize_t got;
	do
		got = recvmsg(socket, &message,
			      MSG_DONTWAIT | MSG_CMSG_CLOEXEC | MSG_TRUNC);
	while (got < 0 && errno == EINTR);
	if (got < 0) {
		received.size = -errno;
		return received;
	}
	received.size = got;
	received.truncated = (message.msg_flags & MSG_TRUNC) != 0;
	received.descriptors_lost = (message.msg_flags & MSG_CTRUNC) != 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c;
	     c = CMSG_NXTHDR(&message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		unsigned int count =
			(unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (unsigned int i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof fd);
			if (received.descriptor_count < hw_descriptors_max)
				descriptors[received.descriptor_count++] = fd;
			else
				close(fd);
		}
	}
	return received;
}

ssize_t hw_look(int socket, void *buffer, size_t size, bool *descriptors)
{
	/* Without room for them a look does not install them. */
	struct iovec iov = { .iov_base = buffer, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t got;
	do
		got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_PEEK);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	*descriptors = (message.msg_flags & MSG_CTRUNC) != 0;
	return got;
}

int hw_send_packets(int socket, const struct iovec *packets, unsigned int count)
{
	struct mmsghdr messages[64];
	if (count > 64)
		count = 64;
	memset(messages, 0, count * sizeof messages[0]);
	for (unsigned int i = 0; i < count; i++) {
		messages[i].msg_hdr.msg_iov = (struct iovec *)&packets[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	int sent;
	do
		sent = sendmmsg(socket, messages, count,
				MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : sent;
}

int hw_send_with_descriptors(int socket, const void *packet, size_t size,
			     const int *descriptors, unsigned int count,
			     int flags)
{
	union {
		char space[CMSG_SPACE(hw_descriptors_max * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = (void *)packet, .iov_len = size };
	struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (count > hw_descriptors_max)
		return -EINVAL;
	if (count) {
		memset(&control, 0, sizeof control);
		message.msg_control = control.space;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&message);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(c), descriptors, count * sizeof(int));
	}
	ssize_t sent;
	do
		sent = sendmsg(socket, &message, flags | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

int hw_socket(bool nonblocking)
{
	return checked(socket(AF_UNIX,
			      SOCK_SEQPACKET | SOCK_CLOEXEC |
				      (nonblocking ? SOCK_NONBLOCK : 0),
			      0));
}

static int unix_address(const char *path, struct sockaddr_un *address)
{
	size_t size = strlen(path);
	if (size == 0 || size >= sizeof address->sun_path)
		return -ENAMETOOLONG;
	memset(address, 0, sizeof *address);
	address->sun_family = AF_UNIX;
	memcpy(address->sun_path, path, size);
	return 0;
}

int hw_bind_path(int socket, const char *path)
{
	struct sockaddr_un address;
	int result = unix_address(path, &address);
	return result ? result :
			checked(bind(socket, (struct sockaddr *)&address,
				     sizeof address));
}

int hw_connect_path(int socket, const char *path)
{
	struct sockaddr_un address;
	int result = unix_address(path, &address);
	return result ? result :
			checked(connect(socket, (struct sockaddr *)&address,
					sizeof address));
}

int hw_notify(const char *path, const void *text, size_t size)
{
	struct sockaddr_un address;
	int result = unix_address(path, &address);
	if (result)
		return result;
	socklen_t length =
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	result = checked(sendto(fd, text, size, MSG_NOSIGNAL,
				(struct sockaddr *)&address, length));
	close(fd);
	return result < 0 ? result : 0;
}

int hw_notify_with_descriptors(const char *path, const void *text, size_t size,
			       const int *descriptors, unsigned int count,
			       unsigned int milliseconds)
{
	struct sockaddr_un address;
	int result = unix_address(path, &address);
	if (result)
		return result;
	socklen_t length =
		(socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));
	if (path[0] == '@')
		address.sun_path[0] = '\0';
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	struct timeval wait = { .tv_sec = milliseconds / 1000,
				.tv_usec = milliseconds % 1000 * 1000 };
	result = checked(
		setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait));
	if (result == 0)
		result = checked(
			connect(fd, (struct sockaddr *)&address, length));
	if (result == 0)
		result = hw_send_with_descriptors(fd, text, size, descriptors,
						  count, 0);
	close(fd);
	return result;
}

int hw_memfd(const char *name)
{
	return checked(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
}

enum { all_seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE };

int hw_seal(int fd)
{
	return checked(fcntl(fd, F_ADD_SEALS, all_seals));
}

int hw_is_sealed(int fd)
{
	int seals = fcntl(fd, F_GET_SEALS);
	return seals >= 0 && (seals & all_seals) == all_seals;
}

int hw_socket_pair(int pair[2])
{
	return checked(socketpair(
		AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair));
}

int hw_accept(int socket)
{
	return checked(
		accept4(socket, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

int hw_peer_credentials(int socket, struct hw_peer *out)
{
	struct ucred credentials;
	socklen_t size = sizeof credentials;
	int result = checked(getsockopt(socket, SOL_SOCKET, SO_PEERCRED,
					&credentials, &size));
	if (result == 0)
		*out = (struct hw_peer){ .pid = credentials.pid,
					 .uid = credentials.uid,
					 .gid = credentials.gid };
	return result;
}

int hw_peer_groups(int socket, gid_t *groups, unsigned int count)
{
	socklen_t size = count * sizeof(gid_t);
	int result = checked(
		getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups, &size));
	return result < 0 ? result : (int)(size / sizeof(gid_t));
}

int hw_pidfd_open(pid_t pid)
{
	return checked(syscall(SYS_pidfd_open, pid, 0));
}

int hw_peer_pidfd(int socket)
{
	int fd = -1;
	socklen_t size = sizeof fd;
	int result =
		checked(getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &size));
	return result < 0 ? result : fd;
}
