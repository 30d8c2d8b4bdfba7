/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What hostwatchfs needs of the kernel and of libfuse and Swift cannot import:
 * versioned macros, variadic calls, raw system calls, functions that only
 * _GNU_SOURCE shows. Nothing here decides anything. A function that returns an
 * int or a long returns what the call returned, or -errno.
 */
#ifndef CHOSTWATCHFS_H
#define CHOSTWATCHFS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>
#include <time.h>

struct fuse_session;

enum { hwfs_handle_max = 128 /* MAX_HANDLE_SZ */ };

/* struct file_handle with room for the largest handle. */
struct hwfs_handle {
	uint32_t bytes;
	int32_t type;
	uint8_t data[hwfs_handle_max];
};

/* O_PATH and AT_EMPTY_PATH, which only _GNU_SOURCE shows. */
enum { hwfs_o_path = 010000000, hwfs_at_empty_path = 0x1000 };

/* Descriptors. `flags` gets O_CLOEXEC. */
int hwfs_open(int dir, const char *name, int flags, mode_t mode);
/* The object behind an O_PATH descriptor opened anew, through /proc/self/fd. */
int hwfs_reopen(int fd, int flags);
int hwfs_handle_of(int fd, struct hwfs_handle *handle);
int hwfs_open_handle(int mount, const struct hwfs_handle *handle, int flags);
int hwfs_stat(int fd, struct stat *st);
int hwfs_dup(int fd);
/* Raises RLIMIT_NOFILE to its hard limit, or as far as root may. */
long hwfs_raise_descriptor_limit(long wanted);

/* The namespace. */
int hwfs_mknod(int dir, const char *name, mode_t mode, dev_t device);
int hwfs_mkdir(int dir, const char *name, mode_t mode);
int hwfs_symlink(const char *target, int dir, const char *name);
int hwfs_link(int fd, int dir, const char *name);
int hwfs_unlink(int dir, const char *name, int flags);
int hwfs_rename(int dir, const char *name, int new_dir, const char *new_name,
		unsigned flags);
long hwfs_readlink(int fd, char *buffer, size_t size);

/* Attributes of what an O_PATH descriptor leads to. */
int hwfs_chmod(int fd, mode_t mode);
int hwfs_chown(int fd, uid_t uid, gid_t gid);
int hwfs_truncate(int fd, off_t size);
int hwfs_ftruncate(int fd, off_t size);
int hwfs_utimens(int fd, const struct timespec times[2]);
long hwfs_getxattr(int fd, const char *name, void *value, size_t size);
long hwfs_listxattr(int fd, char *list, size_t size);
int hwfs_setxattr(int fd, const char *name, const void *value, size_t size,
		  int flags);
int hwfs_removexattr(int fd, const char *name);

/* Open files. */
long hwfs_pwrite(int fd, const void *data, size_t size, off_t offset);
/* Appends, whatever the descriptor's flags; *position is where it went.
 * Appends to one descriptor take turns. */
long hwfs_append(int fd, const void *data, size_t size, off_t *position);
int hwfs_fsync(int fd, bool data_only);
int hwfs_fallocate(int fd, int mode, off_t offset, off_t length);
long hwfs_copy_range(int in, off_t in_offset, int out, off_t out_offset,
		     size_t size, unsigned flags);
off_t hwfs_lseek(int fd, off_t offset, int whence);
/* F_OFD_GETLK and F_OFD_SETLK, flock(2). */
int hwfs_getlk(int fd, struct flock *lock);
int hwfs_setlk(int fd, struct flock *lock);
int hwfs_flock(int fd, int operation);
int hwfs_statvfs(int fd, struct statvfs *st);
/* Writes back what the host's page cache holds, for a close that tells errors. */
int hwfs_flush(int fd);

/* An entry read from a directory; name points into the stream. */
struct hwfs_entry {
	uint64_t inode;
	off_t next;
	uint32_t type; /* DT_* */
	const char *name;
};
/* 1 and an entry, 0 at the end. */
int hwfs_readdir(DIR *stream, struct hwfs_entry *entry);

/*
 * This thread's effective ids, supplementary groups and umask, of the thread
 * alone: raw system calls, and a filesystem context of its own. Only for root.
 */
int hwfs_become(uid_t uid, gid_t gid, const gid_t *groups, size_t count,
		mode_t mask);
/* Ends the process if that fails: such a thread must not serve anybody. */
void hwfs_restore(void);

/* What FUSE has and libfuse 3.14 does not know: FUSE_NOTIFY_INC_EPOCH
 * (Linux 6.16), -EINVAL where it is unknown. */
int hwfs_notify_epoch(int fuse_fd);

/* From here on SIGHUP, SIGINT and SIGTERM, unless they are ignored, come to
 * hwfs_await_end() alone. On the thread that will loop, before any other is started. */
void hwfs_block_ends(void);
/* Ends the connection of a mount, and with it whatever waits for an answer, where this may. */
void hwfs_abort(const char *mount);
/* Waits for one of them. On a thread that blocks them. */
void hwfs_await_end(void);
/* Has a loop see that the session was exited; returns when it has ended. */
void hwfs_wake_loop(void);
/* fuse_session_loop_mt() with so many threads. */
int hwfs_session_loop(struct fuse_session *session, unsigned max_threads,
		      unsigned idle_threads);

/*
 * Goes on in a child that has its own session and "/" as working directory.
 * The parent ends once the child has called hwfs_started(), with status, or
 * has died (status 70). Only before a thread is started.
 */
int hwfs_daemonize(void);
void hwfs_started(int status);

int hwfs_thread_id(void);
void hwfs_name_thread(const char *name);
/* An eventfd: made, raised; waited for, for so many milliseconds, and cleared. */
int hwfs_event_new(void);
void hwfs_event_raise(int event);
void hwfs_event_wait(int event, int timeout_ms);
/* Waits until one of two descriptors is readable, or so long (-1: for ever). */
void hwfs_wait(int first, int second, int timeout_ms);

/*
 * A SOCK_SEQPACKET socket that listens at DIRECTORY/NAME; the directory is made
 * if need be. What killed processes left there (PID.sock, where nobody listens)
 * is removed. -EADDRINUSE if
 * somebody listens.
 */
int hwfs_listen(const char *directory, const char *name);
/* The next connection, which gives up on a peer that does not read or write
 * for a second. */
int hwfs_accept(int socket);
/* One message; a message is sent whole. */
long hwfs_receive(int socket, char *buffer, size_t size);
long hwfs_send(int socket, const char *data, size_t size);

/* All of it to standard error. */
void hwfs_print_error(const char *text, size_t size);

/* UTIME_NOW and UTIME_OMIT. */
enum { hwfs_utime_now = (1 << 30) - 1, hwfs_utime_omit = (1 << 30) - 2 };

/* CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN … in this thread's effective set. */
bool hwfs_has_capability(int capability);

#endif
