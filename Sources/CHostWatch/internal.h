/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the library's files share. packet.c checks bytes, receive.c acts on a
 * packet, connection.c lets threads take turns at the socket; on it stand
 * requests.c, events.c, step.c (staying in step by itself) and hostwatch.c
 * (opening and closing).
 * Functions that say "locked" are called with the handle's lock held and return
 * with it held.
 */
#ifndef HOSTWATCH_INTERNAL_H
#define HOSTWATCH_INTERNAL_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/types.h>

#include "hostwatch.h"

#pragma GCC visibility push(hidden)

#define HWC_TEXT_SIZE 512 /* of a sentence, with its NUL */
#define HWC_FOREVER INT64_MAX

enum hwc_state { HWC_DOWN, HWC_OPENING, HWC_UP };

/* A request that has been sent and not been answered. */
struct hwc_waiter {
	struct hwc_waiter *next;
	uint64_t unique;
	uint16_t type;
	bool done;
	bool unattended; /* nobody waits: malloc'ed, and freed when finished */
	int error;
	uint32_t count;		/* of statuses, or of nodes */
	int32_t *statuses;	/* REGISTER, INTEREST: the caller's */
	struct hw_init_reply *init; /* INIT: the caller's */
	char *json;		/* STATUS: malloc'ed */
	struct hw_node *nodes;	/* unattended REGISTER: within the waiter */
	struct timespec moment; /* SYNC: what it says to be told, if it counts */
	bool counts;		/* SYNC: sent while all nodes were registered */
	struct hwc_item *in_step; /* SYNC: to be queued when it is answered */
	pthread_cond_t wake;	/* the answer is here, or the lead is free */
	char text[HWC_TEXT_SIZE];
};

/* Something for hostwatch_next() to hand out. */
struct hwc_item {
	struct hwc_item *next;
	uint32_t kind; /* HOSTWATCH_EVENT: bytes are an EVENTS packet */
	int32_t error;
	struct hw_node node;
	size_t size;
	unsigned char bytes[]; /* a packet or a text, and a 0 behind it */
};

struct hostwatch {
	pthread_mutex_t lock;

	/* Constant after hostwatch_open(). */
	struct hostwatch_options options;
	char *socket_path;
	char *share;
	int root_fd;
	int kick; /* eventfd: wakes a sender that polls without the lead */

	/* The connection. */
	enum hwc_state state;
	bool stopped;	     /* hostwatch_shutdown() was called */
	uint64_t connection; /* counts connections */
	int socket;
	unsigned int pollers; /* threads that wait on the socket, unlocked */
	pthread_cond_t idle;  /* no pollers */
	int error;	      /* why it is down */
	char text[HWC_TEXT_SIZE];
	struct hostwatch_session session;
	uint64_t sequence; /* of the last record received */

	/* Requests. */
	uint64_t unique;
	struct hwc_waiter *waiters; /* in the order they were sent */
	struct hwc_waiter **waiters_end;
	bool sending; /* a thread has its turn at sending */
	pthread_cond_t send_turn;
	bool sender_polls; /* it waits for `kick` */

	/* Reading: the thread that leads reads the socket for all. While it
	 * waits, `read_buffer` is its own. */
	bool leading;
	/* HW_PACKET_MAX bytes each, and one for a 0 behind a packet: libfuse's
	 * notifications read a byte more than a name has. */
	unsigned char *read_buffer;
	unsigned char *event_buffer;

	/* What hostwatch_next() hands out: records, then the queue. */
	const unsigned char *record;
	const unsigned char *records_end;
	struct hwc_item *current; /* whose bytes the caller may look at */
	struct hwc_item *queue;
	struct hwc_item **queue_end;
	struct hwc_item *disconnected; /* made beforehand */
	bool consuming;
	bool consumer_waits;
	pthread_cond_t consumer;

	/* Staying in step, with HOSTWATCH_RECONNECT; see step.c. */
	bool joined;	  /* received: all nodes are registered */
	bool lost;	  /* received: LOST, not yet RESYNCED */
	bool in_step;	  /* handed out */
	bool given_up;
	bool sync_wanted; /* there was something since the last own SYNC */
	bool syncing;	  /* an own SYNC is on its way */
	int refusal;	  /* of INIT, a negative errno */
	int64_t sync_at;  /* not before; hwc_now() */
	int64_t connect_at; /* not before; 0 = to be set */
	int64_t joined_at;
	int64_t back_off;   /* nanoseconds; 0 = at once */
	struct timespec since;

	/* Made by the first hostwatch_fd(), else -1. */
	int epoll_fd;
	int timer_fd; /* when hostwatch_next() has something to do */
	int ready_fd; /* eventfd: signalled while records or queue */
	bool ready;
};

/* Sets this thread's hostwatch_error_text() and returns `error`. */
__attribute__((format(printf, 2, 3))) int hwc_error(int error,
						    const char *format, ...);

/* The waiter's error, its sentence set. */
int hwc_result(const struct hwc_waiter *waiter);
/* Ends every call: hands over and unlocks. */
void hwc_leave(struct hostwatch *h);
void hwc_close_fd(int fd); /* if it is one */

/* CLOCK_MONOTONIC, nanoseconds; the moment timeout_ms from now. */
int64_t hwc_now(void);
int64_t hwc_deadline(int timeout_ms);
bool hwc_passed(int64_t deadline);

/*
 * packet.c: each returns NULL, or what is wrong with the packet. `size` is the
 * length received.
 */
const char *hwc_check_header(const unsigned char *packet, size_t size,
			     struct hw_header *header);
const char *hwc_check_notification(const unsigned char *packet, size_t size,
				   uint64_t *sequence);
const char *hwc_check_reply(const unsigned char *packet, size_t size,
			    const struct hwc_waiter *waiter);
/* Fills the event from a record that was checked; the record's size. */
size_t hwc_parse_record(const unsigned char *record,
			struct hostwatch_event *event);
/* Fills the event from a LOST, RESYNCED or DETACHED that was checked. */
void hwc_parse_notice(const unsigned char *packet,
		      struct hostwatch_event *event);
/* Copies a sentence that has no NUL, cutting it off if it is too long. */
void hwc_copy_text(char text[HWC_TEXT_SIZE], const unsigned char *bytes,
		   size_t size);

/* receive.c */

/*
 * Receives one packet into `buffer` (HW_PACKET_MAX bytes); its size, 0 at the
 * end, or a negative errno. `wrong`: MSG_TRUNC and MSG_CTRUNC. Needs no lock.
 */
ssize_t hwc_read_packet(int socket, void *buffer, int flags, int *wrong);
/*
 * Locked: what follows from a packet in `read_buffer`. `direct`: the caller is
 * about to hand out its records, and there are none before them.
 */
void hwc_take_packet(struct hostwatch *h, ssize_t size, int wrong, bool direct);
/* Locked: both, without waiting; false if there is no packet. */
bool hwc_receive(struct hostwatch *h, bool direct);

/* connection.c, all locked. */

/* Ends the connection: waiters fail, DISCONNECTED is queued. */
void hwc_fail(struct hostwatch *h, int error, const char *text);
/* Sends a request; appends `waiter` (NULL for FORGET) to those that wait. */
int hwc_send(struct hostwatch *h, uint16_t type, struct hwc_waiter *waiter,
	     const void *body, size_t body_size, const int *fds, size_t count);
/* Waits until the waiter is done or the deadline (-ETIMEDOUT). */
int hwc_await(struct hostwatch *h, struct hwc_waiter *waiter, int64_t deadline);
/* Waits for something to hand out; true if a next look may find it. */
bool hwc_await_event(struct hostwatch *h, int64_t deadline);
/* Takes the request that the next reply answers; there is one. */
struct hwc_waiter *hwc_pop_waiter(struct hostwatch *h);
/* Wakes who waits for it, or frees it if nobody does. */
void hwc_finish(struct hwc_waiter *waiter, int error, const char *text);
/* Wakes the sender that polls without the lead. */
void hwc_kick_sender(struct hostwatch *h);
/* Lets another thread read on if this one was the last that did. */
void hwc_hand_over(struct hostwatch *h);
void hwc_enqueue(struct hostwatch *h, struct hwc_item *item);
/* Makes an item with `size` bytes; NULL if there is no memory. */
struct hwc_item *hwc_item(uint32_t kind, int error, const void *bytes,
			  size_t size);
/* Makes hostwatch_fd() readable or not, as there is something to hand out. */
void hwc_update_ready(struct hostwatch *h);
/* Waits until no thread polls the old socket, and closes it. */
void hwc_settle(struct hostwatch *h);
/* Sends a request without a body if that is possible without waiting. */
bool hwc_try_send(struct hostwatch *h, uint16_t type,
		  struct hwc_waiter *waiter);
/* Without a connection: waits for the deadline, or to be woken before. */
void hwc_pause(struct hostwatch *h, int64_t deadline);

/* hostwatch.c, locked, with the state HWC_DOWN: connects and initialises. */
int hwc_open_session(struct hostwatch *h);

/* step.c, all locked. */

static inline bool hwc_steps(const struct hostwatch *h)
{
	return h->options.flags & HOSTWATCH_RECONNECT;
}

/* A connection begins, before INIT. */
void hwc_step_begin(struct hostwatch *h);
/* Notes when a SYNC is sent, and whether its answer will count. */
void hwc_step_sync(struct hostwatch *h, struct hwc_waiter *waiter);
/* A request was answered; the waiter is still there. */
void hwc_step_answered(struct hostwatch *h, struct hwc_waiter *waiter,
		       int error);
/* A notification that was checked, before it is queued. */
void hwc_step_notified(struct hostwatch *h, const struct hw_header *header,
		       const unsigned char *packet);
/* Behind a RESYNCED; false if there is no memory. */
bool hwc_step_resynced(struct hostwatch *h);
/* Fills the event if OUT_OF_STEP goes before the item. */
bool hwc_step_before(struct hostwatch *h, const struct hwc_item *item,
		     struct hostwatch_event *event);
/* Does what is due. *until becomes earlier if something is due then; false if
 * there is nothing to wait for. */
bool hwc_step_work(struct hostwatch *h, int64_t *until);
/* Lets the next attempt be made at once, and after giving up. */
void hwc_step_hurry(struct hostwatch *h);
/* Sets the timer of hostwatch_fd(). */
void hwc_step_timer(struct hostwatch *h);

#pragma GCC visibility pop

#endif
