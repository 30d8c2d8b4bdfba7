/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes in, values or what is wrong with them out. No I/O, no clock, no memory.
 * A packet is checked whole when it is received; what hands its records out
 * afterwards relies on that. Every size is compared before it is used, in 64
 * bits, so that no sum can wrap.
 */
#include "internal.h"

#include <string.h>

static size_t padded(size_t size)
{
	return (size + 7) & ~(size_t)7;
}

static bool all_zero(const unsigned char *bytes, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (bytes[i])
			return false;
	return true;
}

const char *hwc_check_header(const unsigned char *packet, size_t size,
			     struct hw_header *header)
{
	if (size < sizeof(*header))
		return "a packet shorter than its header";
	memcpy(header, packet, sizeof(*header));
	if (header->size != size)
		return "a packet whose size is not its length";
	if (header->flags)
		return "a header with flags";
	return NULL;
}

static const char *check_record(const unsigned char *bytes, size_t left,
				uint64_t sequence)
{
	struct hw_record record;
	uint64_t names;

	if (left < sizeof(record))
		return "a record that is cut off";
	memcpy(&record, bytes, sizeof(record));
	if (record.size % 8 || record.size < sizeof(record) ||
	    record.size > left)
		return "a record with a wrong size";
	names = (uint64_t)record.name_size + record.new_name_size +
		record.path_size + record.new_path_size;
	if (names > record.size - sizeof(record))
		return "a record whose names go past its end";
	if (padded(sizeof(record) + names) != record.size)
		return "a record with surplus bytes";
	bytes += sizeof(record);
	if (memchr(bytes, 0, names))
		return "a name with a NUL";
	if (memchr(bytes, '/', (size_t)record.name_size + record.new_name_size))
		return "a name with a slash";
	if (!all_zero(bytes + names, record.size - sizeof(record) - names))
		return "a record with padding that is not zero";
	if (record.sequence != sequence)
		return "a record out of sequence";
	return NULL;
}

static const char *check_events(const unsigned char *packet, size_t size,
				uint64_t *sequence)
{
	struct hw_events events;
	size_t at = sizeof(events);

	if (size < sizeof(events))
		return "an EVENTS that is cut off";
	memcpy(&events, packet, sizeof(events));
	if (events.reserved)
		return "an EVENTS with a reserved field that is not zero";
	if (!events.count)
		return "an EVENTS without records";
	for (uint32_t i = 0; i < events.count; i++) {
		const char *wrong = check_record(packet + at, size - at,
						 *sequence + 1);
		uint32_t record_size;

		if (wrong)
			return wrong;
		memcpy(&record_size, packet + at, sizeof(record_size));
		at += record_size;
		++*sequence;
	}
	return at == size ? NULL : "an EVENTS with more than its records";
}

static const char *check_lost(const unsigned char *packet, size_t size,
			      uint64_t sequence)
{
	struct hw_lost lost;

	if (size != sizeof(lost))
		return "a LOST with a wrong size";
	memcpy(&lost, packet, sizeof(lost));
	if (lost.reserved)
		return "a LOST with a reserved field that is not zero";
	if (lost.sequence != sequence)
		return "a LOST out of sequence";
	return NULL;
}

static const char *check_detached(const unsigned char *packet, size_t size)
{
	struct hw_detached detached;

	if (size != sizeof(detached))
		return "a DETACHED with a wrong size";
	memcpy(&detached, packet, sizeof(detached));
	if (detached.reserved)
		return "a DETACHED with a reserved field that is not zero";
	return NULL;
}

const char *hwc_check_notification(const unsigned char *packet, size_t size,
				   uint64_t *sequence)
{
	struct hw_header header;

	memcpy(&header, packet, sizeof(header));
	if (header.unique)
		return "a notification with a unique";
	switch (header.type) {
	case HW_EVENTS:
		return check_events(packet, size, sequence);
	case HW_LOST:
		return check_lost(packet, size, *sequence);
	case HW_RESYNCED:
		return size == sizeof(struct hw_resynced)
			       ? NULL
			       : "a RESYNCED with a wrong size";
	case HW_DETACHED:
		return check_detached(packet, size);
	default:
		return "a message of unknown type";
	}
}

static const char *check_statuses(const unsigned char *packet, size_t size,
				  uint32_t count)
{
	const size_t used = sizeof(struct hw_reply) + 4 * (size_t)count;

	if (size != padded(used))
		return "a reply without its statuses";
	if (!all_zero(packet + used, size - used))
		return "a reply with padding that is not zero";
	for (size_t at = sizeof(struct hw_reply); at < used; at += 4) {
		int32_t status;

		memcpy(&status, packet + at, sizeof(status));
		if (status > 0)
			return "a reply with a positive status";
		if (status == INT32_MIN)
			return "a reply with a status that is no errno";
	}
	return NULL;
}

static const char *check_init(const unsigned char *packet, size_t size)
{
	struct hw_init_reply init;

	if (size != sizeof(init))
		return "a reply to INIT with a wrong size";
	memcpy(&init, packet, sizeof(init));
	if (init.major != HW_PROTOCOL_MAJOR)
		return "a reply to INIT of another version";
	if (init.reserved || init.reply.detail)
		return "a reply to INIT with a reserved field that is not zero";
	if (init.max_packet < HW_PACKET_MIN || init.max_packet > HW_PACKET_MAX)
		return "a reply to INIT with a max_packet out of bounds";
	return NULL;
}

const char *hwc_check_reply(const unsigned char *packet, size_t size,
			    const struct hwc_waiter *waiter)
{
	struct hw_reply reply;

	memcpy(&reply, packet, sizeof(reply));
	if (reply.header.unique != waiter->unique ||
	    reply.header.type != (waiter->type | HW_REPLY))
		return "a reply to no request";
	if (reply.error < 0)
		return NULL; /* the rest is a sentence */
	switch (waiter->type) {
	case HW_INIT:
		return check_init(packet, size);
	case HW_REGISTER:
	case HW_INTEREST:
		if (reply.detail != waiter->count)
			return "a reply with a wrong count";
		return check_statuses(packet, size, waiter->count);
	case HW_SYNC:
		return size == sizeof(reply)
			       ? NULL
			       : "a reply to SYNC with surplus bytes";
	default:
		return NULL; /* STATUS: the rest is JSON */
	}
}

size_t hwc_parse_record(const unsigned char *bytes,
			struct hostwatch_event *event)
{
	struct hw_record record;
	const char *names = (const char *)bytes + sizeof(record);

	memcpy(&record, bytes, sizeof(record));
	event->kind = HOSTWATCH_EVENT;
	event->flags = record.flags;
	event->sequence = record.sequence;
	event->mask = record.mask;
	event->dir = record.dir;
	event->node = record.node;
	event->new_dir = record.new_dir;
	event->origin = record.origin;
	event->pid = record.pid;
	event->name = names;
	event->name_size = record.name_size;
	event->new_name = event->name + record.name_size;
	event->new_name_size = record.new_name_size;
	event->path = event->new_name + record.new_name_size;
	event->path_size = record.path_size;
	event->new_path = event->path + record.path_size;
	event->new_path_size = record.new_path_size;
	return record.size;
}

void hwc_parse_notice(const unsigned char *packet,
		      struct hostwatch_event *event)
{
	struct hw_header header;
	struct hw_lost lost;
	struct hw_resynced resynced;
	struct hw_detached detached;

	memcpy(&header, packet, sizeof(header));
	switch (header.type) {
	case HW_LOST:
		memcpy(&lost, packet, sizeof(lost));
		event->kind = HOSTWATCH_LOST;
		event->reason = lost.reason;
		event->sequence = lost.sequence;
		break;
	case HW_RESYNCED:
		memcpy(&resynced, packet, sizeof(resynced));
		event->kind = HOSTWATCH_RESYNCED;
		event->sequence = resynced.sequence;
		event->nodes_checked = resynced.nodes_checked;
		event->nodes_reported = resynced.nodes_reported;
		break;
	default:
		memcpy(&detached, packet, sizeof(detached));
		event->kind = HOSTWATCH_DETACHED;
		event->reason = detached.reason;
		break;
	}
}

void hwc_copy_text(char text[HWC_TEXT_SIZE], const unsigned char *bytes,
		   size_t size)
{
	if (size > HWC_TEXT_SIZE - 1) {
		size = HWC_TEXT_SIZE - 1;
		/* Not in the middle of a UTF-8 sequence. */
		while (size && (bytes[size] & 0xc0) == 0x80)
			size--;
	}
	memcpy(text, bytes, size);
	text[size] = 0;
}
