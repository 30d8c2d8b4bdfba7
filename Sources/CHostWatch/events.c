/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the library hands out: records of the packet at hand, then what has been
 * queued while others read. And the descriptor that says that there is some.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

/* Fills the event from an item that is no EVENTS packet. */
static void describe(const struct hwc_item *item, struct hostwatch_event *event)
{
	if (item->kind == HOSTWATCH_EVENT) {
		hwc_parse_notice(item->bytes, event);
		return;
	}
	event->kind = item->kind;
	event->error = item->error;
	event->node = item->node;
	if (item->size)
		event->text = (const char *)item->bytes;
}

/* Hands out what there is; locked. */
static bool take(struct hostwatch *h, struct hostwatch_event *event)
{
	if (h->record == h->records_end) {
		struct hwc_item *item = h->queue;
		struct hw_header header = { .type = 0 };

		free(h->current);
		h->current = NULL;
		if (!item)
			return false;
		if (hwc_step_before(h, item, event))
			return true;
		h->current = item;
		h->queue = item->next;
		if (!h->queue)
			h->queue_end = &h->queue;
		item->next = NULL;
		if (item->kind == HOSTWATCH_EVENT)
			memcpy(&header, item->bytes, sizeof(header));
		if (header.type != HW_EVENTS) {
			describe(item, event);
			if (event->kind == HOSTWATCH_IN_STEP)
				h->in_step = true;
			return true;
		}
		h->record = item->bytes + sizeof(struct hw_events);
		h->records_end = item->bytes + item->size;
	}
	h->record += hwc_parse_record(h->record, event);
	return true;
}

/* Waits until something may have come; false if the time has passed. */
static bool wait_until(struct hostwatch *h, int64_t until)
{
	if (h->record != h->records_end || h->queue)
		return true;
	if (h->state == HWC_UP)
		return hwc_await_event(h, until);
	if (hwc_passed(until))
		return false;
	hwc_pause(h, until);
	return true;
}

int hostwatch_next(struct hostwatch *h, struct hostwatch_event *event,
		   int timeout_ms)
{
	const int64_t deadline = hwc_deadline(timeout_ms);
	int r = 0;

	memset(event, 0, sizeof(*event));
	event->name = event->new_name = event->path = event->new_path = "";
	event->text = "";
	pthread_mutex_lock(&h->lock);
	if (h->consuming) {
		pthread_mutex_unlock(&h->lock);
		return hwc_error(-EBUSY, "another thread is in "
					 "hostwatch_next()");
	}
	h->consuming = true;
	for (;;) {
		int64_t until = deadline;

		if (take(h, event))
			r = 1;
		else if (!hwc_step_work(h, &until))
			r = hwc_error(-ENOTCONN, "not connected: %s", h->text);
		else if (wait_until(h, until) || !hwc_passed(deadline))
			continue;
		break;
	}
	h->consuming = false;
	hwc_update_ready(h);
	hwc_step_timer(h);
	hwc_leave(h);
	return r;
}

/* Makes the descriptors of hostwatch_fd(); locked. */
static int make_epoll(struct hostwatch *h)
{
	struct epoll_event wanted = { .events = EPOLLIN };
	int poll_fd = epoll_create1(EPOLL_CLOEXEC);
	int ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int timer_fd = timerfd_create(CLOCK_MONOTONIC,
				      TFD_CLOEXEC | TFD_NONBLOCK);

	if (poll_fd < 0 || ready_fd < 0 || timer_fd < 0 ||
	    epoll_ctl(poll_fd, EPOLL_CTL_ADD, ready_fd, &wanted) < 0 ||
	    epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &wanted) < 0 ||
	    (h->state == HWC_UP &&
	     epoll_ctl(poll_fd, EPOLL_CTL_ADD, h->socket, &wanted) < 0)) {
		int error = errno;

		hwc_close_fd(poll_fd);
		hwc_close_fd(ready_fd);
		hwc_close_fd(timer_fd);
		return hwc_error(-error, "making a descriptor to poll: %s",
				 strerror(error));
	}
	h->epoll_fd = poll_fd;
	h->ready_fd = ready_fd;
	h->timer_fd = timer_fd;
	hwc_update_ready(h);
	hwc_step_timer(h);
	return 0;
}

int hostwatch_fd(struct hostwatch *h)
{
	int r;

	pthread_mutex_lock(&h->lock);
	r = h->epoll_fd < 0 ? make_epoll(h) : 0;
	if (!r)
		r = h->epoll_fd;
	pthread_mutex_unlock(&h->lock);
	return r;
}
