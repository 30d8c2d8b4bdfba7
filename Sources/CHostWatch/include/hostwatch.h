/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CHostWatch: hostwatchd's client for FUSE servers written in C or C++.
 *
 * A server opens a session, registers the objects its clients have looked up
 * (with an open descriptor of each), and gets what happens to them on the host
 * as events in its own nodeids and generations. docs/protocol.md says what the
 * events mean; the masks, flags and structs that begin with hw_ and HW_ are
 * those of hostwatch_protocol.h.
 *
 * Threads. Every function may be called from any thread at any time, with two
 * exceptions: only one thread at a time may be in hostwatch_next() for a
 * handle, and hostwatch_close() needs that no other call is under way. Threads
 * may register while another waits for events, or works on one: whoever waits
 * reads the socket for all, so the library starts no thread, and a thread that
 * is held up in a cache invalidation holds up no registration. Threads must not be cancelled
 * (pthread_cancel) inside a call, and after fork() only the parent may use a
 * handle.
 *
 * Errors. A function that returns an int returns 0 or a positive value, or a
 * negative errno. After a negative errno hostwatch_error_text() has the sentence
 * that goes with it.
 *
 * When the connection is lost, every request under way and every later one
 * returns -ECONNRESET (the daemon hung up), -EPROTO (one side broke the
 * protocol), -ENOMEM (no memory for what arrived) or -ESHUTDOWN
 * (hostwatch_shutdown() was called) until hostwatch_reconnect(): that is what
 * "the connection is lost" says below. After a hostwatch_reconnect() that failed
 * it is that call's error; with HOSTWATCH_RECONNECT it may also be what
 * `reregister` returned, or the error with which the daemon refused a SYNC.
 * hostwatch_next() returns -ENOTCONN.
 *
 * Every request may also return what sendmsg(2) does when the kernel has no
 * memory (-ENOMEM, -ENOBUFS); the connection stands then. Requests wait for as
 * long as the daemon takes, whatever timeout_ms is; hostwatch_shutdown() ends
 * that, a signal does not. Pointers must not be NULL but where it says so.
 *
 * Memory. Events that arrive while a thread waits for a reply are kept in the
 * handle until hostwatch_next() hands them out. There is no limit on them: a
 * server that makes requests and never calls hostwatch_next() grows. While no
 * request waits and nobody is in hostwatch_next(), nothing is read, and the
 * daemon's queue for this session (queue_limit, then HOSTWATCH_LOST) bounds it.
 */
#ifndef HOSTWATCH_H
#define HOSTWATCH_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "hostwatch_protocol.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A connection to hostwatchd and its session. */
struct hostwatch;

/*
 * Registers what the server holds in a session that knows none of it yet, with
 * `since` for every object: nothing that happened up to then is missing from
 * the events handed out so far. See HOSTWATCH_RECONNECT.
 *
 * It is called in hostwatch_next(), without a lock: it may call every function
 * but hostwatch_next(), hostwatch_reconnect() and hostwatch_close(). It goes
 * through the server's table of nodes, opens each and registers it, best many
 * at a time. Meanwhile:
 *
 * - The root is not registered, being so from the start. If it may have changed,
 *   the library makes an event with HW_RECHECK for it (sequence 0).
 * - What it cannot open any more (ENOENT, ESTALE) is gone: the server does what
 *   it would do for HW_DELETE_SELF. What the daemon refuses (a status) is not
 *   followed: the server must not cache it, or lets its clients look it up anew.
 * - Other threads register as ever. One enters a node into the table before it
 *   registers it, and lets it be there if that fails because the connection is
 *   lost: either the table's walk finds the node or the registration comes late
 *   enough. Registering twice does no harm.
 * - A node that the walk has opened stays in the table until its registration
 *   has been sent: the walk holds the table's lock until then, or a reference
 *   to the node, and whoever gives up the last one takes it out and calls
 *   hostwatch_forget(), in this order. Else an object that is forgotten and
 *   looked up again meanwhile is registered under a new nodeid, and the walk
 *   takes the registration back to the old one, which is then forgotten.
 *
 * `h` is the handle, `since` is valid during the call, and `argument` is that
 * of the options. Returns 0, or a negative errno if it could not be done: then
 * the connection is given up and everything begins anew, with the same `since`.
 */
typedef int hostwatch_reregister(struct hostwatch *h,
				 const struct timespec *since, void *argument);

/*
 * hostwatch_options.flags.
 *
 * HOSTWATCH_RECONNECT: the library keeps the session up, and the server needs
 * two states only. It begins in step: what happens is told. HOSTWATCH_OUT_OF_STEP
 * says that from here on something may be missing, because the connection was
 * lost or the daemon lost events. HOSTWATCH_IN_STEP says that it has been made
 * up for: what had changed at registered nodes has been told by events before
 * it (HW_RECHECK, HW_DELETE_SELF), so a NODES server that handles them has a
 * true cache again and need not drop what did not change; a TREE client reads
 * its tree then. The two alternate. The other kinds come, too, and may be
 * ignored.
 *
 * The work is done in hostwatch_next(). When the connection is lost it connects
 * again, at once and then after 50 ms to 2 seconds, for as long as there is no
 * daemon; calls `reregister` (NODES); and asks the daemon with a SYNC for what
 * that has to say. If the connection is lost meanwhile, it starts over. It
 * gives up, and then returns -ENOTCONN, when the session ended for good
 * (HW_DETACHED_UNMOUNTED, HW_DETACHED_REMOVED) or the daemon refuses the
 * session for a reason that does not go away by itself (-EACCES, -EPERM,
 * -ENOENT for the share, …). hostwatch_reconnect() lets it try again.
 *
 * `since`: in step, hostwatch_next() sends a SYNC of its own after events and
 * registrations, at most one in sync_interval_ms. When a SYNC, its own or
 * hostwatch_sync(), is answered, `since` becomes the time just before that
 * SYNC was sent (CLOCK_REALTIME_COARSE) less 10 ms. Every change at a node
 * registered before that SYNC, whose ctime is `since` or earlier, was then
 * handed out or waits in the handle, and is handed out before `reregister` is
 * called. One kind of change is not covered: that of a system call which set
 * the ctime more than 10 ms before that SYNC, was still under way then (a
 * write(2) of very many bytes), and ended while there was no daemon. A node
 * that was registered later than `since` may be registered again with its own.
 */
#define HOSTWATCH_RECONNECT UINT32_C(1)

/* What to open. Fill it with hostwatch_options_init(), then change it. */
struct hostwatch_options {
	size_t size;		 /* of this struct as the caller knows it */
	const char *socket_path; /* NULL = HW_SOCKET_PATH */
	const char *share;	 /* a share the configuration names, or NULL */
	int root_fd;		 /* a descriptor of the root directory, or -1 */
	uint32_t mode;		 /* HW_MODE_NODES (default) or HW_MODE_TREE */
	uint32_t options;	 /* HW_SUPPRESS_ECHO …; default 0 */
	uint32_t max_packet;	 /* bytes; 0 = HW_PACKET_DEFAULT */
	uint64_t events;	 /* mask wanted; default HW_EVENTS_DEFAULT */
	uint32_t queue_limit;	 /* bytes; 0 = the daemon's default */
	uint32_t max_delay_us;	 /* microseconds; 0 = send at once */
	uint32_t echo_pid;	 /* 0 = this process */
	int timeout_ms;		 /* of opening and reconnecting; negative =
				    none; default 5000 milliseconds */
	uint32_t flags;		 /* HOSTWATCH_RECONNECT */
	uint32_t sync_interval_ms; /* with it; 0 = 1000 milliseconds */
	hostwatch_reregister *reregister; /* with it; NULL = nothing to do */
	void *argument;		 /* handed to reregister */
};

/*
 * Sets every field to its default. `size` is sizeof(struct hostwatch_options):
 * a caller built against an older header keeps working with a newer library.
 * Cannot fail.
 */
void hostwatch_options_init(struct hostwatch_options *options, size_t size);

/*
 * Connects, sends INIT and waits for the reply. Exactly one of `share` and
 * `root_fd` must be given. The library keeps a duplicate of root_fd for
 * hostwatch_reconnect(), and strings are copied. Every change made after this
 * returns is reported.
 *
 * Waits for timeout_ms at most, for the connection and the reply together.
 *
 * Returns 0 and the handle in *out; else *out is NULL and the result:
 *
 * - -EINVAL: options that make no sense, or option bits that the daemon does not
 *   know. -ENAMETOOLONG: socket_path is longer than 107 bytes.
 * - -ENOENT or -ECONNREFUSED: no daemon listens. -EACCES: the socket may not be
 *   written to. Others of connect(2).
 * - -ETIMEDOUT; -ECONNRESET: the daemon hung up; -EPROTO: what answered breaks
 *   the protocol.
 * - -ENOMEM; -EMFILE or -ENFILE: no descriptor is free for the socket, the
 *   eventfd or the duplicate of root_fd; -EBADF: root_fd is none.
 * - The errno with which the daemon refused, its sentence being in
 *   hostwatch_error_text(): -EPERM, -EACCES, -ENOENT, -EUSERS, … The table of
 *   refusals in docs/protocol.md (INIT) has them all.
 */
int hostwatch_open(const struct hostwatch_options *options,
		   struct hostwatch **out);

/*
 * Ends the session and frees the handle, with the descriptors it has made and
 * the events that were not handed out. Does not wait for the daemon. NULL is
 * ignored. Cannot fail.
 */
void hostwatch_close(struct hostwatch *h);

/*
 * Ends the session for good and wakes every thread that waits in a call, so
 * that they can be joined before hostwatch_close(). Calls return -ESHUTDOWN;
 * hostwatch_next() still hands out what it has, ending with
 * HOSTWATCH_DISCONNECTED, and returns -ENOTCONN then. Not for signal handlers.
 * May be called again. Cannot fail.
 */
void hostwatch_shutdown(struct hostwatch *h);

/*
 * Opens a new session with the options of hostwatch_open() after the
 * connection was lost. The new session knows no nodes: the server registers
 * those it holds again, with `since` the last moment at which it knew its cache
 * to be right. In hostwatch_next() the events of the new session follow a
 * HOSTWATCH_CONNECTED; those of the old one, if they have not been fetched
 * yet, come before.
 *
 * With HOSTWATCH_RECONNECT that is hostwatch_next()'s to do; this function only
 * lets it try at once, and again if it has given up.
 *
 * Returns 0, -EISCONN when the connection stands, -EALREADY when another thread
 * is reconnecting, -ESHUTDOWN after hostwatch_shutdown(), or an error of
 * hostwatch_open(), or -ENOSPC or -ENOMEM where hostwatch_fd() cannot watch the
 * new connection; then it may be tried again. With HOSTWATCH_RECONNECT 0 says
 * only that hostwatch_next() will try.
 */
int hostwatch_reconnect(struct hostwatch *h);

/*
 * Returns the sentence of the last call that failed in this thread, made by the
 * daemon where it was the daemon that refused; empty before the first. UTF-8,
 * never NULL, cut off at 511 bytes, valid until the next call that fails in this
 * thread.
 */
const char *hostwatch_error_text(void);

/* What the daemon granted. */
struct hostwatch_session {
	uint64_t id;	 /* not 0; an event's origin names it */
	uint64_t events; /* what this filesystem can deliver, of what was asked */
	struct hw_node root; /* nodeid 1, generation 0 */
	uint32_t options;     /* HW_SUPPRESS_ECHO … */
	uint32_t max_packet;  /* bytes */
	uint32_t queue_limit; /* bytes */
	uint32_t max_nodes;   /* how many may be registered */
};

/*
 * Copies the session as of the last successful open or reconnect to *out. Does
 * not ask the daemon, and cannot fail.
 */
void hostwatch_session(struct hostwatch *h, struct hostwatch_session *out);

/*
 * Registers one object and waits for the answer (NODES only). `fd` is an open
 * descriptor of it, needed only during the call; for who is not root it has to
 * be open for reading. `nodeid` and `generation` are the server's own; nodeid is
 * neither 0 nor 1. `interest` is an event mask, 0 = the session's (or nothing,
 * with HW_EXPLICIT_INTEREST). `since` is the ctime the server gave to its client, or the
 * last moment it knew its cache to be right (CLOCK_REALTIME_COARSE less 10 ms,
 * as a system call may set the ctime some time before it is done): if the object
 * has changed since, it gets an event with HW_RECHECK. NULL: no check.
 *
 * A directory must be registered before the lookup that led to it is answered.
 *
 * Returns 0, or why it is not registered (REGISTER in docs/protocol.md):
 *
 * - -EXDEV: not on the root's filesystem. -EACCES: the descriptor proves no read
 *   access. -ENOSPC: max_nodes is reached. -EOPNOTSUPP: the object has no file
 *   handle. Others of fstat(2) and name_to_handle_at(2), as -EIO and -ESTALE.
 * - -EEXIST: the nodeid and generation name another object, or the object is the
 *   root. -EINVAL: nodeid is 0 or 1, tv_nsec is no part of a second, or the
 *   session is TREE.
 * - -EBADF: `fd` is not open. -EMFILE: the daemon has no free descriptor; it may
 *   be tried again. -ETOOMANYREFS: for a second this user has had more
 *   descriptors on their way in sockets than RLIMIT_NOFILE allows.
 * - or that the connection is lost.
 */
int hostwatch_register(struct hostwatch *h, int fd, uint64_t nodeid,
		       uint64_t generation, uint64_t interest,
		       const struct timespec *since);

/*
 * The same for `count` objects: entries[i] is the object of fds[i], and
 * statuses[i] becomes 0 or a negative errno as above. The three arrays have
 * `count` elements and are not needed after the call; the `reserved` of an entry
 * is 0. Any count will do, 0 too: it is sent as messages of HW_REGISTER_MAX
 * objects, up to four of them ahead of their answers.
 *
 * Returns how many objects were registered (status 0; at most INT_MAX is
 * counted), or a negative errno if a whole message failed or the connection was
 * lost: -EINVAL (an entry's `reserved` is not 0; or the session is TREE),
 * -EMFILE, -EBADF and -ETOOMANYREFS as above. No further message is sent then;
 * statuses[] of what was not answered holds that errno, and the statuses of the
 * messages that were answered hold: what has 0 is registered.
 */
int hostwatch_register_many(struct hostwatch *h,
			    const struct hw_register_entry *entries,
			    const int *fds, size_t count, int32_t *statuses);

/*
 * The same without waiting for answers; where the socket is full it waits for
 * room. An object that could not be registered becomes a
 * HOSTWATCH_REGISTER_FAILED event with the errno that hostwatch_register() would
 * return. Meant for files, whose events are also reported through their
 * directory. What is unanswered when the connection is lost is not reported one
 * by one.
 *
 * Returns 0 once the messages are sent, or a negative errno: -EINVAL (the
 * session is TREE), -ENOMEM, -EBADF (one of fds[] is not open), -ETOOMANYREFS,
 * or that the connection is lost. Then the messages before the one that failed,
 * of HW_REGISTER_MAX objects each from the first on, are sent already: their
 * objects may be registered. Nothing says how many; to send all of them once
 * more does no harm, and hostwatch_forget() takes them back.
 */
int hostwatch_register_send(struct hostwatch *h,
			    const struct hw_register_entry *entries,
			    const int *fds, size_t count);

/*
 * Ends the registration of `count` nodes (NODES only), any number of them; what
 * is not registered is ignored, and so is the root. Does not wait for the
 * daemon, which does not answer; where the socket is full it waits for room. In
 * force for every event after the next reply to any request.
 *
 * Returns 0 once the messages are sent, -EINVAL (the session is TREE), or that
 * the connection is lost: then some may be forgotten, or none, and with the
 * session all registrations have ended.
 */
int hostwatch_forget(struct hostwatch *h, const struct hw_node *nodes,
		     size_t count);

/*
 * Sets the mask in which the server is interested at a node, for a directory
 * that of its entries too (NODES only), and waits for the answer. `mask` is an
 * event mask; 0 is no interest, not the session's. The root has one, too.
 *
 * Returns 0, -ENOENT (not registered), -EINVAL (the session is TREE), or that
 * the connection is lost.
 */
int hostwatch_interest(struct hostwatch *h, uint64_t nodeid,
		       uint64_t generation, uint64_t mask);

/*
 * The same for `count` nodes, any number of them: statuses[i] becomes 0 or
 * -ENOENT for entries[i].
 *
 * Returns how many masks were set (status 0; at most INT_MAX is counted), or
 * -EINVAL (the session is TREE), or that the connection is lost. statuses[] of
 * what was not answered then holds that errno, as hostwatch_register_many() has
 * it.
 */
int hostwatch_interest_many(struct hostwatch *h,
			    const struct hw_interest_entry *entries,
			    size_t count, int32_t *statuses);

/*
 * A barrier: when it returns 0, every event of every change that was complete
 * when it was called has been handed out by hostwatch_next() or is in the
 * handle, so that hostwatch_next() with timeout 0 hands them out one after the
 * other before it returns 0. While the daemon resyncs after a loss it waits for
 * the end of that, and so do the requests behind it.
 *
 * Returns 0, or that the connection is lost; it has no error of its own.
 */
int hostwatch_sync(struct hostwatch *h);

/*
 * The daemon's state as a JSON object (STATUS in docs/protocol.md). *json is
 * NUL-terminated UTF-8 and the caller's to free(); NULL on failure.
 *
 * Returns 0, -ENOMEM (no memory for the text; the connection stands), or that
 * the connection is lost.
 */
int hostwatch_status(struct hostwatch *h, char **json);

/* What an event says; hostwatch_event.kind. */
enum hostwatch_kind {
	/* Something happened: sequence to new_path_size are set. */
	HOSTWATCH_EVENT = 1,
	/* Events were lost: reason (HW_LOST_*), sequence of the last record
	 * before. Of NODES the daemon looks at every node; TREE rescans after
	 * HOSTWATCH_RESYNCED. */
	HOSTWATCH_LOST = 2,
	/* All is known again: sequence, nodes_checked, nodes_reported. */
	HOSTWATCH_RESYNCED = 3,
	/* The session has ended: reason (HW_DETACHED_*). DISCONNECTED follows. */
	HOSTWATCH_DETACHED = 4,
	/* The connection is lost: error and text say why. */
	HOSTWATCH_DISCONNECTED = 5,
	/* hostwatch_reconnect() succeeded; what follows is the new session's. */
	HOSTWATCH_CONNECTED = 6,
	/* hostwatch_register_send() failed for `node`: error and text say why. */
	HOSTWATCH_REGISTER_FAILED = 7,
	/* With HOSTWATCH_RECONNECT. From here on something may be missing: error
	 * and text if the connection was lost, else reason (HW_LOST_* if error
	 * is 0 and LOST follows, HW_DETACHED_* if DETACHED follows). */
	HOSTWATCH_OUT_OF_STEP = 8,
	/* With HOSTWATCH_RECONNECT. All is told again. TREE rescans. */
	HOSTWATCH_IN_STEP = 9
};

/*
 * What hostwatch_next() hands out. Fields that the kind does not name are zero
 * or empty. Names and paths are bytes as the filesystem has them, not
 * NUL-terminated ("%.*s"), never NULL, and valid until the next call of
 * hostwatch_next() for the same handle or hostwatch_close(); so is text. The
 * byte behind one may be read, as libfuse's notifications do.
 */
struct hostwatch_event {
	uint32_t kind;	   /* enum hostwatch_kind */
	uint32_t flags;	   /* HW_RECHECK … */
	uint64_t sequence; /* 1, 2, 3 … per session */
	uint64_t mask;	   /* HW_CREATE … */
	struct hw_node dir;	/* where name is; nodeid 0 = not known */
	struct hw_node node;	/* the object; nodeid 0 = not registered */
	struct hw_node new_dir; /* of HW_RENAME: where new_name is */
	uint64_t origin; /* session id of the server that did it, or 0 */
	int32_t pid;	 /* with HW_WANT_PID */
	int32_t error;	 /* a negative errno */
	const char *name;     /* the entry in dir */
	const char *new_name; /* of HW_RENAME: the entry in new_dir */
	const char *path; /* with HW_WANT_PATH: of dir, relative to the share */
	const char *new_path; /* the same of new_dir */
	uint32_t name_size;	/* bytes */
	uint32_t new_name_size; /* bytes */
	uint32_t path_size;	/* bytes */
	uint32_t new_path_size; /* bytes */
	uint32_t reason;	/* HW_LOST_* or HW_DETACHED_* */
	uint32_t reserved;	/* 0 */
	uint64_t nodes_checked;	 /* of RESYNCED: how many were looked at */
	uint64_t nodes_reported; /* and how many had changed */
	const char *text; /* NUL-terminated UTF-8 */
	uint64_t reserved_for_growth[4]; /* 0 */
};

/*
 * Hands out the next event, waiting up to timeout_ms milliseconds for it; 0
 * does not wait, a negative number waits for ever.
 *
 * Returns 1 and the event in *event, or 0 when none came in time (a timeout of
 * 0 may also return 0 while another thread is just reading one), -EBUSY when
 * another thread is in hostwatch_next(), or, after HOSTWATCH_DISCONNECTED was
 * handed out and until hostwatch_reconnect(), -ENOTCONN at once. With
 * HOSTWATCH_RECONNECT, -ENOTCONN says that it has given up, and why; a call in
 * which it reconnects may take longer than its timeout, by the options'
 * timeout_ms and the time `reregister` takes.
 *
 * Whatever the daemon sends is checked before it is handed out: a malformed
 * packet or a gap in the sequence ends the connection with -EPROTO.
 */
int hostwatch_next(struct hostwatch *h, struct hostwatch_event *event,
		   int timeout_ms);

/*
 * A descriptor to poll for reading (poll, select, epoll). It is readable when
 * hostwatch_next() has something to hand out, wherever that is, in the socket
 * or in the handle; it may be readable without need, so call hostwatch_next()
 * with timeout 0 until it returns 0. It stays the same over
 * hostwatch_reconnect(), is not readable between HOSTWATCH_DISCONNECTED and
 * that, and belongs to the handle: the caller neither reads nor closes it. With
 * HOSTWATCH_RECONNECT it is readable also when hostwatch_next() has to connect
 * or to send a SYNC.
 *
 * Returns the descriptor, or a negative errno (-EMFILE, -ENFILE, -ENOMEM, or
 * -ENOSPC, epoll(7)'s max_user_watches) if it could not be made. That is tried
 * in the first call, and again in the next one if it failed.
 */
int hostwatch_fd(struct hostwatch *h);

#ifdef __cplusplus
}
#endif

#endif
