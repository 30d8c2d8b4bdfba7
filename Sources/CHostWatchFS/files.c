/* SPDX-License-Identifier: Apache-2.0 */
/* Files of the host, by descriptors. */
#include "CHostWatchFS.h"
#include "result.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

/* "/proc/self/fd/" and a number; the link leads to the object itself. */
struct link {
	char path[40];
};

static struct link link_to(int fd)
{
	struct link link;

	snprintf(link.path, sizeof(link.path), "/proc/self/fd/%d", fd);
	return link;
}

int hwfs_open(int dir, const char *name, int flags, mode_t mode)
{
	RESULT(openat(dir, name, flags | O_CLOEXEC, mode));
}

int hwfs_reopen(int fd, int flags)
{
	RESULT(open(link_to(fd).path, flags | O_CLOEXEC));
}

int hwfs_handle_of(int fd, struct hwfs_handle *handle)
{
	int mount;

	memset(handle, 0, sizeof(*handle));
	handle->bytes = hwfs_handle_max;
	RESULT(name_to_handle_at(fd, "", (struct file_handle *)handle, &mount,
				 AT_EMPTY_PATH));
}

int hwfs_open_handle(int mount, const struct hwfs_handle *handle, int flags)
{
	struct hwfs_handle copy = *handle;
	int fd = -1;

	/* ext4 answers ENOMEM while an inode is being freed, then ESTALE. */
	for (int i = 0; i < 1000; i++) {
		fd = open_by_handle_at(mount, (struct file_handle *)&copy,
				       flags | O_CLOEXEC);
		if (fd >= 0 || errno != ENOMEM)
			break;
		sched_yield();
	}
	RESULT(fd);
}

int hwfs_stat(int fd, struct stat *st)
{
	RESULT(fstatat(fd, "", st, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

int hwfs_dup(int fd) { RESULT(fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

long hwfs_raise_descriptor_limit(long wanted)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return -errno;
	if (limit.rlim_cur >= (rlim_t)wanted)
		return (long)limit.rlim_cur;
	struct rlimit raised = { (rlim_t)wanted, (rlim_t)wanted };
	if (raised.rlim_max < limit.rlim_max)
		raised.rlim_max = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &raised) == 0)
		return wanted;
	limit.rlim_cur = limit.rlim_max;
	return setrlimit(RLIMIT_NOFILE, &limit) < 0 ? -errno :
						      (long)limit.rlim_cur;
}

int hwfs_mknod(int dir, const char *name, mode_t mode, dev_t device)
{
	RESULT(mknodat(dir, name, mode, device));
}

int hwfs_mkdir(int dir, const char *name, mode_t mode)
{
	RESULT(mkdirat(dir, name, mode));
}

int hwfs_symlink(const char *target, int dir, const char *name)
{
	RESULT(symlinkat(target, dir, name));
}

int hwfs_link(int fd, int dir, const char *name)
{
	/* AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH, the link in /proc nothing. */
	RESULT(linkat(AT_FDCWD, link_to(fd).path, dir, name,
		      AT_SYMLINK_FOLLOW));
}

int hwfs_unlink(int dir, const char *name, int flags)
{
	RESULT(unlinkat(dir, name, flags));
}

int hwfs_rename(int dir, const char *name, int new_dir, const char *new_name,
		unsigned flags)
{
	RESULT(renameat2(dir, name, new_dir, new_name, flags));
}

long hwfs_readlink(int fd, char *buffer, size_t size)
{
	RESULT(readlinkat(fd, "", buffer, size));
}

int hwfs_chmod(int fd, mode_t mode)
{
	RESULT(chmod(link_to(fd).path, mode));
}

int hwfs_chown(int fd, uid_t uid, gid_t gid)
{
	RESULT(fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
}

int hwfs_truncate(int fd, off_t size)
{
	RESULT(truncate(link_to(fd).path, size));
}

int hwfs_ftruncate(int fd, off_t size) { RESULT(ftruncate(fd, size)); }

int hwfs_utimens(int fd, const struct timespec times[2])
{
	RESULT(utimensat(fd, "", times, AT_EMPTY_PATH));
}

long hwfs_getxattr(int fd, const char *name, void *value, size_t size)
{
	RESULT(getxattr(link_to(fd).path, name, value, size));
}

long hwfs_listxattr(int fd, char *list, size_t size)
{
	RESULT(listxattr(link_to(fd).path, list, size));
}

int hwfs_setxattr(int fd, const char *name, const void *value, size_t size,
		  int flags)
{
	RESULT(setxattr(link_to(fd).path, name, value, size, flags));
}

int hwfs_removexattr(int fd, const char *name)
{
	RESULT(removexattr(link_to(fd).path, name));
}

long hwfs_pwrite(int fd, const void *data, size_t size, off_t offset)
{
	RESULT(pwrite(fd, data, size, offset));
}

long hwfs_append(int fd, const void *data, size_t size, off_t *position)
{
	struct iovec part = { .iov_base = (void *)data, .iov_len = size };
	ssize_t written = pwritev2(fd, &part, 1, -1, RWF_APPEND);

	if (written < 0)
		return -errno;
	*position = lseek(fd, 0, SEEK_CUR) - written;
	return written;
}

int hwfs_fsync(int fd, bool data_only)
{
	RESULT(data_only ? fdatasync(fd) : fsync(fd));
}

int hwfs_fallocate(int fd, int mode, off_t offset, off_t length)
{
	RESULT(fallocate(fd, mode, offset, length));
}

long hwfs_copy_range(int in, off_t in_offset, int out, off_t out_offset,
		     size_t size, unsigned flags)
{
	RESULT(copy_file_range(in, &in_offset, out, &out_offset, size, flags));
}

off_t hwfs_lseek(int fd, off_t offset, int whence)
{
	RESULT(lseek(fd, offset, whence));
}

int hwfs_getlk(int fd, struct flock *lock)
{
	lock->l_pid = 0;
	RESULT(fcntl(fd, F_OFD_GETLK, lock));
}

int hwfs_setlk(int fd, struct flock *lock)
{
	lock->l_pid = 0;
	RESULT(fcntl(fd, F_OFD_SETLK, lock));
}

int hwfs_flock(int fd, int operation) { RESULT(flock(fd, operation)); }

int hwfs_statvfs(int fd, struct statvfs *st) { RESULT(fstatvfs(fd, st)); }

int hwfs_flush(int fd)
{
	int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);

	if (copy < 0)
		return -errno;
	RESULT(close(copy));
}

int hwfs_readdir(DIR *stream, struct hwfs_entry *entry)
{
	struct dirent *found;

	errno = 0;
	found = readdir(stream);
	if (!found)
		return -errno;
	entry->inode = found->d_ino;
	entry->next = found->d_off;
	entry->type = found->d_type;
	entry->name = found->d_name;
	return 1;
}
