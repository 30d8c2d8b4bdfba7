/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Swift cannot import from the system's headers: constants newer than
 * Debian 12's, macros that are not plain numbers, variadic calls, raw
 * syscalls, and the flexible array of struct file_handle. Each name has the
 * prefix hw_ and says which kernel added what it uses. Nothing here decides
 * anything; a function returns what the call returned, or -errno.
 */
#ifndef CFANOTIFY_H
#define CFANOTIFY_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/fanotify.h>
#include <linux/stat.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * This header must not define _GNU_SOURCE: the system's types would then differ
 * from those that Swift's Glibc module and libsystemd's have. What only
 * _GNU_SOURCE shows is named here.
 */
#ifndef O_PATH
#define O_PATH 010000000 /* Linux 2.6.39 */
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000 /* Linux 2.6.39 */
#endif
#ifndef O_LARGEFILE
#define O_LARGEFILE 0 /* what it is where off_t has 64 bits */
#endif
#ifndef AT_STATX_DONT_SYNC
#define AT_STATX_DONT_SYNC 0x4000 /* Linux 4.11 */
#endif
/* POLLRDHUP (Linux 2.6.17): the peer has shut down its side for sending. */
enum { hw_poll_read_hang_up = 0x2000 };
/* strerrorname_np(3): glibc 2.32. */
const char *hw_error_name(int code);

/* The group every filesystem gets (FAN_REPORT_TARGET_FID: Linux 5.17). */
enum { hw_group_flags = FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME_TARGET |
			FAN_CLOEXEC | FAN_NONBLOCK };

/* Sizes of what the kernel writes for one event. */
enum {
	hw_metadata_size = 24,	  /* struct fanotify_event_metadata */
	hw_info_header_size = 4,  /* struct fanotify_event_info_header */
	hw_info_fid_size = 20,	  /* header, fsid, handle_bytes, handle_type */
	hw_handle_max = 128,	  /* MAX_HANDLE_SZ */
	hw_queued_event_size = 24 /* what FIONREAD counts for one event */
};

/* struct file_handle with room for the largest handle. */
struct hw_file_handle {
	uint32_t bytes;
	int32_t type;
	uint8_t data[hw_handle_max];
};
_Static_assert(sizeof(struct hw_file_handle) == 8 + hw_handle_max,
	       "hw_file_handle");

/* Begins to fetch the cache line at `address`, which may be any. */
static inline void hw_prefetch(const void *address)
{
	__builtin_prefetch(address);
}

/* Huge pages on x86-64, and on arm64 with pages of 4 KiB. */
enum { hw_huge_page_size = 2 << 20 };

/*
 * Asks for huge pages in the part of the memory that can have them
 * (MADV_HUGEPAGE), before it is touched. A kernel that has none gives small ones.
 */
void hw_advise_huge_pages(void *memory, size_t size);

/*
 * Zeroed memory of its own, a huge page if the kernel has one to give; NULL
 * without memory. munmap(2) gives it back.
 */
void *hw_map_huge_page(void);

/* fanotify_init(2) and fanotify_mark(2), -errno on failure. */
int hw_fanotify_init(unsigned int flags, unsigned int event_flags);
int hw_fanotify_mark(int group, unsigned int flags, uint64_t mask, int dirfd,
		     const char *path);

/* The handle of `path` below `dirfd`, or of `dirfd` itself (AT_EMPTY_PATH). */
int hw_name_to_handle_at(int dirfd, const char *path, int flags,
			 struct hw_file_handle *handle, int *mount_id);
/* An O_PATH descriptor of the object, never anything else (a FIFO would block). */
int hw_open_by_handle_path(int mount_fd, const struct hw_file_handle *handle);

/* A detached clone of the mount at `fd` (open_tree: Linux 5.2). */
int hw_clone_mount(int fd);

int hw_openat(int dirfd, const char *path, int flags, unsigned int mode);
/* An O_PATH descriptor of a name, the link itself, if the kernel has it in memory; else
 * -EAGAIN, which it says now and then of others as well. It waits for no directory's lock
 * (openat2 with RESOLVE_CACHED: Linux 5.12). */
int hw_open_cached(int dirfd, const char *name);
int hw_statx(int fd, const char *path, int flags, unsigned int mask,
	     struct statx *out);
int hw_status_flags(int fd);			    /* fcntl(F_GETFL) */
int hw_duplicate(int fd);			    /* F_DUPFD_CLOEXEC */
int hw_readable_bytes(int fd);			    /* ioctl(FIONREAD) */
int hw_inode_generation(int fd, uint32_t *out);	    /* FS_IOC_GETVERSION */
int hw_readlink_descriptor(int fd, char *out, size_t size); /* /proc/self/fd */
long hw_page_size(void);

/* One packet and the descriptors that came with it, close-on-exec. */
struct hw_received {
	ssize_t size;	 /* of the packet, or -errno; 0 = hang-up */
	bool truncated;	 /* the packet was larger than the buffer */
	bool descriptors_lost; /* MSG_CTRUNC */
	unsigned int descriptor_count;
};
enum { hw_descriptors_max = 253 }; /* SCM_MAX_FD */
struct hw_received hw_receive(int socket, void *buffer, size_t size,
			      int *descriptors);

/*
 * The beginning of the next packet, which stays in the socket, and whether it has
 * descriptors; its size as far as it fits (0 = hang-up), or -errno.
 */
ssize_t hw_look(int socket, void *buffer, size_t size, bool *descriptors);

/*
 * Closes descriptors in a child process that shares the memory (CLONE_VM) and the
 * table of descriptors (CLONE_FILES), and then ends: closing sleeps in it if it must
 * (close_range, Linux 5.9). Returns its pid, to be waited for, or -errno. From here on
 * the numbers are the child's. When it has been waited for, hw_closed_elsewhere() takes
 * its stack back. There are at most 256, else -EAGAIN; before that those that have ended
 * are waited for here. For one thread at a time.
 */
enum { hw_close_elsewhere_max = 1024 };
int hw_close_elsewhere(const int *descriptors, unsigned int count);
void hw_closed_elsewhere(pid_t pid);

/* Sends packets in order without blocking; how many went, or -errno. */
int hw_send_packets(int socket, const struct iovec *packets,
		    unsigned int count);
/* Sends one packet with descriptors; 0 or -errno. */
int hw_send_with_descriptors(int socket, const void *packet, size_t size,
			     const int *descriptors, unsigned int count,
			     int flags);

/* AF_UNIX, SOCK_SEQPACKET; -errno on failure. */
int hw_socket(bool nonblocking);
int hw_bind_path(int socket, const char *path);
int hw_connect_path(int socket, const char *path);
int hw_accept(int socket);

/*
 * Sends one datagram to the service manager's socket (sd_notify(3)) without
 * waiting; `path` begins with '@' for an abstract one. -EAGAIN when the
 * manager does not read.
 */
int hw_notify(const char *path, const void *text, size_t size);

/*
 * The same with descriptors, and waiting up to `milliseconds` for the manager
 * to read: what it is to keep must not get lost.
 */
int hw_notify_with_descriptors(const char *path, const void *text, size_t size,
			       const int *descriptors, unsigned int count,
			       unsigned int milliseconds);

/* A memfd that can be sealed (Linux 3.17); -errno on failure. */
int hw_memfd(const char *name);
/* Seals it against every change, and against other seals. */
int hw_seal(int fd);
/* 1 if it is sealed so, 0 if not or if it is no memfd. */
int hw_is_sealed(int fd);
/* Two connected SOCK_SEQPACKET sockets, non-blocking. */
int hw_socket_pair(int pair[2]);

struct hw_peer {
	pid_t pid;
	uid_t uid;
	gid_t gid;
};
int hw_peer_credentials(int socket, struct hw_peer *out);
/* SO_PEERGROUPS (Linux 4.13): how many groups, or -errno (-ERANGE: too many). */
int hw_peer_groups(int socket, gid_t *groups, unsigned int count);
/* SO_PEERPIDFD (Linux 6.5); -ENOPROTOOPT before. */
int hw_peer_pidfd(int socket);
/*
 * Leaves the process the capabilities of `keep` (a bit for each number) and
 * takes the rest from every set, the bounding set as far as CAP_SETPCAP allows
 * it; sets no_new_privs. For a process with one thread. 0 or -errno.
 */
int hw_keep_capabilities(uint64_t keep);

/* pidfd_open(2) (Linux 5.3). */
int hw_pidfd_open(pid_t pid);

/* The magic numbers of filesystems whose handles are decoded (statfs f_type). */
enum {
	hw_magic_ext4 = 0xEF53,
	hw_magic_tmpfs = 0x01021994,
	hw_magic_xfs = 0x58465342,
	hw_magic_btrfs = 0x9123683E,
	hw_magic_overlay = 0x794c7630,
	hw_magic_fuse = 0x65735546
};

#endif
