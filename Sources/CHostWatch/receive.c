/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One packet of the daemon in; a finished waiter, queued items or the end of
 * the connection out. Everything here is called with the lock.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void fail_malformed(struct hostwatch *h, const char *wrong)
{
	char text[HWC_TEXT_SIZE] = "hostwatchd sent ";

	strncat(text, wrong, sizeof(text) - strlen(text) - 1);
	hwc_fail(h, -EPROTO, text);
}

/* Turns the reply to a hostwatch_register_send() into events. */
static bool report_failures(struct hostwatch *h,
			    const struct hwc_waiter *waiter, int error,
			    const char *text, const unsigned char *packet)
{
	for (uint32_t i = 0; i < waiter->count; i++) {
		int32_t status = error;
		struct hwc_item *item;

		if (!error)
			memcpy(&status,
			       packet + sizeof(struct hw_reply) + 4 * i,
			       sizeof(status));
		if (!status)
			continue;
		item = hwc_item(HOSTWATCH_REGISTER_FAILED, status, text,
				strlen(text) + 1);
		if (!item)
			return false;
		item->node = waiter->nodes[i];
		hwc_enqueue(h, item);
	}
	return true;
}

/* Copies what the reply holds to where the waiter wants it. */
static int take_reply(struct hwc_waiter *waiter, const unsigned char *packet,
		      size_t size)
{
	const size_t body = sizeof(struct hw_reply);

	switch (waiter->type) {
	case HW_INIT:
		memcpy(waiter->init, packet, sizeof(*waiter->init));
		return 0;
	case HW_REGISTER:
	case HW_INTEREST:
		if (waiter->statuses)
			memcpy(waiter->statuses, packet + body,
			       4 * (size_t)waiter->count);
		return 0;
	case HW_STATUS:
		waiter->json = malloc(size - body + 1);
		if (!waiter->json)
			return -ENOMEM;
		memcpy(waiter->json, packet + body, size - body);
		waiter->json[size - body] = 0;
		return 0;
	default:
		return 0;
	}
}

static void handle_reply(struct hostwatch *h, const unsigned char *packet,
			 size_t size)
{
	struct hw_reply reply;
	char text[HWC_TEXT_SIZE] = "";
	const char *wrong = NULL;
	struct hwc_waiter *waiter = h->waiters;

	if (size < sizeof(reply)) {
		fail_malformed(h, "a reply that is cut off");
		return;
	}
	memcpy(&reply, packet, sizeof(reply));
	if (reply.error < 0)
		hwc_copy_text(text, packet + sizeof(reply),
			      size - sizeof(reply));
	/* -EPROTO ends the session, whatever it answers. FORGET is answered
	 * only when the daemon and this library disagree about its bytes. */
	if (reply.error == -EPROTO ||
	    (reply.error < 0 && reply.header.type == (HW_FORGET | HW_REPLY))) {
		hwc_fail(h, -EPROTO, text);
		return;
	}
	if (reply.error > 0)
		wrong = "a reply with a positive error";
	else if (reply.error == INT32_MIN)
		wrong = "a reply with an error that is no errno";
	else if (!waiter)
		wrong = "a reply to no request";
	else
		wrong = hwc_check_reply(packet, size, waiter);
	if (wrong) {
		fail_malformed(h, wrong);
		return;
	}
	hwc_pop_waiter(h);
	if (waiter->nodes && !report_failures(h, waiter, reply.error, text,
					      packet)) {
		free(waiter);
		hwc_fail(h, -ENOMEM, "no memory for an event");
		return;
	}
	hwc_step_answered(h, waiter, reply.error);
	hwc_finish(waiter,
	       reply.error ? reply.error : take_reply(waiter, packet, size),
	       text);
	hwc_kick_sender(h); /* there may be room for descriptors again */
}

static void handle_notification(struct hostwatch *h, size_t size, bool direct)
{
	struct hw_header header;
	unsigned char *packet = h->read_buffer;
	const char *wrong =
		hwc_check_notification(packet, size, &h->sequence);
	struct hwc_item *item;

	memcpy(&header, packet, sizeof(header));
	if (!wrong && header.type == HW_EVENTS && size > h->session.max_packet)
		wrong = "an EVENTS larger than max_packet";
	if (wrong) {
		fail_malformed(h, wrong);
		return;
	}
	hwc_step_notified(h, &header, packet);
	packet[size] = 0;
	if (direct && header.type == HW_EVENTS) {
		h->read_buffer = h->event_buffer;
		h->event_buffer = packet;
		h->record = packet + sizeof(struct hw_events);
		h->records_end = packet + size;
		return;
	}
	item = hwc_item(HOSTWATCH_EVENT, 0, packet, size);
	if (item)
		hwc_enqueue(h, item);
	if (!item || (header.type == HW_RESYNCED && !hwc_step_resynced(h)))
		hwc_fail(h, -ENOMEM, "no memory for an event");
}

static void handle_packet(struct hostwatch *h, size_t size, bool direct)
{
	struct hw_header header;
	const char *wrong = hwc_check_header(h->read_buffer, size, &header);

	if (wrong)
		fail_malformed(h, wrong);
	else if (header.type & HW_REPLY)
		handle_reply(h, h->read_buffer, size);
	else if (h->state == HWC_OPENING)
		fail_malformed(h, "a notification before the reply to INIT");
	else
		handle_notification(h, size, direct);
}

/*
 * The message has no room for descriptors: the kernel drops what a daemon that
 * is none may send, and says so with MSG_CTRUNC.
 */
ssize_t hwc_read_packet(int socket, void *buffer, int flags, int *wrong)
{
	bool reset = false;
	ssize_t size;
	struct iovec part = { buffer, HW_PACKET_MAX };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

	for (;;) {
		size = recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
		if (size >= 0 || (errno != EINTR && errno != ECONNRESET))
			break;
		/* The daemon hung up without reading all we sent. What it sent
		 * before that comes with the next call. */
		if (errno == ECONNRESET && reset)
			break;
		reset = reset || errno == ECONNRESET;
	}
	*wrong = message.msg_flags & (MSG_CTRUNC | MSG_TRUNC);
	return size < 0 ? -errno : size;
}

void hwc_take_packet(struct hostwatch *h, ssize_t size, int wrong, bool direct)
{
	if (size <= 0)
		hwc_fail(h, -ECONNRESET, "hostwatchd closed the connection");
	else if (wrong & MSG_CTRUNC)
		fail_malformed(h, "descriptors");
	else if (wrong)
		fail_malformed(h, "a packet larger than the protocol's");
	else
		handle_packet(h, (size_t)size, direct);
}

bool hwc_receive(struct hostwatch *h, bool direct)
{
	int wrong;
	ssize_t size = hwc_read_packet(h->socket, h->read_buffer, MSG_DONTWAIT,
				       &wrong);

	if (size == -EAGAIN)
		return false;
	hwc_take_packet(h, size, wrong, direct);
	return true;
}
