/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A record as the message of a kernel that can be told of fsnotify events.
 *
 * Linux has no such message. It was proposed as "FUSE: Implement fsnotify in
 * guest" (linux-fsdevel, October 2021): a notification FUSE_NOTIFY_FSNOTIFY
 * from the server, and a request FUSE_FSNOTIFY by which the kernel tells the
 * server what is watched. The numbers it used are others' today (the opcode 51
 * is FUSE_TMPFILE, the notify code 8 FUSE_NOTIFY_INC_EPOCH, the INIT bit 30
 * FUSE_INIT_EXT), so whoever has a kernel with such a
 * message says which numbers that kernel uses; none is built in.
 *
 * Two layouts. HOSTWATCH_FSNOTIFY_POSTED is the struct of the proposal: one
 * nodeid, no generation, and a rename as two messages with a cookie.
 * HOSTWATCH_FSNOTIFY_WHOLE is what its review asked for: nodeid and generation
 * of the object and of both directories, with both names, in one message.
 *
 * No function here makes a system call or keeps anything, so each may be called
 * from any thread. Pointers must not be NULL.
 */
#ifndef HOSTWATCH_FSNOTIFY_H
#define HOSTWATCH_FSNOTIFY_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "hostwatch.h"

/* How a kernel wants to be told; see above. */
enum hostwatch_fsnotify_layout {
	HOSTWATCH_FSNOTIFY_POSTED = 1, /* as the proposal was posted */
	HOSTWATCH_FSNOTIFY_WHOLE = 2   /* a rename is one message */
};

/* What the kernel at hand calls things. There are no defaults. */
struct hostwatch_fsnotify_numbers {
	int32_t notify_code; /* FUSE_NOTIFY_FSNOTIFY; more than 0 */
	uint32_t opcode;     /* FUSE_FSNOTIFY, the request */
	uint64_t init_flag;  /* the bit of FUSE_INIT's flags and flags2 */
	uint32_t layout;     /* enum hostwatch_fsnotify_layout */
	uint32_t reserved;   /* 0 */
};

/* struct fuse_out_header, before every message. */
struct hostwatch_fsnotify_header {
	uint32_t len; /* of the whole message, bytes */
	int32_t error; /* the notify code */
	uint64_t unique; /* 0 */
};

/* HOSTWATCH_FSNOTIFY_POSTED; the name follows, without NUL. */
struct hostwatch_fsnotify_posted {
	uint64_t nodeid; /* the directory if there is a name, else the object */
	uint64_t mask;	 /* inotify's bits */
	uint32_t namelen; /* bytes; 0: no name */
	uint32_t cookie; /* the same in the two halves of a rename, else 0 */
};

/* HOSTWATCH_FSNOTIFY_WHOLE; name and new name follow, without NUL. */
struct hostwatch_fsnotify_whole {
	uint64_t mask; /* fsnotify's bits; a rename is FS_RENAME */
	struct hw_node dir; /* where it is or was; nodeid 0: not known */
	struct hw_node node; /* the object; nodeid 0: not known */
	struct hw_node new_dir; /* where a rename has put it; else 0 */
	uint32_t namelen; /* of the name in dir, bytes */
	uint32_t new_namelen; /* of the name in new_dir, bytes */
};

/* No record needs more: three posted messages with two names of 255 bytes. */
#define HOSTWATCH_FSNOTIFY_MAX 640

/* inotify's bits for a rename, which records have as one: HW_RENAME. */
#define HOSTWATCH_FSNOTIFY_MOVED_FROM UINT64_C(0x40)
#define HOSTWATCH_FSNOTIFY_MOVED_TO UINT64_C(0x80)
#define HOSTWATCH_FSNOTIFY_MOVE_SELF UINT64_C(0x800)

static inline size_t hostwatch_fsnotify_put_(unsigned char *at, size_t end,
					     const void *bytes, size_t size)
{
	if (size)
		memcpy(at + end, bytes, size);
	return end + size;
}

static inline size_t
hostwatch_fsnotify_posted_(const struct hostwatch_fsnotify_numbers *numbers,
			   unsigned char *at, size_t end, uint64_t nodeid,
			   uint64_t mask, uint32_t cookie, const char *name,
			   uint32_t name_size)
{
	struct hostwatch_fsnotify_header header = { 0, numbers->notify_code,
						    0 };
	struct hostwatch_fsnotify_posted body = { nodeid, mask, name_size,
						  cookie };

	if (!nodeid)
		return end;
	header.len = (uint32_t)(sizeof(header) + sizeof(body) + name_size);
	end = hostwatch_fsnotify_put_(at, end, &header, sizeof(header));
	end = hostwatch_fsnotify_put_(at, end, &body, sizeof(body));
	return hostwatch_fsnotify_put_(at, end, name, name_size);
}

/*
 * Writes the message or messages that tell the kernel of `event` to `bytes`,
 * which has room for `size` bytes, one after the other; each is to be written to
 * /dev/fuse by one call, its length being its first 32 bits.
 *
 * In the posted layout a rename is MOVED_FROM and MOVED_TO, with a cookie that
 * is not 0, and MOVE_SELF; a side of which the session knows nothing is left
 * out. CREATE, DELETE and events with a name go to the directory, the object's
 * own ones to the object.
 *
 * Returns how many bytes, or 0 if there is nothing to tell (other kinds, RECHECK,
 * nothing known); -EINVAL for numbers that make no sense, or for a name of more
 * than 255 bytes; -ENOSPC if `size` is less than HOSTWATCH_FSNOTIFY_MAX, whatever
 * the event needs.
 */
static inline int
hostwatch_fsnotify_encode(const struct hostwatch_fsnotify_numbers *numbers,
			  const struct hostwatch_event *event,
			  unsigned char *bytes, size_t size)
{
	struct hostwatch_fsnotify_header header = { 0, numbers->notify_code,
						    0 };
	struct hostwatch_fsnotify_whole body;
	uint64_t isdir = event->mask & HW_ISDIR;
	uint32_t cookie;
	size_t end = 0;

	if (numbers->notify_code <= 0 || numbers->reserved ||
	    (numbers->layout != HOSTWATCH_FSNOTIFY_POSTED &&
	     numbers->layout != HOSTWATCH_FSNOTIFY_WHOLE))
		return -EINVAL;
	if (event->kind != HOSTWATCH_EVENT || (event->flags & HW_RECHECK) ||
	    event->mask == isdir)
		return 0;
	if (size < HOSTWATCH_FSNOTIFY_MAX)
		return -ENOSPC;
	if (event->name_size > 255 || event->new_name_size > 255)
		return -EINVAL;
	if (numbers->layout == HOSTWATCH_FSNOTIFY_WHOLE) {
		memset(&body, 0, sizeof(body));
		body.mask = event->mask;
		body.dir = event->dir;
		body.node = event->node;
		body.new_dir = event->new_dir;
		body.namelen = event->name_size;
		body.new_namelen = event->new_name_size;
		header.len = (uint32_t)(sizeof(header) + sizeof(body) +
					body.namelen + body.new_namelen);
		end = hostwatch_fsnotify_put_(bytes, end, &header,
					      sizeof(header));
		end = hostwatch_fsnotify_put_(bytes, end, &body, sizeof(body));
		end = hostwatch_fsnotify_put_(bytes, end, event->name,
					      body.namelen);
		return (int)hostwatch_fsnotify_put_(
			bytes, end, event->new_name, body.new_namelen);
	}
	if (event->mask & HW_RENAME) {
		cookie = (uint32_t)event->sequence;
		cookie = cookie ? cookie : 1;
		end = hostwatch_fsnotify_posted_(
			numbers, bytes, end, event->dir.nodeid,
			HOSTWATCH_FSNOTIFY_MOVED_FROM | isdir, cookie,
			event->name, event->name_size);
		end = hostwatch_fsnotify_posted_(
			numbers, bytes, end, event->new_dir.nodeid,
			HOSTWATCH_FSNOTIFY_MOVED_TO | isdir, cookie,
			event->new_name, event->new_name_size);
		return (int)hostwatch_fsnotify_posted_(
			numbers, bytes, end, event->node.nodeid,
			HOSTWATCH_FSNOTIFY_MOVE_SELF | isdir, 0, NULL, 0);
	}
	if (event->name_size)
		end = hostwatch_fsnotify_posted_(
			numbers, bytes, end, event->dir.nodeid, event->mask, 0,
			event->name, event->name_size);
	if (!(event->mask & (HW_CREATE | HW_DELETE)))
		end = hostwatch_fsnotify_posted_(
			numbers, bytes, end, event->node.nodeid, event->mask,
			0, NULL, 0);
	return (int)end;
}

/*
 * What the kernel watches on an object, as its request FUSE_FSNOTIFY says it
 * (struct fuse_notify_fsnotify_in of the proposal: mask, then group, 64 bits
 * each): the mask to be given to hostwatch_interest() for the request's nodeid.
 * `request` is what follows struct fuse_in_header, `size` bytes of it.
 *
 * Returns 0 and the mask in *mask, without bits that records do not have;
 * -ENOSYS if `opcode` is another one, or -EINVAL if the request is not 16 bytes
 * long. *mask is not written then.
 */
static inline int
hostwatch_fsnotify_interest(const struct hostwatch_fsnotify_numbers *numbers,
			    uint32_t opcode, const void *request, size_t size,
			    uint64_t *mask)
{
	uint64_t wanted;

	if (opcode != numbers->opcode)
		return -ENOSYS;
	if (size != 16)
		return -EINVAL;
	memcpy(&wanted, request, sizeof(wanted));
	*mask = wanted & (HW_ACCESS | HW_MODIFY | HW_ATTRIB | HW_CLOSE_WRITE |
			  HW_CLOSE_NOWRITE | HW_OPEN | HW_CREATE | HW_DELETE |
			  HW_DELETE_SELF | HW_OPEN_EXEC);
	if (wanted & (HOSTWATCH_FSNOTIFY_MOVED_FROM |
		      HOSTWATCH_FSNOTIFY_MOVED_TO |
		      HOSTWATCH_FSNOTIFY_MOVE_SELF | HW_RENAME))
		*mask |= HW_RENAME;
	return 0;
}

#endif
