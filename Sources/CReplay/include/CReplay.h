/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The replayer: a process of its own that performs on a mount what the server
 * of that mount tells it, one system call for one event, so that the kernel
 * raises the event and moves its own dentries.
 *
 * It holds a descriptor of the mount's root and nothing of /dev/fuse: when it is
 * killed no request is left unanswered, and when the server is killed its
 * requests fail and it ends. Both sides are this program, so the structs below
 * are no protocol; each message is one packet, and one answer follows each.
 *
 * Objects are opened by handle (nodeid and generation; Linux' fs/fuse/inode.c
 * has the layout), which sends no request and raises no event. A directory
 * whose dentry was dropped cannot be opened so on a mount without export
 * support: the answer is ESTALE at REPLAY_STEP_DIR or _NEW_DIR, and the server asks again with the
 * path, which is walked with O_PATH.
 */
#ifndef CREPLAY_H
#define CREPLAY_H

#include <stdint.h>
#include <sys/types.h>

/* Where the replayer finds its two descriptors. */
#define REPLAY_SOCKET 3
#define REPLAY_MOUNT 4

enum replay_operation {
	REPLAY_CREATE = 1, /* mknodat, mkdirat or symlinkat, by `mode` */
	REPLAY_LINK = 2,   /* linkat of `object` */
	REPLAY_UNLINK = 3, /* unlinkat; of a directory with ISDIR in `mode` */
	REPLAY_RENAME = 4, /* renameat2 with `flags` of REPLAY_EXCHANGE */
	REPLAY_TOUCH = 5,  /* utimensat of what REPLAY_MTIME, _ATIME say */
	REPLAY_CLOSE_WRITE = 6, /* open for writing, touch as above, close */
	REPLAY_RELEASE = 7,	/* closes what REPLAY_HOLD has kept of `object` */
	REPLAY_DROP = 8,	/* closes the directory `object` */
	REPLAY_PING = 9,
	REPLAY_ASK = 10 /* asks the server for the attributes of `object` */
};

/* flags */
#define REPLAY_ISDIR 0x1u
#define REPLAY_EXCHANGE 0x2u
/* Asks for the attributes first: the server answers with the link count that
 * the kernel is to count down from. Of the name, for a rename the new one. */
#define REPLAY_COUNT 0x4u
/* Keeps the object open beyond its last name, so that it dies on RELEASE. */
#define REPLAY_HOLD 0x8u
#define REPLAY_MTIME 0x10u
#define REPLAY_ATIME 0x20u
/* The object itself, kept by REPLAY_HOLD, instead of a name. */
#define REPLAY_HELD 0x40u
/* The directory itself instead of a name in it. */
#define REPLAY_SELF 0x80u

struct replay_place {
	uint64_t nodeid;
	uint32_t generation;
	uint32_t path_size; /* of the path that is given with it; 0: no path */
};

struct replay_request {
	uint32_t operation;
	uint32_t flags;
	uint32_t mode; /* of what is created */
	uint32_t name_size;
	uint32_t new_name_size;
	uint32_t device_major, device_minor;
	uint32_t reserved;
	struct replay_place dir, new_dir, object;
	int64_t atime_seconds, atime_nanoseconds;
	int64_t mtime_seconds, mtime_nanoseconds;
	/* then name, new name, dir's path, new_dir's path */
};

enum replay_step {
	REPLAY_STEP_CALL = 0,
	REPLAY_STEP_DIR = 1,
	REPLAY_STEP_NEW_DIR = 2,
	REPLAY_STEP_OBJECT = 3
};

struct replay_answer {
	int32_t error; /* 0 or an errno */
	uint32_t step; /* where */
};

/* The life of the replayer, or of what `name` says; returns the exit status when the
 * server has gone. */
int replay_main(const char *name);

/*
 * Starts `program` with `argument` as the replayer; `mount` is a directory of
 * the mount, open for reading. Returns its pid and the server's end of the
 * socket in *socket, or a negative errno.
 */
pid_t replay_start(const char *program, const char *argument, int mount, int *socket);

/* Waits until the process has ended, without reaping it. 0 or a negative errno. */
int replay_wait(pid_t pid);

/*
 * Has one request performed. Returns 0 and the answer, or a negative errno:
 * -EPIPE when the replayer has gone.
 */
int replay_call(int socket, const struct replay_request *request, const void *name,
		const void *new_name, const void *path, const void *new_path,
		struct replay_answer *answer);

/* A mount in this process's mount table. Its id is given out again as soon as it is
 * unmounted; the device is not, as long as a clone is there. */
struct replay_mount {
	uint64_t id;
	uint32_t major, minor;
};

/*
 * A descriptor of the root of the mount at `path`, open for reading, that does
 * not keep it from being unmounted: of a detached clone. Which mount it is goes
 * to *mount. Or a negative errno.
 */
int replay_open_mount(const char *path, struct replay_mount *mount);

/* Makes the mount at `path` read-only, not its filesystem: what is done through
 * the descriptor of replay_open_mount() is not refused. 0 or a negative errno. */
int replay_make_read_only(const char *path);

/* Waits until this process's mount table has the mount no more: 0, or a negative
 * errno. */
int replay_wait_unmount(struct replay_mount mount);

/* The halves of a device number. */
uint32_t replay_major(uint64_t device);
uint32_t replay_minor(uint64_t device);

#endif
