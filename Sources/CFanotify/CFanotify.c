/* SPDX-License-Identifier: Apache-2.0 */
#include "CFanotify.h"

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

static int checked(long result)
{
	return result < 0 ? -errno : (int)result;
}

const char *hw_error_name(int code)
{
	return strerrorname_np(code);
}

void hw_advise_huge_pages(void *memory, size_t size)
{
	const uintptr_t page = hw_huge_page_size;
	const uintptr_t start = ((uintptr_t)memory + page - 1) & ~(page - 1);
	const uintptr_t end = ((uintptr_t)memory + size) & ~(page - 1);

	if (end > start) /* without them it works as well, a little slower */
		(void)madvise((void *)start, end - start, MADV_HUGEPAGE);
}

void *hw_map_huge_page(void)
{
	const size_t page = hw_huge_page_size;
	char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return NULL;
	/* What lies before and behind the aligned part goes back. */
	const size_t before = -(uintptr_t)memory & (page - 1);
	if (before)
		munmap(memory, before);
	munmap(memory + before + page, page - before);
	hw_advise_huge_pages(memory + before, page);
	/* A child that goes on would have each page copied that is written to. */
	(void)madvise(memory + before, page, MADV_DONTFORK);
	return memory + before;
}

int hw_fanotify_init(unsigned int flags, unsigned int event_flags)
{
	return checked(fanotify_init(flags, event_flags));
}

int hw_fanotify_mark(int group, unsigned int flags, uint64_t mask, int dirfd,
		     const char *path)
{
	return checked(fanotify_mark(group, flags, mask, dirfd, path));
}

int hw_name_to_handle_at(int dirfd, const char *path, int flags,
			 struct hw_file_handle *handle, int *mount_id)
{
	handle->bytes = hw_handle_max;
	handle->type = 0;
	return checked(syscall(SYS_name_to_handle_at, dirfd, path, handle,
			       mount_id, flags));
}

int hw_open_by_handle_path(int mount_fd, const struct hw_file_handle *handle)
{
	return checked(syscall(SYS_open_by_handle_at, mount_fd, handle,
			       O_PATH | O_CLOEXEC));
}

int hw_clone_mount(int fd)
{
	return checked(syscall(SYS_open_tree, fd, "",
			       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC |
				       AT_EMPTY_PATH));
}

int hw_openat(int dirfd, const char *path, int flags, unsigned int mode)
{
	return checked(openat(dirfd, path, flags | O_CLOEXEC, mode));
}

int hw_statx(int fd, const char *path, int flags, unsigned int mask,
	     struct statx *out)
{
	return checked(syscall(SYS_statx, fd, path, flags, mask, out));
}

int hw_status_flags(int fd)
{
	return checked(fcntl(fd, F_GETFL));
}

int hw_duplicate(int fd)
{
	return checked(fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

int hw_readable_bytes(int fd)
{
	int count = 0;
	int result = checked(ioctl(fd, FIONREAD, &count));
	return result < 0 ? result : count;
}

int hw_inode_generation(int fd, uint32_t *out)
{
	/* The kernel writes an int, whatever the number's declared size. */
	int generation = 0;
	int result = checked(ioctl(fd, FS_IOC_GETVERSION, &generation));
	*out = (uint32_t)generation;
	return result;
}

int hw_readlink_descriptor(int fd, char *out, size_t size)
{
	char path[32];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return checked(readlink(path, out, size));
}

long hw_page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

int hw_close_elsewhere(const int *descriptors, unsigned int count)
{
	/* On the stack, which every child has. */
	int own[1024];

	if (count > sizeof own / sizeof own[0])
		return -EINVAL;
	memcpy(own, descriptors, count * sizeof own[0]);
	/* Not fork(): its handlers are for a copy that goes on. */
	const pid_t pid = (pid_t)syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0,
					 0, 0);

	if (pid == 0) {
		prctl(PR_SET_NAME, "close");
		for (unsigned int i = 0; i < count; i++)
			close(own[i]);
		_exit(0);
	}
	return checked(pid);
}

struct hw_received hw_receive(int socket, void *buffer, size_t size,
			      int *descriptors, bool none)
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
				  .msg_controllen =
					  none ? 0 : sizeof control.space };
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

int hw_keep_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	/* Before CAP_SETPCAP goes; without it no_new_privs is what counts. */
	for (unsigned long number = 0; number < 64; number++) {
		int held = prctl(PR_CAPBSET_READ, number, 0, 0, 0);
		if (held < 0)
			break;
		if (held && !(keep >> number & 1) &&
		    prctl(PR_CAPBSET_DROP, number, 0, 0, 0) != 0 &&
		    errno != EPERM)
			return -errno;
	}
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) != 0)
		return -errno;
	if (syscall(SYS_capget, &header, data) != 0)
		return -errno;
	bool changes = false;
	for (unsigned int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		uint32_t part = (uint32_t)(keep >> (32 * i));
		changes |= (data[i].permitted & ~part) || data[i].inheritable ||
			   data[i].effective != data[i].permitted;
		data[i].permitted &= part;
		data[i].effective = data[i].permitted;
		data[i].inheritable = 0;
	}
	/* A service's system call filter need not allow it. */
	if (changes && syscall(SYS_capset, &header, data) != 0)
		return -errno;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? 0 : -errno;
}
