/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The requests of a session: arrays of the caller in, messages of at most
 * HW_REGISTER_MAX entries out, statuses back. Each function takes the lock,
 * and puts what went wrong into this thread's error text.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Messages of one batch that may be on their way unanswered: the daemon works
 * on one while the next is filled. */
#define WINDOW 4

struct batch {
	uint16_t type;
	const void *entries;
	size_t entry_size;
	const int *fds; /* REGISTER only */
	size_t count;
};

static size_t part_size(const struct batch *b, size_t at)
{
	const size_t left = b->count - at;

	return left < HW_REGISTER_MAX ? left : HW_REGISTER_MAX;
}

static int check_mode(struct hostwatch *h)
{
	if (h->options.mode == HW_MODE_NODES)
		return 0;
	return hwc_error(-EINVAL, "nodes are registered in HW_MODE_NODES only");
}

/* Sends the entries from `at` as one message. */
static int send_part(struct hostwatch *h, const struct batch *b, size_t at,
		     struct hwc_waiter *waiter)
{
	const uint32_t count = (uint32_t)part_size(b, at);
	const size_t entries = count * b->entry_size;
	unsigned char body[8 + HW_REGISTER_MAX *
				       sizeof(struct hw_register_entry)];

	memcpy(body, &count, sizeof(count));
	memset(body + sizeof(count), 0, 4);
	memcpy(body + 8, (const char *)b->entries + at * b->entry_size,
	       entries);
	return hwc_send(h, b->type, waiter, body, 8 + entries,
			b->fds ? b->fds + at : NULL, b->fds ? count : 0);
}

/* Sets the statuses of a message that failed as a whole. */
static void fail_part(const struct batch *b, size_t at, int32_t *statuses,
		      int error)
{
	const size_t end = at + part_size(b, at);

	for (; at < end; at++)
		statuses[at] = error;
}

static int send_window(struct hostwatch *h, const struct batch *b,
		       int32_t *statuses, struct hwc_waiter waiters[WINDOW],
		       size_t *sent, size_t answered)
{
	int r = 0;

	while (!r && *sent < b->count &&
	       *sent - answered < WINDOW * HW_REGISTER_MAX) {
		struct hwc_waiter *waiter =
			&waiters[*sent / HW_REGISTER_MAX % WINDOW];

		waiter->done = false;
		waiter->error = 0;
		waiter->count = (uint32_t)part_size(b, *sent);
		waiter->statuses = statuses + *sent;
		r = send_part(h, b, *sent, waiter);
		if (!r)
			*sent += waiter->count;
	}
	return r;
}

/* Sends all, a few messages ahead of their replies; locked. */
static int exchange(struct hostwatch *h, const struct batch *b,
		    int32_t *statuses)
{
	struct hwc_waiter waiters[WINDOW];
	size_t sent = 0;
	size_t answered = 0;
	int error = 0;

	for (int i = 0; i < WINDOW; i++) {
		waiters[i] = (struct hwc_waiter){ .error = 0 };
		pthread_cond_init(&waiters[i].wake, NULL);
	}
	do {
		struct hwc_waiter *waiter =
			&waiters[answered / HW_REGISTER_MAX % WINDOW];

		if (!error)
			error = send_window(h, b, statuses, waiters, &sent,
					    answered);
		if (answered == sent)
			break;
		if (hwc_await(h, waiter, HWC_FOREVER)) {
			error = hwc_result(waiter);
			fail_part(b, answered, statuses, error);
		}
		answered += waiter->count;
	} while (answered < b->count);
	for (; answered < b->count; answered++)
		statuses[answered] = error;
	for (int i = 0; i < WINDOW; i++)
		pthread_cond_destroy(&waiters[i].wake);
	return error;
}

static int run_batch(struct hostwatch *h, const struct batch *b,
		     int32_t *statuses)
{
	int done = 0;
	int r;

	if (!b->count)
		return 0;
	r = check_mode(h);
	if (r) {
		for (size_t i = 0; i < b->count; i++)
			statuses[i] = r;
		return r;
	}
	pthread_mutex_lock(&h->lock);
	r = exchange(h, b, statuses);
	hwc_leave(h);
	if (r)
		return r;
	for (size_t i = 0; i < b->count; i++)
		done += !statuses[i] && done < INT_MAX;
	return done;
}

/* The result of a batch of one. */
static int single(int r, int32_t status, const char *what)
{
	if (r < 0)
		return r;
	if (!status)
		return 0;
	return hwc_error(status, "%s: %s", what, strerror(-status));
}

int hostwatch_register_many(struct hostwatch *h,
			    const struct hw_register_entry *entries,
			    const int *fds, size_t count, int32_t *statuses)
{
	const struct batch b = { HW_REGISTER, entries, sizeof(*entries), fds,
				 count };

	return run_batch(h, &b, statuses);
}

int hostwatch_register(struct hostwatch *h, int fd, uint64_t nodeid,
		       uint64_t generation, uint64_t interest,
		       const struct timespec *since)
{
	const struct hw_register_entry entry = {
		.nodeid = nodeid,
		.generation = generation,
		.interest = interest,
		.since_sec = since ? since->tv_sec : 0,
		.since_nsec = since ? (uint32_t)since->tv_nsec : 0,
	};
	int32_t status = 0;
	int r = hostwatch_register_many(h, &entry, &fd, 1, &status);

	return single(r, status, "registering");
}

/* A waiter that nobody waits for; frees itself when it is finished. */
static struct hwc_waiter *detached_waiter(const struct hw_register_entry *entry,
					  uint32_t count)
{
	struct hwc_waiter *waiter = calloc(
		1, sizeof(*waiter) + count * sizeof(struct hw_node));

	if (!waiter)
		return NULL;
	waiter->unattended = true;
	waiter->count = count;
	waiter->nodes = (struct hw_node *)(waiter + 1);
	for (uint32_t i = 0; i < count; i++) {
		waiter->nodes[i].nodeid = entry[i].nodeid;
		waiter->nodes[i].generation = entry[i].generation;
	}
	return waiter;
}

int hostwatch_register_send(struct hostwatch *h,
			    const struct hw_register_entry *entries,
			    const int *fds, size_t count)
{
	const struct batch b = { HW_REGISTER, entries, sizeof(*entries), fds,
				 count };
	int r = check_mode(h);

	pthread_mutex_lock(&h->lock);
	for (size_t at = 0; !r && at < count; at += part_size(&b, at)) {
		struct hwc_waiter *waiter = detached_waiter(
			entries + at, (uint32_t)part_size(&b, at));

		r = waiter ? send_part(h, &b, at, waiter)
			   : hwc_error(-ENOMEM, "no memory");
		if (r)
			free(waiter);
	}
	hwc_leave(h);
	return r;
}

int hostwatch_forget(struct hostwatch *h, const struct hw_node *nodes,
		     size_t count)
{
	const struct batch b = { HW_FORGET, nodes, sizeof(*nodes), NULL,
				 count };
	int r = check_mode(h);

	pthread_mutex_lock(&h->lock);
	for (size_t at = 0; !r && at < count; at += part_size(&b, at))
		r = send_part(h, &b, at, NULL);
	hwc_leave(h);
	return r;
}

int hostwatch_interest_many(struct hostwatch *h,
			    const struct hw_interest_entry *entries,
			    size_t count, int32_t *statuses)
{
	const struct batch b = { HW_INTEREST, entries, sizeof(*entries), NULL,
				 count };

	return run_batch(h, &b, statuses);
}

int hostwatch_interest(struct hostwatch *h, uint64_t nodeid,
		       uint64_t generation, uint64_t mask)
{
	const struct hw_interest_entry entry = {
		.node = { nodeid, generation },
		.mask = mask,
	};
	int32_t status = 0;
	int r = hostwatch_interest_many(h, &entry, 1, &status);

	return single(r, status, "setting the interest");
}

static int request(struct hostwatch *h, uint16_t type, const void *body,
		   size_t size, char **json)
{
	struct hwc_waiter waiter = { .wake = PTHREAD_COND_INITIALIZER };
	int r;

	pthread_mutex_lock(&h->lock);
	if (type == HW_SYNC)
		hwc_step_sync(h, &waiter);
	r = hwc_send(h, type, &waiter, body, size, NULL, 0);
	if (!r) {
		hwc_await(h, &waiter, HWC_FOREVER);
		r = hwc_result(&waiter);
	}
	hwc_leave(h);
	pthread_cond_destroy(&waiter.wake);
	if (json)
		*json = waiter.json;
	return r;
}

int hostwatch_sync(struct hostwatch *h)
{
	return request(h, HW_SYNC, NULL, 0, NULL);
}

int hostwatch_status(struct hostwatch *h, char **json)
{
	const uint32_t body[2] = { 0, 0 };

	return request(h, HW_STATUS, body, sizeof(body), json);
}
