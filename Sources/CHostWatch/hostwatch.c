/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A handle's life: opening, reconnecting, shutting down, closing. INIT goes the
 * way of every request, but with a deadline.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static _Thread_local char error_text[HWC_TEXT_SIZE];

int hwc_error(int error, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(error_text, sizeof(error_text), format, arguments);
	va_end(arguments);
	return error;
}

const char *hostwatch_error_text(void)
{
	return error_text;
}

/* The waiter's result, with its sentence. */
int hwc_result(const struct hwc_waiter *waiter)
{
	if (!waiter->error)
		return 0;
	return hwc_error(waiter->error, "%s",
			 *waiter->text ? waiter->text
				       : strerror(-waiter->error));
}

void hwc_leave(struct hostwatch *h)
{
	hwc_hand_over(h);
	pthread_mutex_unlock(&h->lock);
}

void hostwatch_options_init(struct hostwatch_options *options, size_t size)
{
	const struct hostwatch_options defaults = {
		.size = size,
		.root_fd = -1,
		.mode = HW_MODE_NODES,
		.events = HW_EVENTS_DEFAULT,
		.timeout_ms = 5000,
	};

	memset(options, 0, size);
	memcpy(options, &defaults,
	       size < sizeof(defaults) ? size : sizeof(defaults));
}

static bool is_stopped(struct hostwatch *h)
{
	bool stopped;

	pthread_mutex_lock(&h->lock);
	stopped = h->stopped;
	pthread_mutex_unlock(&h->lock);
	return stopped;
}

/* connect(2) with a time limit; the socket or -errno. Not locked. */
static int connect_socket(struct hostwatch *h, int64_t deadline)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = h->socket_path;
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return hwc_error(-ENAMETOOLONG, "%s: longer than a socket's "
						"path may be", path);
	strcpy(address.sun_path, path);
	/* Where the backlog is full, connect(2) would wait until it is not:
	 * hostwatch_shutdown() could not wake it. */
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return hwc_error(-errno, "socket: %s", strerror(errno));
	while (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = errno;

		if (error == EINTR)
			continue;
		if (error == EAGAIN) {
			if (is_stopped(h)) {
				error = ESHUTDOWN;
			} else if (hwc_passed(deadline)) {
				error = ETIMEDOUT;
			} else {
				poll(NULL, 0, 10);
				continue;
			}
		}
		close(fd);
		return hwc_error(-error, "connecting to hostwatchd at %s: %s",
				 path, strerror(error));
	}
	fcntl(fd, F_SETFL, 0);
	return fd;
}

/* INIT and its reply; locked, with the state HWC_OPENING. */
static int initialise(struct hostwatch *h, int64_t deadline)
{
	const struct hostwatch_options *o = &h->options;
	const size_t share_size = h->share ? strlen(h->share) : 0;
	const size_t skip = sizeof(struct hw_header);
	size_t size = (sizeof(struct hw_init) + share_size + 7) & ~(size_t)7;
	struct hw_init_reply reply;
	struct hwc_waiter waiter = { .init = &reply,
				     .wake = PTHREAD_COND_INITIALIZER };
	struct hw_init init = {
		.major = HW_PROTOCOL_MAJOR,
		.minor = HW_PROTOCOL_MINOR,
		.options = o->options,
		.events = o->events,
		.max_packet = o->max_packet,
		.queue_limit = o->queue_limit,
		.max_delay_us = o->max_delay_us,
		.echo_pid = o->echo_pid,
		.mode = (uint16_t)o->mode,
		.share_size = (uint16_t)share_size,
	};
	unsigned char *body = calloc(1, size);
	int r;

	if (!body)
		return hwc_error(-ENOMEM, "no memory");
	memcpy(body, &init, sizeof(init));
	if (share_size)
		memcpy(body + sizeof(init), h->share, share_size);
	r = hwc_send(h, HW_INIT, &waiter, body + skip, size - skip, &h->root_fd,
		     h->root_fd >= 0);
	free(body);
	if (r)
		return r;
	r = hwc_await(h, &waiter, deadline);
	if (!waiter.done) /* the waiter must not outlive this call */
		hwc_fail(h, r, "hostwatchd did not answer in time");
	if (r)
		return hwc_result(&waiter);
	h->session = (struct hostwatch_session){
		.id = reply.session,
		.events = reply.events,
		.root = { reply.root_nodeid, reply.root_generation },
		.options = reply.options,
		.max_packet = reply.max_packet,
		.queue_limit = reply.queue_limit,
		.max_nodes = reply.max_nodes,
	};
	return 0;
}

/* Has hostwatch_fd() tell of the new socket, which nobody would look at otherwise. */
static int watch_socket(struct hostwatch *h)
{
	struct epoll_event wanted = { .events = EPOLLIN };

	if (h->epoll_fd < 0 ||
	    !epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, h->socket, &wanted))
		return 0;
	return hwc_error(-errno, "watching the connection: %s",
			 strerror(errno));
}

/* Connects and initialises; locked, with the state HWC_OPENING. */
static int establish(struct hostwatch *h)
{
	const int64_t deadline = hwc_deadline(h->options.timeout_ms);
	int r;

	hwc_settle(h);
	pthread_mutex_unlock(&h->lock);
	r = connect_socket(h, deadline);
	pthread_mutex_lock(&h->lock);
	if (r >= 0) {
		h->socket = r;
		h->connection++;
		h->sequence = 0;
		hwc_step_begin(h);
		r = h->stopped ? hwc_error(-ESHUTDOWN, "shut down")
			       : initialise(h, deadline);
		if (!r)
			r = watch_socket(h);
	}
	if (r) {
		hwc_fail(h, r, hostwatch_error_text());
		hwc_settle(h);
	}
	return r;
}

int hwc_open_session(struct hostwatch *h)
{
	struct hwc_item *connected = hwc_item(HOSTWATCH_CONNECTED, 0, NULL, 0);
	struct hwc_item *disconnected =
		hwc_item(HOSTWATCH_DISCONNECTED, 0, NULL, HWC_TEXT_SIZE);
	int r;

	if (!connected || !disconnected) {
		r = hwc_error(-ENOMEM, "no memory");
	} else {
		/* Waits without the lock: another thread may be first. */
		hwc_settle(h);
		if (h->state == HWC_DOWN) {
			h->state = HWC_OPENING;
			r = establish(h);
		} else {
			r = hwc_error(h->state == HWC_UP ? -EISCONN : -EALREADY,
				      "another thread connects");
		}
	}
	if (!r) {
		h->state = HWC_UP;
		h->disconnected = disconnected;
		disconnected = NULL;
		/* The first connection is not worth an event. */
		if (h->connection > 1) {
			hwc_enqueue(h, connected);
			connected = NULL;
		}
	}
	free(connected);
	free(disconnected);
	return r;
}

int hostwatch_reconnect(struct hostwatch *h)
{
	int r = 0;

	pthread_mutex_lock(&h->lock);
	if (h->stopped)
		r = hwc_error(-ESHUTDOWN, "shut down");
	else if (h->state == HWC_UP)
		r = hwc_error(-EISCONN, "the connection stands");
	else if (h->state == HWC_OPENING)
		r = hwc_error(-EALREADY, "another thread is reconnecting");
	else if (hwc_steps(h) && h->connection)
		hwc_step_hurry(h);
	else
		r = hwc_open_session(h);
	hwc_leave(h);
	return r;
}

static int check_options(const struct hostwatch_options *o)
{
	if ((o->share && *o->share) == (o->root_fd >= 0))
		return hwc_error(-EINVAL, "exactly one of share and root_fd "
					  "must be given");
	if (o->share &&
	    strlen(o->share) > HW_PACKET_MIN - sizeof(struct hw_init))
		return hwc_error(-EINVAL, "the share's name is too long");
	if (o->mode != HW_MODE_NODES && o->mode != HW_MODE_TREE)
		return hwc_error(-EINVAL, "mode must be HW_MODE_NODES or "
					  "HW_MODE_TREE");
	if (o->flags & ~HOSTWATCH_RECONNECT)
		return hwc_error(-EINVAL, "unknown flags");
	return 0;
}

static struct hostwatch *allocate(void)
{
	struct hostwatch *h = calloc(1, sizeof(*h));
	pthread_condattr_t monotonic;

	if (!h)
		return NULL;
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->idle, NULL);
	pthread_cond_init(&h->send_turn, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&h->consumer, &monotonic);
	pthread_condattr_destroy(&monotonic);
	h->root_fd = h->kick = h->socket = -1;
	h->epoll_fd = h->ready_fd = h->timer_fd = -1;
	h->waiters_end = &h->waiters;
	h->queue_end = &h->queue;
	h->error = -ENOTCONN;
	h->read_buffer = malloc(HW_PACKET_MAX + 1);
	h->event_buffer = malloc(HW_PACKET_MAX + 1);
	if (h->read_buffer && h->event_buffer)
		return h;
	hostwatch_close(h);
	return NULL;
}

/* Copies what the options point to. */
static int keep_options(struct hostwatch *h, const struct hostwatch_options *o)
{
	const char *path = o->socket_path ? o->socket_path : HW_SOCKET_PATH;

	h->options = *o;
	h->socket_path = strdup(path);
	if (o->share && *o->share)
		h->share = strdup(o->share);
	if (!h->socket_path || (o->share && *o->share && !h->share))
		return hwc_error(-ENOMEM, "no memory");
	h->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (h->kick < 0)
		return hwc_error(-errno, "eventfd: %s", strerror(errno));
	if (o->root_fd < 0)
		return 0;
	h->root_fd = fcntl(o->root_fd, F_DUPFD_CLOEXEC, 0);
	if (h->root_fd < 0)
		return hwc_error(-errno, "root_fd: %s", strerror(errno));
	return 0;
}

int hostwatch_open(const struct hostwatch_options *options,
		   struct hostwatch **out)
{
	struct hostwatch_options o;
	struct hostwatch *h;
	int r;

	*out = NULL;
	if (options->size < sizeof(options->size))
		return hwc_error(-EINVAL, "options without their size");
	hostwatch_options_init(&o, sizeof(o));
	memcpy(&o, options,
	       options->size < sizeof(o) ? options->size : sizeof(o));
	r = check_options(&o);
	if (r)
		return r;
	h = allocate();
	if (!h)
		return hwc_error(-ENOMEM, "no memory");
	r = keep_options(h, &o);
	if (!r)
		r = hostwatch_reconnect(h);
	if (r) {
		hostwatch_close(h);
		return r;
	}
	h->joined = h->in_step = true;
	*out = h;
	return 0;
}

static void free_items(struct hwc_item *item)
{
	while (item) {
		struct hwc_item *next = item->next;

		free(item);
		item = next;
	}
}

void hwc_close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void hostwatch_close(struct hostwatch *h)
{
	if (!h)
		return;
	hostwatch_shutdown(h); /* frees what nobody waits for */
	hwc_close_fd(h->socket);
	hwc_close_fd(h->root_fd);
	hwc_close_fd(h->kick);
	hwc_close_fd(h->epoll_fd);
	hwc_close_fd(h->ready_fd);
	hwc_close_fd(h->timer_fd);
	free_items(h->current);
	free_items(h->queue);
	free(h->disconnected);
	free(h->read_buffer);
	free(h->event_buffer);
	free(h->socket_path);
	free(h->share);
	pthread_cond_destroy(&h->consumer);
	pthread_cond_destroy(&h->send_turn);
	pthread_cond_destroy(&h->idle);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

void hostwatch_shutdown(struct hostwatch *h)
{
	pthread_mutex_lock(&h->lock);
	h->stopped = true;
	hwc_fail(h, -ESHUTDOWN, "shut down");
	h->error = -ESHUTDOWN;
	strcpy(h->text, "shut down");
	pthread_cond_signal(&h->consumer); /* it may wait to reconnect */
	hwc_leave(h);
}

void hostwatch_session(struct hostwatch *h, struct hostwatch_session *out)
{
	pthread_mutex_lock(&h->lock);
	*out = h->session;
	pthread_mutex_unlock(&h->lock);
}
