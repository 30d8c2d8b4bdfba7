/* SPDX-License-Identifier: Apache-2.0 */
/* What the replayer does; see CReplay.h. One thread, and nothing is allocated. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "CReplay.h"

#define DIRECTORIES 256 /* kept open: each opening costs the guest a LOOKUP */
#define HELD 1024	/* objects without a name; the oldest goes first */
#define PACKET 16384
#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200 /* Linux 6.5 */
#endif
#define ANY_STALE(error) ((error) == ESTALE || (error) == ENOENT || (error) == EOPNOTSUPP)

struct slot {
	uint64_t nodeid;
	uint32_t generation;
	int fd; /* + 1, so that 0 is none */
	uint64_t used;
};

static struct slot directories[DIRECTORIES], held[HELD];
static uint64_t now;

static void empty(struct slot *slot)
{
	if (slot->fd)
		close(slot->fd - 1);
	memset(slot, 0, sizeof(*slot));
}

static struct slot *find(struct slot *slots, size_t count, const struct replay_place *place)
{
	for (size_t i = 0; i < count; i++)
		if (slots[i].fd && slots[i].nodeid == place->nodeid &&
		    slots[i].generation == place->generation)
			return &slots[i];
	return NULL;
}

static void keep(struct slot *slots, size_t count, const struct replay_place *place, int fd)
{
	struct slot *oldest = slots;

	for (size_t i = 0; i < count && oldest->fd; i++)
		if (!slots[i].fd || slots[i].used < oldest->used)
			oldest = &slots[i];
	empty(oldest);
	*oldest = (struct slot){ place->nodeid, place->generation, fd + 1, now };
}

static void drop(struct slot *slots, size_t count, const struct replay_place *place)
{
	struct slot *slot = find(slots, count, place);

	if (slot)
		empty(slot);
}

/* By handle; no request is sent if the kernel has the inode. */
static int open_node(const struct replay_place *place, int flags)
{
	union {
		struct file_handle handle;
		char bytes[sizeof(struct file_handle) + 12];
	} u = { .handle = { .handle_bytes = 12, .handle_type = 0x81 } };
	uint32_t words[3] = { (uint32_t)(place->nodeid >> 32), (uint32_t)place->nodeid,
			      place->generation };

	memcpy(u.handle.f_handle, words, sizeof(words));
	return open_by_handle_at(REPLAY_MOUNT, &u.handle, flags | O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

static int walk(const char *path, size_t size)
{
	int fd = REPLAY_MOUNT;

	for (const char *end = path + size; path < end;) {
		char name[256];
		size_t length = strcspn(path, "/");
		int below;

		if (length > (size_t)(end - path))
			length = end - path;
		if (length > 255)
			length = 255;
		memcpy(name, path, length);
		name[length] = 0;
		path += length + 1;
		below = openat(fd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd != REPLAY_MOUNT)
			close(fd);
		if (below < 0)
			return -1;
		fd = below;
	}
	return fd;
}

/* A directory's descriptor, which the table owns; -1 and errno. */
static int open_directory(const struct replay_place *place, const char *path)
{
	struct slot *slot;
	int fd;

	if (place->nodeid == 1)
		return REPLAY_MOUNT;
	slot = find(directories, DIRECTORIES, place);
	if (slot) {
		slot->used = now;
		return slot->fd - 1;
	}
	fd = place->path_size ? walk(path, place->path_size) : open_node(place, O_DIRECTORY);
	if (fd < 0) {
		if (ANY_STALE(errno))
			errno = ESTALE;
		return -1;
	}
	if (fd != REPLAY_MOUNT)
		keep(directories, DIRECTORIES, place, fd);
	return fd;
}

static struct timespec moment(int64_t seconds, int64_t nanoseconds, bool given)
{
	struct timespec time = { .tv_sec = seconds, .tv_nsec = given ? nanoseconds : UTIME_OMIT };

	return time;
}

/* What a lone mtime raises is IN_MODIFY, a lone atime IN_ACCESS, both IN_ATTRIB. */
static int touch(const struct replay_request *r, int dir, const char *name, int flags)
{
	struct timespec times[2] = {
		moment(r->atime_seconds, r->atime_nanoseconds, r->flags & REPLAY_ATIME),
		moment(r->mtime_seconds, r->mtime_nanoseconds, r->flags & REPLAY_MTIME),
	};

	return utimensat(dir, name, times, flags);
}

static int count(int dir, const char *name)
{
	struct statx status;

	return statx(dir, name, AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC, STATX_NLINK, &status);
}

/* Nothing holds the object when this returns: its name may be about to go. */
static int ask(const struct replay_request *r)
{
	struct statx status;
	int fd = open_node(&r->object, 0), result, error;

	if (fd < 0)
		return -1;
	result = statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_NLINK, &status);
	error = errno;
	close(fd);
	errno = error;
	return result;
}

static int create(const struct replay_request *r, int dir, const char *name)
{
	if (S_ISDIR(r->mode))
		return mkdirat(dir, name, r->mode & 07777);
	if (S_ISLNK(r->mode))
		return symlinkat("?", dir, name);
	return mknodat(dir, name, r->mode, makedev(r->device_major, r->device_minor));
}

static int link_object(const struct replay_request *r, int dir, const char *name, uint32_t *step)
{
	int object = open_node(&r->object, 0), result, error;

	if (object < 0) {
		*step = REPLAY_STEP_OBJECT;
		return -1;
	}
	result = linkat(object, "", dir, name, AT_EMPTY_PATH);
	error = errno;
	close(object);
	errno = error;
	return result;
}

static int unlink_name(const struct replay_request *r, int dir, const char *name)
{
	int object = -1, result, error;

	/* A descriptor of it would make DELETE_SELF come after DELETE. */
	drop(directories, DIRECTORIES, &r->object);
	if (r->flags & REPLAY_HOLD)
		object = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	/* With another count the kernel would say that the object is gone. */
	result = r->flags & REPLAY_COUNT ? count(dir, name) : 0;
	if (result == 0)
		result = unlinkat(dir, name, r->flags & REPLAY_ISDIR ? AT_REMOVEDIR : 0);
	error = errno;
	if (object >= 0 && result == 0)
		keep(held, HELD, &r->object, object);
	else if (object >= 0)
		close(object);
	errno = error;
	return result;
}

static int rename_name(const struct replay_request *r, int dir, const char *name, int new_dir,
		       const char *new_name)
{
	int object = -1, result, error;
	struct statx status;

	if (r->object.nodeid && r->object.nodeid != r->dir.nodeid &&
	    r->object.nodeid != r->new_dir.nodeid)
		drop(directories, DIRECTORIES, &r->object); /* the victim */
	if (r->flags & REPLAY_HOLD)
		object = openat(new_dir, new_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (r->flags & REPLAY_COUNT && count(new_dir, new_name) < 0 && errno != ENOENT) {
		error = errno;
		if (object >= 0)
			close(object);
		errno = error;
		return -1;
	}
	/* A directory that the guest has met under its new name goes back to
	 * the old one here: within the rename that would be ESTALE. */
	statx(dir, name, AT_SYMLINK_NOFOLLOW | AT_STATX_DONT_SYNC, 0, &status);
	result = syscall(SYS_renameat2, dir, name, new_dir, new_name,
			 r->flags & REPLAY_EXCHANGE ? 2u /* RENAME_EXCHANGE */ : 0);
	error = errno;
	if (object >= 0 && result == 0)
		keep(held, HELD, &r->object, object);
	else if (object >= 0)
		close(object);
	errno = error;
	return result;
}

/* Whether what an O_PATH descriptor is of is this node; asks nobody. */
static bool is_node(int fd, const struct replay_place *place)
{
	union {
		struct file_handle handle;
		char bytes[sizeof(struct file_handle) + 128];
	} u = { .handle = { .handle_bytes = 128 } };
	uint32_t words[3];
	int mount;

	/* Without export support a handle is had as an identity only. */
	if (name_to_handle_at(fd, "", &u.handle, &mount, AT_EMPTY_PATH | AT_HANDLE_FID) < 0 &&
	    name_to_handle_at(fd, "", &u.handle, &mount, AT_EMPTY_PATH) < 0)
		return false;
	memcpy(words, u.handle.f_handle, sizeof(words));
	return u.handle.handle_bytes >= 12 && words[0] == (uint32_t)(place->nodeid >> 32) &&
	       words[1] == (uint32_t)place->nodeid && words[2] == place->generation;
}

/* Opened for writing is only what was asked for: another object under the name
 * may be about to be executed, which would fail. */
static int close_write(const struct replay_request *r, int dir, const char *name)
{
	int path_fd = r->flags & REPLAY_HELD ?
			      dir :
			      openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	char path[40];
	int fd, error = 0;

	if (path_fd < 0)
		return -1;
	if (!is_node(path_fd, &r->object)) {
		error = EBUSY;
	} else {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", path_fd);
		fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			error = errno;
		if (r->flags & REPLAY_MTIME && touch(r, path_fd, "", AT_EMPTY_PATH) < 0 && !error)
			error = errno;
		if (fd >= 0)
			close(fd);
	}
	if (path_fd != dir)
		close(path_fd);
	errno = error;
	return error ? -1 : 0;
}

static int perform(const struct replay_request *r, const char *name, const char *new_name,
		   const char *path, const char *new_path, uint32_t *step)
{
	struct slot *slot;
	int dir = -1, new_dir = -1;

	switch (r->operation) {
	case REPLAY_PING:
		return 0;
	case REPLAY_ASK:
		return ask(r);
	case REPLAY_RELEASE:
		drop(held, HELD, &r->object);
		return 0;
	case REPLAY_DROP:
		drop(directories, DIRECTORIES, &r->object);
		return 0;
	}
	if (r->flags & REPLAY_HELD) {
		slot = find(held, HELD, &r->object);
		if (!slot) {
			*step = REPLAY_STEP_OBJECT;
			errno = ESTALE;
			return -1;
		}
		if (r->operation == REPLAY_TOUCH)
			return touch(r, slot->fd - 1, "", AT_EMPTY_PATH);
		return close_write(r, slot->fd - 1, "");
	}
	*step = REPLAY_STEP_DIR;
	dir = open_directory(&r->dir, path);
	if (dir < 0)
		return -1;
	if (r->operation == REPLAY_RENAME) {
		*step = REPLAY_STEP_NEW_DIR;
		new_dir = open_directory(&r->new_dir, new_path);
		if (new_dir < 0)
			return -1;
	}
	*step = REPLAY_STEP_CALL;
	switch (r->operation) {
	case REPLAY_CREATE:
		return create(r, dir, name);
	case REPLAY_LINK:
		return link_object(r, dir, name, step);
	case REPLAY_UNLINK:
		return unlink_name(r, dir, name);
	case REPLAY_RENAME:
		return rename_name(r, dir, name, new_dir, new_name);
	case REPLAY_TOUCH:
		return r->flags & REPLAY_SELF ? touch(r, dir, "", AT_EMPTY_PATH) :
						touch(r, dir, name, AT_SYMLINK_NOFOLLOW);
	case REPLAY_CLOSE_WRITE:
		return close_write(r, dir, name);
	}
	errno = EINVAL;
	return -1;
}

/* Cuts the next text out of the packet. */
static bool take(const char **at, const char *end, uint32_t size, char *text, size_t room)
{
	if (size >= room || size > (size_t)(end - *at))
		return false;
	memcpy(text, *at, size);
	text[size] = 0;
	*at += size;
	return true;
}

static struct replay_answer answer_to(const char *packet, size_t size)
{
	static char path[4097], new_path[4097];
	struct replay_answer answer = { 0, REPLAY_STEP_CALL };
	struct replay_request r;
	char name[257], new_name[257];
	const char *at = packet + sizeof(r), *end = packet + size;

	memcpy(&r, packet, sizeof(r));
	now++;
	if (!take(&at, end, r.name_size, name, sizeof(name)) ||
	    !take(&at, end, r.new_name_size, new_name, sizeof(new_name)) ||
	    !take(&at, end, r.dir.path_size, path, sizeof(path)) ||
	    !take(&at, end, r.new_dir.path_size, new_path, sizeof(new_path)))
		answer.error = EINVAL;
	else if (perform(&r, name, new_name, path, new_path, &answer.step) < 0)
		answer.error = errno;
	return answer;
}

int replay_main(const char *name)
{
	static char packet[PACKET];

	prctl(PR_SET_NAME, name);
	syscall(SYS_close_range, REPLAY_MOUNT + 1, ~0U, 0);
	umask(0);
	for (;;) {
		ssize_t size = recv(REPLAY_SOCKET, packet, sizeof(packet), 0);
		struct replay_answer answer;

		if (size < 0 && errno == EINTR)
			continue;
		if (size < (ssize_t)sizeof(struct replay_request))
			return size == 0 ? 0 : 70;
		answer = answer_to(packet, size);
		if (send(REPLAY_SOCKET, &answer, sizeof(answer), MSG_NOSIGNAL) != sizeof(answer))
			return 0;
	}
}
