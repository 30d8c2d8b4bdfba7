/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records applied to a kernel by the notifications that a stock libfuse has.
 *
 * For servers on libfuse 3's low-level API whose nodeids are the ones they have
 * registered with hostwatchd. Include <fuse_lowlevel.h> before this header, and
 * link libfuse3. docs/integrate.md says what the server has to do besides, and
 * examples/mirror.c is a server with and without.
 *
 *	struct hostwatch_fuse f;
 *	hostwatch_fuse_init(&f, session);
 *	while (hostwatch_next(h, &event, -1) == 1)
 *		hostwatch_fuse_apply(&f, &event);
 *
 * What is done for a record. D is the directory, N the name, O the object; a
 * side that the record does not know (nodeid 0) is left out, and what the
 * kernel does not have is no error. "names" are those of a directory that
 * .names reports; without it, the epoch is raised instead.
 *
 *	CREATE		entry N of D, contents of D; O known: its attributes
 *	DELETE		O is known and gone: delete N of D. Else entry N of D.
 *			Contents of D, attributes of O
 *	RENAME		entry and contents of both sides; attributes of O
 *	MODIFY, CLOSE_WRITE	contents of O; O unknown: entry N of D
 *	ATTRIB, ACCESS	attributes of O; O unknown: entry N of D
 *	DELETE_SELF	contents of O
 *	RECHECK		contents of O; with ISDIR its names are expired, too
 *	LOST, DISCONNECTED, DETACHED	all names are expired, contents of what
 *			.nodes visits, and timeouts are 0 until RESYNCED,
 *			IN_STEP or hostwatch_fuse_registered()
 *
 * "Entry" is fuse_lowlevel_notify_inval_entry(), "contents" and "attributes"
 * are fuse_lowlevel_notify_inval_inode(), "delete" is
 * fuse_lowlevel_notify_delete(). An object is gone if it is a directory, or if
 * .links says 0: to delete one of several hard links would tell watchers of
 * the others that the object is gone. MOVED_IN, MOVED_OUT, CORRECTED and
 * REPLACED change nothing of this: a victim has a record of its own.
 *
 * Answers under way. An object may change after a handler has looked at it and
 * before the kernel has the answer: then the kernel says that it does not have
 * the inode, and makes it of the old attributes. With .hold such an object is
 * told again until the answer, or the kernel's FORGET, has arrived. Without it
 * the answers to LOOKUP and READDIRPLUS have to have an attribute timeout of 0.
 * Those to SETATTR and LINK, and to what creates, have to anyway: the kernel
 * takes their attributes also where it was told to drop them since it asked.
 *
 * Threads. A notification may wait for a lock that a request of the same
 * directory holds. So what sends some, hostwatch_fuse_apply(),
 * hostwatch_fuse_out_of_step() and hostwatch_fuse_expire(), is never called from
 * a request's handler, nor under a lock that a handler takes, nor by the only
 * thread that serves requests: it belongs into a thread of its own, the one that
 * is in hostwatch_next(). Such a lock is not to be had any more when requests are
 * not served, and the wait is not interrupted: the thread is ended before the
 * loop is, or after the connection (umount2() with MNT_FORCE).
 * hostwatch_fuse_apply(), hostwatch_fuse_out_of_step() and
 * hostwatch_fuse_registered() note the state and are called by one thread at a
 * time. Everything else may be called from anywhere.
 *
 * Errors are negative errnos: those of libfuse's fuse_lowlevel_notify_*() and of
 * writing to /dev/fuse. Pointers must not be NULL but where it says so.
 */
#ifndef HOSTWATCH_FUSE_H
#define HOSTWATCH_FUSE_H

#ifndef FUSE_LOWLEVEL_H_
#error "include <fuse_lowlevel.h> before <hostwatch_fuse.h>"
#endif

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#include "hostwatch.h"

/* Called once for each name; `name_size` in bytes, no NUL needed behind it. */
typedef void (*hostwatch_fuse_visit)(void *argument, uint64_t directory,
				     const char *name, size_t name_size);

/* Called once for each object. */
typedef void (*hostwatch_fuse_visit_node)(void *argument, uint64_t nodeid,
					  uint64_t generation);

/* One mount of a server; filled by hostwatch_fuse_init(). */
struct hostwatch_fuse {
	/* Whose kernel is told; must live longer than this does. */
	struct fuse_session *session;

	/* The server's own, each of which may be NULL. They are called on the
	 * thread that is in hostwatch_fuse_apply() or _out_of_step(). */

	/* Keeps the object with that nodeid and generation until .release is
	 * called for it: the nodeid becomes no other object's meanwhile. Returns
	 * 1, or 0 if the server does not have it. The server has an object from
	 * before an answer tells the kernel of it until the FORGET, the root
	 * always, and nothing else. */
	int (*hold)(void *context, uint64_t nodeid, uint64_t generation);
	/* Ends that; set together with .hold. */
	void (*release)(void *context, uint64_t nodeid);
	/* How many links the object has on the host, or a negative errno. With
	 * .hold it is held. */
	int64_t (*links)(void *context, uint64_t nodeid);
	/* Visits the names below `directory`, or of all directories if that is
	 * 0, under which the kernel may have an entry. No lock that a handler
	 * takes may be held during a visit. */
	void (*names)(void *context, uint64_t directory,
		      hostwatch_fuse_visit visit, void *argument);
	/* Visits every object that the kernel may have, the root or not; those
	 * of which it is told meanwhile may be left out. The walk itself must not
	 * keep an object during its visit, which lasts until .hold says that the
	 * kernel does not have it; nor may a lock be held then that a handler
	 * takes. Nobody looks up by name what a client has open or is in: without
	 * this its attributes and pages stay as they were for as long as the
	 * session is out of step. */
	void (*nodes)(void *context, hostwatch_fuse_visit_node visit,
		      void *argument);
	/* Given to all of them. */
	void *context;

	/* What was done since hostwatch_fuse_init(); read each of them with
	 * __atomic_load_n(). What the kernel did not have is not counted. */

	uint64_t entries;	/* names that were invalidated */
	uint64_t inodes;	/* objects whose cache was invalidated */
	uint64_t deleted;	/* names that the kernel was told are deleted */
	uint64_t expired;	/* names that the kernel is to ask for again */
	uint64_t epochs;	/* how often all names were expired at once */
	uint64_t failed;	/* notifications that the kernel refused */

	uint64_t moment_;	/* of the last doubt, even; odd: not in step */
};

/* Ready to be used, in step, with neither links nor names; `session` must live
 * longer than *f does. Cannot fail. */
static inline void hostwatch_fuse_init(struct hostwatch_fuse *f,
				       struct fuse_session *session)
{
	memset(f, 0, sizeof(*f));
	f->session = session;
}

/*
 * At the beginning of a handler, before it looks at the host. Returns a number
 * that means nothing else: it is given to hostwatch_fuse_timeout() when the
 * handler answers.
 */
static inline uint64_t hostwatch_fuse_moment(const struct hostwatch_fuse *f)
{
	return __atomic_load_n(&f->moment_, __ATOMIC_ACQUIRE);
}

/*
 * How long the kernel may keep what a handler answers, for attr_timeout and
 * entry_timeout of struct fuse_entry_param and for fuse_reply_attr(). Returns
 * `seconds`, or 0 if the session was or has fallen out of step since `moment`,
 * which is what hostwatch_fuse_moment() returned.
 */
static inline double hostwatch_fuse_timeout(const struct hostwatch_fuse *f,
					    uint64_t moment, double seconds)
{
	return moment % 2 || moment != hostwatch_fuse_moment(f) ? 0.0 : seconds;
}

/* After HOSTWATCH_CONNECTED, when everything the kernel holds is registered
 * again: timeouts hold again. With HOSTWATCH_RECONNECT, HOSTWATCH_IN_STEP is
 * enough. Cannot fail. */
static inline void hostwatch_fuse_registered(struct hostwatch_fuse *f)
{
	uint64_t moment = hostwatch_fuse_moment(f);

	if (moment % 2)
		__atomic_store_n(&f->moment_, moment + 1, __ATOMIC_RELEASE);
}

/* Nothing cached is an answer, too; the first other error is kept. */
static inline void hostwatch_fuse_count_(struct hostwatch_fuse *f,
					 uint64_t *count, int error, int *first)
{
	if (error && error != -ENOENT) {
		__atomic_add_fetch(&f->failed, 1, __ATOMIC_RELAXED);
		if (!*first)
			*first = error;
	} else if (!error) {
		__atomic_add_fetch(count, 1, __ATOMIC_RELAXED);
	}
}

static inline int hostwatch_fuse_write_(struct hostwatch_fuse *f, int32_t code,
					const void *body, size_t size,
					const char *name, size_t name_size)
{
	struct {
		uint32_t len;
		int32_t error;
		uint64_t unique;
	} header = { 0, code, 0 };
	struct iovec parts[4];
	ssize_t wrote;

	header.len = (uint32_t)(sizeof(header) + size);
	parts[0].iov_base = &header;
	parts[0].iov_len = sizeof(header);
	parts[1].iov_base = (void *)(uintptr_t)body;
	parts[1].iov_len = size;
	parts[2].iov_base = (void *)(uintptr_t)name;
	parts[2].iov_len = name_size;
	parts[3].iov_base = (void *)(uintptr_t)"";
	parts[3].iov_len = 1;
	if (name)
		header.len += (uint32_t)name_size + 1;
	wrote = writev(fuse_session_fd(f->session), parts,
		       name ? 4 : size ? 2 : 1);
	return wrote < 0 ? -errno : 0;
}

/* What the kernel has under the name. */
static inline void hostwatch_fuse_entry_(struct hostwatch_fuse *f,
					 const struct hw_node *dir,
					 const char *name, size_t name_size,
					 int *first)
{
	if (dir->nodeid && name_size)
		hostwatch_fuse_count_(f, &f->entries,
				      fuse_lowlevel_notify_inval_entry(
					      f->session, dir->nodeid, name,
					      name_size),
				      first);
}

static inline int hostwatch_fuse_hold_(struct hostwatch_fuse *f,
				       const struct hw_node *node)
{
	return node->nodeid &&
	       (!f->hold || f->hold(f->context, node->nodeid, node->generation));
}

static inline void hostwatch_fuse_release_(struct hostwatch_fuse *f,
					   const struct hw_node *node)
{
	if (f->hold)
		f->release(f->context, node->nodeid);
}

/* An inode's attributes, and with them (`contents`) its pages; a directory's
 * pages are its listing. */
static inline void hostwatch_fuse_inode_(struct hostwatch_fuse *f,
					 const struct hw_node *node,
					 int contents, int *first)
{
	const struct timespec pause = { 0, 200000 };
	int error;

	while (hostwatch_fuse_hold_(f, node)) {
		error = fuse_lowlevel_notify_inval_inode(f->session,
							 node->nodeid,
							 contents ? 0 : -1, 0);
		hostwatch_fuse_release_(f, node);
		/* Held and not there: the answer or the FORGET is on its way,
		 * or nothing is there any more, not even the root. */
		if (error != -ENOENT || !f->hold ||
		    fuse_lowlevel_notify_inval_inode(f->session, FUSE_ROOT_ID,
						     -1, 0)) {
			hostwatch_fuse_count_(f, &f->inodes, error, first);
			break;
		}
		nanosleep(&pause, NULL);
	}
}

/*
 * The kernel asks again before it uses the entry, and keeps what it has if the
 * answer is the same: mounts and working directories below stay. Kernels before
 * 6.2 invalidate instead. `name` has `name_size` bytes, 1 at least, and needs no
 * NUL. It is FUSE_NOTIFY_INVAL_ENTRY with FUSE_EXPIRE_ONLY.
 *
 * Returns 0, -ENOENT (the kernel has no such directory or entry), or another
 * negative errno of writing to /dev/fuse.
 */
static inline int hostwatch_fuse_expire(struct hostwatch_fuse *f,
					uint64_t directory, const char *name,
					size_t name_size)
{
	/* struct fuse_notify_inval_entry_out with FUSE_EXPIRE_ONLY; libfuse's
	 * function for it has changed its arguments over time. */
	struct {
		uint64_t parent;
		uint32_t namelen;
		uint32_t flags;
	} body = { directory, (uint32_t)name_size, 1 };

	return hostwatch_fuse_write_(f, 3 /* FUSE_NOTIFY_INVAL_ENTRY */, &body,
				     sizeof(body), name, name_size);
}

/*
 * Every entry of the kernel's is dropped when it is to be used next, and looked
 * up again (FUSE_NOTIFY_INC_EPOCH). What was mounted on it is unmounted then,
 * whatever the answer. Returns 0, -EINVAL before Linux 6.16, which has no
 * epochs, or another negative errno of writing to /dev/fuse.
 */
static inline int hostwatch_fuse_epoch(struct hostwatch_fuse *f)
{
	return hostwatch_fuse_write_(f, 8 /* FUSE_NOTIFY_INC_EPOCH */, NULL, 0,
				     NULL, 0);
}

struct hostwatch_fuse_walk_ {
	struct hostwatch_fuse *f;
	uint64_t directory; /* whose contents were invalidated last */
	int all, *first;
};

static inline void hostwatch_fuse_visit_(void *argument, uint64_t directory,
					 const char *name, size_t name_size)
{
	struct hostwatch_fuse_walk_ *walk =
		(struct hostwatch_fuse_walk_ *)argument;

	if (walk->all && walk->directory != directory)
		hostwatch_fuse_count_(walk->f, &walk->f->inodes,
				      fuse_lowlevel_notify_inval_inode(
					      walk->f->session, directory, 0, 0),
				      walk->first);
	walk->directory = directory;
	hostwatch_fuse_count_(walk->f, &walk->f->expired,
			      hostwatch_fuse_expire(walk->f, directory, name,
						    name_size),
			      walk->first);
}

/* The names of a directory, or with 0 everything, by epoch or by walking. */
static inline void hostwatch_fuse_doubt_(struct hostwatch_fuse *f,
					 uint64_t directory, int *first)
{
	struct hostwatch_fuse_walk_ walk = { f, 0, !directory, first };
	int error = -ENOSYS;

	if (!directory || !f->names)
		error = hostwatch_fuse_epoch(f);
	if (!error)
		__atomic_add_fetch(&f->epochs, 1, __ATOMIC_RELAXED);
	if (f->names && (error || !directory))
		f->names(f->context, directory, hostwatch_fuse_visit_, &walk);
	else if (error)
		hostwatch_fuse_count_(f, &f->epochs, error, first);
}

static inline void hostwatch_fuse_visit_node_(void *argument, uint64_t nodeid,
					      uint64_t generation)
{
	const struct hw_node node = { nodeid, generation };
	struct hostwatch_fuse_walk_ *walk =
		(struct hostwatch_fuse_walk_ *)argument;

	if (nodeid != FUSE_ROOT_ID)
		hostwatch_fuse_inode_(walk->f, &node, 1, walk->first);
}

/*
 * Timeouts become 0, also of what is being answered now; then every name that
 * the kernel has is expired, and what .nodes visits is invalidated.
 * hostwatch_fuse_apply() does it for LOST, DETACHED and DISCONNECTED.
 *
 * Returns what hostwatch_fuse_apply() does: -EINVAL where the kernel has no
 * epochs (before Linux 6.16) and there is no .names to walk. Timeouts are 0
 * then all the same.
 */
static inline int hostwatch_fuse_out_of_step(struct hostwatch_fuse *f)
{
	const struct hw_node root = { FUSE_ROOT_ID, 0 };
	uint64_t moment = hostwatch_fuse_moment(f);
	int first = 0;
	struct hostwatch_fuse_walk_ walk = { f, 0, 1, &first };

	__atomic_store_n(&f->moment_, moment + (moment % 2 ? 2 : 1),
			 __ATOMIC_RELEASE);
	hostwatch_fuse_doubt_(f, 0, &first);
	if (f->nodes)
		f->nodes(f->context, hostwatch_fuse_visit_node_, &walk);
	/* Nobody looks up the root by a name. */
	hostwatch_fuse_inode_(f, &root, 1, &first);
	return first;
}

static inline void hostwatch_fuse_delete_(struct hostwatch_fuse *f,
					  const struct hostwatch_event *e,
					  int *first)
{
	int error = -ENOENT;

	/* Not of what has the nodeid by now. */
	if (e->dir.nodeid && e->name_size && hostwatch_fuse_hold_(f, &e->node)) {
		if (e->mask & HW_ISDIR ||
		    (f->links && f->links(f->context, e->node.nodeid) == 0))
			error = fuse_lowlevel_notify_delete(
				f->session, e->dir.nodeid, e->node.nodeid,
				e->name, e->name_size);
		hostwatch_fuse_release_(f, &e->node);
	}
	if (!error)
		__atomic_add_fetch(&f->deleted, 1, __ATOMIC_RELAXED);
	else /* another object there, a mount, or entries below: drop it */
		hostwatch_fuse_entry_(f, &e->dir, e->name, e->name_size, first);
	hostwatch_fuse_inode_(f, &e->dir, 1, first);
	hostwatch_fuse_inode_(f, &e->node, 0, first);
}

static inline void hostwatch_fuse_record_(struct hostwatch_fuse *f,
					  const struct hostwatch_event *e,
					  int *first)
{
	if (e->flags & HW_RECHECK) {
		hostwatch_fuse_inode_(f, &e->node, 1, first);
		if (e->mask & HW_ISDIR && e->node.nodeid)
			hostwatch_fuse_doubt_(f, e->node.nodeid, first);
	} else if (e->mask & HW_DELETE) {
		hostwatch_fuse_delete_(f, e, first);
	} else if (e->mask & (HW_CREATE | HW_RENAME)) {
		hostwatch_fuse_entry_(f, &e->dir, e->name, e->name_size, first);
		hostwatch_fuse_inode_(f, &e->dir, 1, first);
		hostwatch_fuse_entry_(f, &e->new_dir, e->new_name,
				      e->new_name_size, first);
		hostwatch_fuse_inode_(f, &e->new_dir, 1, first);
		hostwatch_fuse_inode_(f, &e->node, 0, first);
	} else if (e->mask & (HW_MODIFY | HW_CLOSE_WRITE | HW_DELETE_SELF |
			      HW_ATTRIB | HW_ACCESS)) {
		if (!e->node.nodeid)
			hostwatch_fuse_entry_(f, &e->dir, e->name,
					      e->name_size, first);
		hostwatch_fuse_inode_(f, &e->node,
				      !!(e->mask & (HW_MODIFY | HW_CLOSE_WRITE |
						    HW_DELETE_SELF)),
				      first);
	}
}

/*
 * Does what the table above says. It waits for locks of the kernel's, and with
 * .hold for answers that are under way.
 *
 * Returns 0, or the first errno (negative) that was not about something the
 * kernel does not have; the rest is done all the same, and .failed counts them.
 * -ENODEV: the filesystem is unmounted. -ENOSYS (libfuse's): the kernel's FUSE
 * protocol is too old for the notification, or its INIT has not come yet.
 * -EINVAL: the kernel has no epochs, and .names is NULL. After an error
 * something stale may be in the kernel.
 */
static inline int hostwatch_fuse_apply(struct hostwatch_fuse *f,
				       const struct hostwatch_event *event)
{
	int first = 0;

	switch (event->kind) {
	case HOSTWATCH_EVENT:
		hostwatch_fuse_record_(f, event, &first);
		break;
	case HOSTWATCH_LOST:
	case HOSTWATCH_DETACHED:
	case HOSTWATCH_DISCONNECTED:
		return hostwatch_fuse_out_of_step(f);
	case HOSTWATCH_RESYNCED:
	case HOSTWATCH_IN_STEP:
		hostwatch_fuse_registered(f);
		break;
	}
	return first;
}

#endif
