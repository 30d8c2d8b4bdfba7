/* SPDX-License-Identifier: Apache-2.0 */
#include "CFanotify.h"
#include "checked.h"

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

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

int hw_open_cached(int dirfd, const char *name)
{
	const struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_CACHED,
	};

	return checked(syscall(SYS_openat2, dirfd, name, &how, sizeof how));
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
