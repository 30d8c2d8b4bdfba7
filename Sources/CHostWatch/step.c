/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staying in step by itself (HOSTWATCH_RECONNECT): connecting again, having the
 * nodes registered, and telling when everything is known. All in the thread
 * that is in hostwatch_next(); everything here is called with the lock.
 *
 * What is told has the stream's order. IN_STEP is a queued item: behind the
 * reply to the SYNC that follows the registrations, or behind a RESYNCED. When
 * the first of LOST, DETACHED and DISCONNECTED is to be handed out while in
 * step, OUT_OF_STEP is handed out before it.
 *
 * `since` moves with the answers to SYNCs. One counts if it was sent when all
 * nodes were registered in this session (`joined`); the daemon answers none
 * while a resync runs. What was received before the answer is handed out before
 * the next session begins, because that waits for an empty queue.
 *
 * A SYNC holds up the requests behind it until it is answered. So none is sent
 * from LOST to RESYNCED, and none without need: an idle session is silent.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

#define MILLISECOND INT64_C(1000000)
#define BACK_OFF_FIRST (50 * MILLISECOND)
#define BACK_OFF_MAX (2000 * MILLISECOND)
/* One tick of the clock that stamps inodes, at its slowest (HZ=100). */
#define TICK (10 * MILLISECOND)
#define SYNC_RETRY (10 * MILLISECOND)

/* The present, less a tick. */
static struct timespec present(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	now.tv_nsec -= TICK;
	if (now.tv_nsec < 0) {
		now.tv_nsec += 1000 * MILLISECOND;
		now.tv_sec--;
	}
	return now;
}

static bool of_nodes(const struct hostwatch *h)
{
	return hwc_steps(h) && h->options.mode == HW_MODE_NODES;
}

void hwc_step_begin(struct hostwatch *h)
{
	if (h->connection == 1) /* what is registered is looked up later */
		h->since = present();
	h->joined = h->lost = h->given_up = false;
	h->syncing = h->sync_wanted = false;
	h->refusal = 0;
	h->connect_at = 0;
}

void hwc_step_sync(struct hostwatch *h, struct hwc_waiter *waiter)
{
	waiter->moment = present();
	waiter->counts = h->joined;
}

static void want_sync(struct hostwatch *h)
{
	if (h->sync_wanted || !of_nodes(h))
		return;
	h->sync_wanted = true;
	hwc_step_timer(h);
}

void hwc_step_answered(struct hostwatch *h, struct hwc_waiter *waiter,
		       int error)
{
	if (waiter->type == HW_REGISTER)
		want_sync(h);
	if (waiter->type == HW_INIT)
		h->refusal = error;
	if (waiter->type != HW_SYNC)
		return;
	if (error) {
		if (waiter->unattended)
			hwc_fail(h, error, "hostwatchd refused a SYNC");
		return;
	}
	if (waiter->unattended)
		h->syncing = false;
	if (waiter->in_step) {
		h->joined = true;
		h->joined_at = hwc_now();
		hwc_enqueue(h, waiter->in_step);
		waiter->in_step = NULL;
	}
	if (waiter->counts)
		h->since = waiter->moment;
	hwc_step_timer(h);
}

void hwc_step_notified(struct hostwatch *h, const struct hw_header *header,
		       const unsigned char *packet)
{
	struct hw_detached detached;

	switch (header->type) {
	case HW_EVENTS:
		want_sync(h);
		break;
	case HW_LOST:
		h->lost = true;
		break;
	case HW_RESYNCED:
		h->lost = false;
		h->sync_wanted = false;
		want_sync(h);
		break;
	case HW_DETACHED:
		memcpy(&detached, packet, sizeof(detached));
		/* There is nothing to come back to. */
		if (detached.reason != HW_DETACHED_SHUTDOWN)
			h->given_up = true;
		break;
	default:
		break;
	}
}

static bool enqueue_in_step(struct hostwatch *h)
{
	struct hwc_item *item = hwc_item(HOSTWATCH_IN_STEP, 0, NULL, 0);

	if (item)
		hwc_enqueue(h, item);
	return item;
}

bool hwc_step_resynced(struct hostwatch *h)
{
	/* Before it has joined, the SYNC that follows says so. */
	return !hwc_steps(h) || !h->joined || enqueue_in_step(h);
}

bool hwc_step_before(struct hostwatch *h, const struct hwc_item *item,
		     struct hostwatch_event *event)
{
	if (!hwc_steps(h) || !h->in_step)
		return false;
	if (item->kind == HOSTWATCH_DISCONNECTED) {
		event->error = item->error;
		event->text = (const char *)item->bytes;
	} else if (item->kind == HOSTWATCH_EVENT) {
		struct hw_header header;

		memcpy(&header, item->bytes, sizeof(header));
		if (header.type != HW_LOST && header.type != HW_DETACHED)
			return false;
		hwc_parse_notice(item->bytes, event);
	} else {
		return false;
	}
	event->kind = HOSTWATCH_OUT_OF_STEP;
	event->sequence = 0;
	h->in_step = false;
	return true;
}

/* Own SYNCs. */

static struct hwc_waiter *sync_waiter(struct hostwatch *h)
{
	struct hwc_waiter *waiter = calloc(1, sizeof(*waiter));

	if (!waiter)
		return NULL;
	waiter->unattended = true;
	hwc_step_sync(h, waiter);
	return waiter;
}

static int64_t sync_interval(const struct hostwatch *h)
{
	const uint32_t wanted = h->options.sync_interval_ms;

	return (wanted ? wanted : 1000) * MILLISECOND;
}

static bool sync_is_due(const struct hostwatch *h)
{
	return h->state == HWC_UP && h->joined && h->sync_wanted &&
	       !h->syncing && !h->lost;
}

static void send_sync(struct hostwatch *h)
{
	struct hwc_waiter *waiter = sync_waiter(h);
	const int64_t now = hwc_now();

	/* Without memory or room it is tried again a little later. */
	if (waiter && hwc_try_send(h, HW_SYNC, waiter)) {
		h->syncing = true;
		h->sync_wanted = false;
		h->sync_at = now + sync_interval(h);
		return;
	}
	free(waiter);
	h->sync_at = now + SYNC_RETRY;
}

/* Connecting again. */

/* Whether a refusal of INIT will be the same tomorrow. */
static bool is_final(int error)
{
	switch (-error) {
	case EACCES:
	case EINVAL:
	case ENOENT:
	case ENOTDIR:
	case EOPNOTSUPP:
	case EPERM:
	case EPROTONOSUPPORT:
	case ESRCH:
	case EXDEV:
		return true;
	default: /* EUSERS, ENODEV (not mounted yet), … */
		return false;
	}
}

/* Sets when the next attempt is made: at once after a session that was in step
 * for a while, then later and later, and not when every other client does. */
static void schedule(struct hostwatch *h)
{
	const int64_t now = hwc_now();

	if (h->joined && now - h->joined_at > BACK_OFF_MAX)
		h->back_off = 0;
	h->joined = false;
	h->connect_at = now;
	if (h->back_off)
		h->connect_at += h->back_off * 3 / 4 +
				 now / 1024 % (h->back_off / 2);
	h->back_off = h->back_off ? 2 * h->back_off : BACK_OFF_FIRST;
	if (h->back_off > BACK_OFF_MAX)
		h->back_off = BACK_OFF_MAX;
}

/* Nobody registers the root, so nobody else asks whether it has changed. Whoever
 * named a share has no descriptor of it here: then it may have. */
static bool root_may_have_changed(const struct hostwatch *h)
{
	struct stat st;

	if (h->root_fd < 0 || fstat(h->root_fd, &st) < 0)
		return true;
	if (st.st_ctim.tv_nsec == 0) /* it may have whole seconds only */
		return st.st_ctim.tv_sec >= h->since.tv_sec;
	return st.st_ctim.tv_sec > h->since.tv_sec ||
	       (st.st_ctim.tv_sec == h->since.tv_sec &&
		st.st_ctim.tv_nsec > h->since.tv_nsec);
}

/* Queues a RECHECK of the root, as the daemon would make it. */
static bool recheck_root(struct hostwatch *h)
{
	const struct {
		struct hw_events events;
		struct hw_record record;
	} packet = {
		.events = { .header = { .size = sizeof(packet),
					.type = HW_EVENTS },
			    .count = 1 },
		.record = { .size = sizeof(packet.record),
			    .flags = HW_RECHECK,
			    .mask = HW_ISDIR,
			    .node = h->session.root },
	};
	struct hwc_item *item =
		hwc_item(HOSTWATCH_EVENT, 0, &packet, sizeof(packet));

	if (item)
		hwc_enqueue(h, item);
	return item;
}

/* Sends the SYNC whose answer says that the session is in step. */
static int send_joining_sync(struct hostwatch *h)
{
	struct hwc_waiter *waiter = sync_waiter(h);
	int r;

	if (waiter)
		waiter->in_step = hwc_item(HOSTWATCH_IN_STEP, 0, NULL, 0);
	if (!waiter || !waiter->in_step) {
		free(waiter);
		return hwc_error(-ENOMEM, "no memory");
	}
	waiter->counts = true;
	h->syncing = true;
	r = hwc_send(h, HW_SYNC, waiter, NULL, 0, NULL, 0);
	if (r) {
		free(waiter->in_step);
		free(waiter);
	}
	return r;
}

/* Registers the nodes in a new session. */
static int join(struct hostwatch *h)
{
	const struct timespec since = h->since;
	const uint64_t connection = h->connection;
	int r = 0;

	if (!of_nodes(h)) {
		h->joined = true;
		h->joined_at = hwc_now();
		return enqueue_in_step(h) ? 0
					  : hwc_error(-ENOMEM, "no memory");
	}
	if (h->options.reregister) {
		hwc_leave(h);
		r = h->options.reregister(h, &since, h->options.argument);
		pthread_mutex_lock(&h->lock);
	}
	if (h->state != HWC_UP || h->connection != connection)
		return 0; /* lost again: it is tried again */
	if (r < 0)
		return hwc_error(r, "the nodes could not be registered again");
	if (root_may_have_changed(h) && !recheck_root(h))
		return hwc_error(-ENOMEM, "no memory");
	return send_joining_sync(h);
}

static void reconnect(struct hostwatch *h)
{
	const int error = h->error;
	int r;

	h->connect_at = 0;
	h->refusal = 0; /* of an earlier attempt */
	r = hwc_open_session(h);
	if (r) {
		/* To other calls the connection is lost as it was. */
		if (!h->stopped)
			h->error = error;
		h->given_up = is_final(h->refusal);
		return;
	}
	r = join(h);
	if (r)
		hwc_fail(h, r, hostwatch_error_text());
}

void hwc_step_hurry(struct hostwatch *h)
{
	h->given_up = false;
	h->back_off = 0;
	h->connect_at = 0;
	hwc_step_timer(h);
	pthread_cond_signal(&h->consumer);
}

bool hwc_step_work(struct hostwatch *h, int64_t *until)
{
	int64_t due = 0;

	if (h->state == HWC_UP) {
		if (sync_is_due(h)) {
			if (hwc_now() >= h->sync_at)
				send_sync(h);
			due = sync_is_due(h) ? h->sync_at : 0;
		}
	} else if (!hwc_steps(h) || h->stopped || h->given_up ||
		   h->state == HWC_OPENING) {
		return false;
	} else {
		if (!h->connect_at)
			schedule(h);
		due = h->connect_at;
		if (hwc_now() >= due) {
			reconnect(h); /* due is past: look again */
			/* hostwatch_fd() does not become readable for it. */
			if ((h->given_up || h->stopped) && !h->queue)
				return false;
		}
	}
	if (due && due < *until)
		*until = due;
	return true;
}

void hwc_step_timer(struct hostwatch *h)
{
	struct itimerspec when = { .it_value = { 0, 0 } };
	int64_t due = 0;

	if (h->timer_fd < 0 || !hwc_steps(h))
		return;
	if (sync_is_due(h))
		due = h->sync_at;
	else if (h->state == HWC_DOWN && !h->stopped && !h->given_up)
		due = h->connect_at;
	else
		due = -1;
	if (due >= 0) {
		due = due ? due : 1; /* 0 would disarm it */
		when.it_value.tv_sec = due / 1000000000;
		when.it_value.tv_nsec = due % 1000000000;
	}
	timerfd_settime(h->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}
