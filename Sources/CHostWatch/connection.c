/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One socket, many threads. In come packets of the daemon, out go finished
 * waiters (replies) and queued items (everything else).
 *
 * Replies and notifications share the socket, so threads take turns at it. The
 * thread that `leading` marks waits on the socket without the lock and, with it,
 * receives for all; the others sleep on their own condition. A leader that has
 * what it wants wakes another (hwc_hand_over), so that somebody reads as long
 * as somebody waits. Only the leader receives, or the last sender on a
 * connection that is broken; so a leader never sleeps on a packet that another
 * took.
 *
 * Sending never blocks with the lock held. A daemon whose queue for us is full
 * stops reading until we read; so a sender whose socket is full takes the lead
 * itself, or, while another leads, polls until there is room or the lead is
 * free (`kick`).
 *
 * What always holds, with the lock: `waiters` is the order of the requests sent
 * and so that of the replies; hostwatch_fd() is readable if and only if the
 * socket is or there are records or items to hand out.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

int64_t hwc_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

int64_t hwc_deadline(int timeout_ms)
{
	if (timeout_ms < 0)
		return HWC_FOREVER;
	return timeout_ms ? hwc_now() + timeout_ms * INT64_C(1000000) : 0;
}

bool hwc_passed(int64_t deadline)
{
	return deadline != HWC_FOREVER && (!deadline || hwc_now() >= deadline);
}

static void set_eventfd(int fd)
{
	const uint64_t one = 1;

	/* Fails only where it is signalled already. */
	while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void clear_eventfd(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

/* Items. */

struct hwc_item *hwc_item(uint32_t kind, int error, const void *bytes,
			  size_t size)
{
	struct hwc_item *item = malloc(sizeof(*item) + size + 1);

	if (!item)
		return NULL;
	memset(item, 0, sizeof(*item));
	item->kind = kind;
	item->error = error;
	item->size = size;
	item->bytes[size] = 0;
	if (bytes)
		memcpy(item->bytes, bytes, size);
	return item;
}

void hwc_update_ready(struct hostwatch *h)
{
	const bool ready = h->record != h->records_end || h->queue;

	if (h->ready_fd < 0 || ready == h->ready)
		return;
	h->ready = ready;
	if (ready)
		set_eventfd(h->ready_fd);
	else
		clear_eventfd(h->ready_fd);
}

void hwc_enqueue(struct hostwatch *h, struct hwc_item *item)
{
	item->next = NULL;
	*h->queue_end = item;
	h->queue_end = &item->next;
	hwc_update_ready(h);
	if (h->consumer_waits)
		pthread_cond_signal(&h->consumer);
}

/* The end of a connection. */

void hwc_kick_sender(struct hostwatch *h)
{
	if (h->sender_polls)
		set_eventfd(h->kick);
}

/* Closes the socket of a connection that has ended, once nobody polls it. */
static void release_socket(struct hostwatch *h)
{
	if (h->state != HWC_DOWN || h->pollers || h->socket < 0)
		return;
	close(h->socket);
	h->socket = -1;
}

void hwc_settle(struct hostwatch *h)
{
	while (h->pollers)
		pthread_cond_wait(&h->idle, &h->lock);
	release_socket(h);
}

void hwc_finish(struct hwc_waiter *waiter, int error, const char *text)
{
	if (waiter->unattended) {
		free(waiter->in_step);
		free(waiter);
		return;
	}
	waiter->error = error;
	strcpy(waiter->text, text);
	waiter->done = true;
	pthread_cond_signal(&waiter->wake);
}

struct hwc_waiter *hwc_pop_waiter(struct hostwatch *h)
{
	struct hwc_waiter *waiter = h->waiters;

	h->waiters = waiter->next;
	if (!h->waiters)
		h->waiters_end = &h->waiters;
	return waiter;
}

void hwc_fail(struct hostwatch *h, int error, const char *text)
{
	struct hwc_item *item = h->disconnected;
	const bool was_up = h->state == HWC_UP;

	if (h->state == HWC_DOWN)
		return;
	h->state = HWC_DOWN;
	h->error = error;
	if (!*text)
		text = strerror(-error);
	hwc_copy_text(h->text, (const unsigned char *)text, strlen(text));
	if (was_up && h->epoll_fd >= 0)
		epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, h->socket, NULL);
	shutdown(h->socket, SHUT_RDWR); /* wakes who polls it */
	while (h->waiters)
		hwc_finish(hwc_pop_waiter(h), error, h->text);
	if (was_up) {
		h->disconnected = NULL;
		item->error = error;
		memcpy(item->bytes, h->text, sizeof(h->text));
		hwc_enqueue(h, item);
	}
	hwc_kick_sender(h);
	release_socket(h);
}

/* Taking turns. */

/* The socket stays open while a thread waits on it without the lock. */
static void unlock_socket(struct hostwatch *h)
{
	h->pollers++;
	pthread_mutex_unlock(&h->lock);
}

static void lock_socket(struct hostwatch *h)
{
	pthread_mutex_lock(&h->lock);
	if (!--h->pollers) {
		release_socket(h);
		pthread_cond_broadcast(&h->idle);
	}
}

/* poll(2) without the lock; the number of descriptors that are ready. */
static int poll_unlocked(struct hostwatch *h, struct pollfd *fds, nfds_t count,
			 int64_t deadline)
{
	int timeout = -1;
	int ready;

	if (deadline != HWC_FOREVER) {
		int64_t left = deadline - hwc_now();

		left = left > 0 ? (left + 999999) / 1000000 : 0;
		timeout = left < 60000 ? (int)left : 60000;
	}
	unlock_socket(h);
	ready = poll(fds, count, timeout);
	lock_socket(h);
	return ready;
}

/*
 * Waits for a packet for as long as it takes. A wake-up less than to poll: the
 * packet comes with it.
 */
static void lead_blocked(struct hostwatch *h, bool direct)
{
	ssize_t size;
	int wrong;

	h->leading = true;
	unlock_socket(h);
	size = hwc_read_packet(h->socket, h->read_buffer, 0, &wrong);
	lock_socket(h);
	h->leading = false;
	if (h->state != HWC_DOWN)
		hwc_take_packet(h, size, wrong, direct && !h->queue);
}

/*
 * Receives a packet, waiting for it until the deadline; with `also` = POLLOUT
 * for room to send, too. False if the deadline passed.
 */
static bool lead(struct hostwatch *h, short also, bool direct, int64_t deadline)
{
	struct pollfd fd = { .fd = h->socket, .events = POLLIN | also };

	if (!also && deadline == HWC_FOREVER) {
		lead_blocked(h, direct);
		return true;
	}
	if (!also && hwc_receive(h, direct))
		return true;
	if (!also && hwc_passed(deadline))
		return false;
	h->leading = true;
	if (poll_unlocked(h, &fd, 1, deadline) < 0)
		fd.revents = 0; /* EINTR: look again */
	h->leading = false;
	if (h->state != HWC_DOWN && (fd.revents & ~POLLOUT))
		hwc_receive(h, direct && !h->queue);
	return true;
}

void hwc_hand_over(struct hostwatch *h)
{
	struct hwc_waiter *waiter = h->waiters;

	if (h->leading || h->state == HWC_DOWN)
		return;
	hwc_kick_sender(h);
	if (h->consumer_waits) {
		pthread_cond_signal(&h->consumer);
		return;
	}
	while (waiter && waiter->unattended)
		waiter = waiter->next;
	if (waiter)
		pthread_cond_signal(&waiter->wake);
}

int hwc_await(struct hostwatch *h, struct hwc_waiter *waiter, int64_t deadline)
{
	while (!waiter->done) {
		if (h->leading)
			pthread_cond_wait(&waiter->wake, &h->lock);
		else if (!lead(h, 0, false, deadline))
			return -ETIMEDOUT;
	}
	return waiter->error;
}

void hwc_pause(struct hostwatch *h, int64_t deadline)
{
	h->consumer_waits = true;
	if (deadline == HWC_FOREVER) {
		pthread_cond_wait(&h->consumer, &h->lock);
	} else {
		struct timespec until = { deadline / 1000000000,
					  deadline % 1000000000 };

		pthread_cond_timedwait(&h->consumer, &h->lock, &until);
	}
	h->consumer_waits = false;
}

bool hwc_await_event(struct hostwatch *h, int64_t deadline)
{
	if (!h->leading)
		return lead(h, 0, !h->queue, deadline);
	if (hwc_passed(deadline))
		return false;
	hwc_pause(h, deadline);
	return true; /* if it timed out, the next look says so */
}

/* Sending. */

/* Waits for room in the socket, or, with room false, for a reply. */
static void await_room(struct hostwatch *h, bool room, int64_t deadline)
{
	struct pollfd fds[2] = { { .fd = h->kick, .events = POLLIN },
				 { .fd = h->socket, .events = POLLOUT } };

	if (!h->leading) {
		lead(h, room ? POLLOUT : 0, false, deadline);
		return;
	}
	h->sender_polls = true;
	poll_unlocked(h, fds, room ? 2 : 1, deadline);
	h->sender_polls = false;
	clear_eventfd(h->kick);
}

/* The daemon takes nothing any more: reads what it said before that, or lets the
 * thread that leads do it, then fails. */
static void drain(struct hostwatch *h)
{
	/* What is there is still received; then the leader finds the end, also
	 * of a connection of which only that half is closed. */
	shutdown(h->socket, SHUT_RD);
	while (h->state != HWC_DOWN)
		if (h->leading)
			await_room(h, false, HWC_FOREVER);
		else if (!hwc_receive(h, false))
			hwc_fail(h, -ECONNRESET,
				 "hostwatchd closed the connection");
}

static int send_packet(struct hostwatch *h, struct iovec parts[2],
		       const int *fds, size_t count)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(HW_REGISTER_MAX * sizeof(int))];
	} control;
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
	ssize_t sent;

	if (count) {
		struct cmsghdr *header = &control.align;

		memset(&control, 0, sizeof(control));
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(header), fds, count * sizeof(int));
		message.msg_control = &control;
		message.msg_controllen = CMSG_SPACE(count * sizeof(int));
	}
	do
		sent = sendmsg(h->socket, &message,
			       MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	return sent < 0 ? -errno : 0;
}

/* Sends one packet, waiting for room; the sender's turn is taken. */
static int send_waiting(struct hostwatch *h, struct iovec parts[2],
			const int *fds, size_t count, uint64_t connection)
{
	for (int tries = 0;; tries++) {
		int r;

		if (h->state == HWC_DOWN || h->connection != connection)
			return hwc_error(h->error, "%s", h->text);
		r = send_packet(h, parts, fds, count);
		if (!r)
			return 0;
		if (r == -EPIPE || r == -ECONNRESET)
			drain(h);
		else if (r == -EAGAIN)
			await_room(h, true, HWC_FOREVER);
		else if (r == -ETOOMANYREFS && h->waiters)
			/* This user has too many descriptors on their way: the
			 * daemon must take some of ours first. */
			await_room(h, false, HWC_FOREVER);
		else if (r == -ETOOMANYREFS && tries < 100)
			/* They are other connections' descriptors. */
			await_room(h, false, hwc_deadline(10));
		else
			return hwc_error(r, "sending to hostwatchd: %s",
					 strerror(-r));
	}
}

static void append_waiter(struct hostwatch *h, struct hwc_waiter *waiter,
			  uint16_t type)
{
	waiter->next = NULL;
	waiter->unique = h->unique;
	waiter->type = type;
	*h->waiters_end = waiter;
	h->waiters_end = &waiter->next;
}

bool hwc_try_send(struct hostwatch *h, uint16_t type, struct hwc_waiter *waiter)
{
	struct hw_header header = { .size = sizeof(header),
				    .type = type,
				    .unique = h->unique + 1 };
	struct iovec parts[2] = { { &header, sizeof(header) }, { NULL, 0 } };

	if (h->sending || send_packet(h, parts, NULL, 0))
		return false; /* if the daemon hung up, the reader finds it */
	h->unique++;
	append_waiter(h, waiter, type);
	return true;
}

int hwc_send(struct hostwatch *h, uint16_t type, struct hwc_waiter *waiter,
	     const void *body, size_t body_size, const int *fds, size_t count)
{
	struct hw_header header = { .size = (uint32_t)(sizeof(header) +
						       body_size),
				    .type = type };
	struct iovec parts[2] = { { &header, sizeof(header) },
				  { (void *)(uintptr_t)body, body_size } };
	const uint64_t connection = h->connection;
	int r;

	if (h->state != HWC_UP && type != HW_INIT)
		return hwc_error(h->error, "%s", h->text);
	while (h->sending)
		pthread_cond_wait(&h->send_turn, &h->lock);
	h->sending = true;
	header.unique = h->unique + 1;
	r = send_waiting(h, parts, fds, count, connection);
	if (!r) {
		h->unique++;
		if (waiter)
			append_waiter(h, waiter, type);
	}
	h->sending = false;
	pthread_cond_signal(&h->send_turn);
	return r;
}
