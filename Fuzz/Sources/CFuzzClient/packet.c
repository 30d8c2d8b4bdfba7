/* SPDX-License-Identifier: Apache-2.0 */
#include "CFuzzClient.h"

#include <errno.h>
#include <string.h>

#include "../../../Sources/CHostWatch/internal.h"

/* As receive.c goes about a reply, but that the request is made to fit it. */
static const char *check_reply(const unsigned char *packet, size_t size)
{
	struct hw_reply reply;
	struct hwc_waiter waiter = { 0 };

	if (size < sizeof(reply))
		return "a reply that is cut off";
	memcpy(&reply, packet, sizeof(reply));
	waiter.type = reply.header.type & (uint16_t)~HW_REPLY;
	if (waiter.type > HW_STATUS || reply.error > 0 || reply.error == INT32_MIN)
		return "a reply to no request";
	if (reply.error == -EPROTO || (reply.error < 0 && waiter.type == HW_FORGET))
		return NULL; /* the end, with a sentence */
	if (waiter.type == 0 || waiter.type == HW_FORGET || !reply.header.unique)
		return "a reply to no request";
	waiter.unique = reply.header.unique;
	waiter.count = reply.detail;
	return hwc_check_reply(packet, size, &waiter);
}

const char *fuzz_check_packet(const unsigned char *packet, size_t size,
			      uint64_t *sequence)
{
	struct hw_header header;
	const char *wrong = hwc_check_header(packet, size, &header);

	if (wrong)
		return wrong;
	if (header.type & HW_REPLY)
		return check_reply(packet, size);
	return hwc_check_notification(packet, size, sequence);
}
