/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon must not send: each packet of a table over a socket, and then
 * every cut and a great many random changes of good packets, straight into the
 * parser, in memory that ends where the packet ends.
 */
#include "harness.h"

#include <fcntl.h>
#include <sys/socket.h>

#include "../../Sources/CHostWatch/internal.h"

/* A good EVENTS of two records (names "f1" and "f2", 104 bytes each), or the
 * reply to SYNC, with a number written at an offset. */
enum what { EVENTS, NOTICE, REPLY };

struct wrong {
	const char *text; /* a part of the library's sentence */
	enum what what;
	size_t size; /* of the packet; 0 = as it should be */
	size_t at;
	int width; /* bytes */
	uint64_t value;
};

static const struct wrong table[] = {
	{ "shorter than its header", EVENTS, 15, 0, 0, 0 },
	{ "not its length", EVENTS, 0, 0, 4, 240 },
	{ "not its length", EVENTS, 0, 0, 4, 0 },
	{ "not its length", EVENTS, 0, 0, 4, 0xffffffff },
	{ "unknown type", EVENTS, 0, 4, 2, 0x4005 },
	{ "unknown type", EVENTS, 0, 4, 2, 2 },
	{ "with flags", EVENTS, 0, 6, 2, 1 },
	{ "with a unique", EVENTS, 0, 8, 8, 1 },
	{ "an EVENTS that is cut off", EVENTS, 16, 0, 4, 16 },
	{ "without records", EVENTS, 0, 16, 4, 0 },
	{ "more than its records", EVENTS, 0, 16, 4, 1 },
	{ "a record that is cut off", EVENTS, 0, 16, 4, 3 },
	{ "a record that is cut off", EVENTS, 0, 16, 4, 0xffffffff },
	{ "reserved", EVENTS, 0, 20, 4, 1 },
	{ "a record that is cut off", EVENTS, 64, 0, 4, 64 },
	{ "wrong size", EVENTS, 0, 24, 4, 0 },
	{ "wrong size", EVENTS, 0, 24, 4, 88 },
	{ "wrong size", EVENTS, 0, 24, 4, 105 },
	{ "wrong size", EVENTS, 0, 24, 4, 216 },
	{ "wrong size", EVENTS, 0, 24, 4, 0xfffffff8 },
	{ "surplus bytes", EVENTS, 0, 24, 4, 208 },
	{ "past its end", EVENTS, 0, 24, 4, 96 },
	{ "out of sequence", EVENTS, 0, 32, 8, 2 },
	{ "out of sequence", EVENTS, 0, 136, 8, 3 }, /* a gap */
	{ "out of sequence", EVENTS, 0, 136, 8, 1 },
	{ "past its end", EVENTS, 0, 108, 2, 9 },
	{ "past its end", EVENTS, 0, 110, 2, 0xffff },
	{ "past its end", EVENTS, 0, 112, 4, 0xffffffff },
	{ "past its end", EVENTS, 0, 116, 4, 0xfffffffe }, /* sum 2^32 */
	{ "surplus bytes", EVENTS, 0, 108, 2, 0 },
	{ "a NUL", EVENTS, 0, 108, 2, 3 },
	{ "a slash", EVENTS, 0, 120, 1, '/' },
	{ "padding", EVENTS, 0, 122, 1, 'x' },
	{ "a LOST with a wrong size", NOTICE, 0, 4, 2, 0x4002 },
	{ "a LOST out of sequence", NOTICE, 32, 0, 8, 32 | 0x4002LL << 32 },
	{ "a RESYNCED with a wrong", NOTICE, 0, 4, 2, 0x4003 },
	{ "a DETACHED with a reserved", NOTICE, 24, 0, 8, 24 | 0x4004LL << 32 },
	{ "to no request", REPLY, 0, 8, 8, 12345 },
	{ "to no request", REPLY, 0, 4, 2, 0x8006 },
	{ "positive error", REPLY, 0, 16, 4, 5 },
	{ "no errno", REPLY, 0, 16, 4, 0x80000000 },
	{ "surplus bytes", REPLY, 32, 0, 4, 32 },
	{ "a reply that is cut off", REPLY, 16, 0, 4, 16 },
};

static void corrupt(unsigned char *bytes, size_t *size,
		    const struct wrong *wrong)
{
	if (wrong->size)
		*size = wrong->size;
	memcpy(bytes + wrong->at, &wrong->value, (size_t)wrong->width);
}

static void wrong_script(int fd, unsigned int connection, void *unused)
{
	const struct wrong *wrong = &table[connection];
	unsigned char bytes[512] = { 0 };
	struct packet packet;
	size_t size;

	(void)unused;
	fake_grant(fd);
	if (wrong->what == REPLY) {
		put_header(bytes, size = 24, 0x8005,
			   fake_expect(fd, &packet, 5));
	} else if (wrong->what == EVENTS) {
		size = put_events(bytes, 1, 2);
	} else { /* sequence 1 and a reserved field of 1 */
		put_header(bytes, size = 48, 0, 0);
		put32(bytes + 20, 1);
		put64(bytes + 24, 1);
		if (wrong->size == 32)
			put32(bytes + 20, 0);
	}
	corrupt(bytes, &size, wrong);
	fake_send(fd, bytes, size);
	fake_until_hang_up(fd);
}

static void check_refusal(struct hostwatch *h, const char *text)
{
	struct hostwatch_event event;

	CHECK_INT(hostwatch_next(h, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_DISCONNECTED);
	CHECK_INT(event.error, -EPROTO);
	if (!CHECK(strstr(event.text, text)))
		printf("# \"%s\", not \"%s\"\n", event.text, text);
	CHECK_INT(hostwatch_next(h, &event, 0), -ENOTCONN);
	CHECK_INT(hostwatch_sync(h), -EPROTO);
}

static void malformed(void)
{
	struct fake fake;

	fake_start(&fake, sizeof(table) / sizeof(*table), wrong_script, NULL);
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++) {
		struct hostwatch *h = open_client(&fake);

		if (table[i].what == REPLY)
			CHECK_INT(hostwatch_sync(h), -EPROTO);
		check_refusal(h, table[i].text);
		hostwatch_close(h);
	}
	fake_stop(&fake);
}

/* INIT */

enum { init_replies = 7 };

static void wrong_init_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	unsigned char reply[88] = { 0 };
	size_t size;

	(void)unused;
	size = fake_init_reply(reply, fake_expect(fd, &packet, 1));
	switch (connection) {
	case 0:
		put16(reply + 24, 2); /* major */
		break;
	case 1:
		put32(reply + 64, 131073); /* max_packet */
		break;
	case 2:
		put32(reply + 76, 1); /* reserved */
		break;
	case 3:
		put32(reply, 88);
		size = 88;
		break;
	case 4:
		put32(reply, 24);
		size = 24;
		break;
	case 5:
		fake_events(fd, 1, 1); /* before the reply */
		break;
	default:
		put64(reply + 8, get64(reply + 8) + 1);
		break;
	}
	fake_send(fd, reply, size);
	fake_until_hang_up(fd);
}

static void malformed_init(void)
{
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch *h;

	fake_start(&fake, init_replies, wrong_init_script, NULL);
	options = client_options(&fake);
	for (int i = 0; i < init_replies; i++)
		CHECK_INT(hostwatch_open(&options, &h), -EPROTO);
	fake_stop(&fake);
}

/* Statuses */

enum { status_replies = 6 };

static void wrong_statuses_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	uint32_t statuses[4] = { 0, 0, 0, 0 };
	uint64_t unique;

	(void)unused;
	fake_grant(fd);
	unique = fake_expect(fd, &packet, 2);
	fake_close_descriptors(&packet);
	statuses[0] = connection == 0 ? 1 /* positive */
		    : connection == 5 ? 0x80000000 /* no errno */ : 0;
	statuses[3] = connection == 1; /* padding */
	fake_reply(fd, 2, unique, 0, connection == 2 ? 2 : 3, statuses,
		   connection == 3   ? 12
		   : connection == 4 ? 8
				     : 16);
	fake_until_hang_up(fd);
}

static void malformed_statuses(void)
{
	const struct hw_register_entry entries[3] = { { .nodeid = 2 } };
	const int fds[3] = { 1, 1, 1 };
	int32_t statuses[3];
	struct fake fake;

	fake_start(&fake, status_replies, wrong_statuses_script, NULL);
	for (int i = 0; i < status_replies; i++) {
		struct hostwatch *h = open_client(&fake);

		CHECK_INT(hostwatch_register_many(h, entries, fds, 3, statuses),
			  -EPROTO);
		CHECK_INT(statuses[2], -EPROTO);
		hostwatch_close(h);
	}
	fake_stop(&fake);
}

/* Descriptors, and what does not fit. */

static void descriptors_script(int fd, unsigned int connection, void *unused)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct packet packet;
	unsigned char bytes[24];
	struct iovec part = { bytes, 24 };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	const int fds[2] = { fd, fd };

	(void)connection, (void)unused;
	fake_grant(fd);
	put_header(bytes, 24, 0x8005, fake_expect(fd, &packet, 5));
	memset(bytes + 16, 0, 8);
	memset(&control, 0, sizeof(control));
	control.align.cmsg_level = SOL_SOCKET;
	control.align.cmsg_type = SCM_RIGHTS;
	control.align.cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(&control.align), fds, sizeof(fds));
	CHECK_INT(sendmsg(fd, &message, 0), 24);
	fake_until_hang_up(fd);
}

static void descriptors_in_a_reply(void)
{
	struct fake fake;
	struct hostwatch *h;
	int before;

	fake_start(&fake, 1, descriptors_script, NULL);
	h = open_client(&fake);
	before = dup(0);
	close(before);
	CHECK_INT(hostwatch_sync(h), -EPROTO);
	/* None was installed; the session's own socket was closed. */
	{
		int after = dup(0);

		CHECK(after <= before);
		close(after);
	}
	check_refusal(h, "descriptors");
	hostwatch_close(h);
	fake_stop(&fake);
}

static void large_script(int fd, unsigned int connection, void *unused)
{
	unsigned char *bytes = calloc(1, 140000);
	size_t size = connection ? 140000 : 0;

	(void)unused;
	fake_grant(fd);
	if (connection)
		put_header(bytes, size, 0x4001, 0);
	else
		size = put_events(bytes, 1, 700); /* > 65536, < 131072 */
	fake_send(fd, bytes, size);
	free(bytes);
	fake_until_hang_up(fd);
}

static void too_large(void)
{
	struct fake fake;

	fake_start(&fake, 2, large_script, NULL);
	for (int i = 0; i < 2; i++) {
		struct hostwatch *h = open_client(&fake);

		check_refusal(h, i ? "the protocol's" : "max_packet");
		hostwatch_close(h);
	}
	fake_stop(&fake);
}

/* FORGET is answered with errors only, and they end the connection. */
static void forget_refused_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)connection, (void)unused;
	fake_grant(fd);
	fake_refuse(fd, 3, fake_expect(fd, &packet, 3), -EINVAL, "no FORGET");
	fake_until_hang_up(fd);
}

static void forget_refused(void)
{
	const struct hw_node node = { 5, 5 };
	struct fake fake;
	struct hostwatch *h;

	fake_start(&fake, 1, forget_refused_script, NULL);
	h = open_client(&fake);
	CHECK_INT(hostwatch_forget(h, &node, 1), 0);
	check_refusal(h, "no FORGET");
	hostwatch_close(h);
	fake_stop(&fake);
}

/* The parser alone. */

/* Parses as the library does, in a copy that ends with the packet. */
static bool parse(const unsigned char *bytes, size_t size)
{
	unsigned char *copy = malloc(size ? size : 1);
	struct hw_header header;
	struct hostwatch_event event;
	uint64_t sequence = 0;
	size_t names = 0;
	bool good;

	memcpy(copy, bytes, size);
	good = !hwc_check_header(copy, size, &header) &&
	       !hwc_check_notification(copy, size, &sequence);
	if (good && header.type == HW_EVENTS) {
		for (size_t at = sizeof(struct hw_events); at < size;) {
			at += hwc_parse_record(copy + at, &event);
			/* Touches the last byte of each name. */
			for (uint32_t i = 0; i < event.new_path_size; i++)
				names += (size_t)event.new_path[i];
			for (uint32_t i = 0; i < event.name_size; i++)
				names += (size_t)event.name[i];
		}
		CHECK_INT(event.sequence, sequence);
	} else if (good) {
		hwc_parse_notice(copy, &event);
	}
	free(copy);
	return good && names + 1;
}

static uint64_t random_state = 88172645463325252;

static uint64_t next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static void cut_and_changed(void)
{
	static unsigned char good[4096];
	static unsigned char changed[4096];
	size_t size = 24;
	size_t accepted = 0;

	size += put_record(good + size, 1, HW_RENAME, "a", "longer", "path/to",
			   "another/path");
	size += put_record(good + size, 2, 0, NULL, NULL, NULL, NULL);
	size += put_record(good + size, 3, HW_CREATE, "12345678", NULL, "p",
			   NULL);
	put_header(good, size, 0x4001, 0);
	put32(good + 16, 3);
	CHECK(parse(good, size));
	for (size_t cut = 0; cut < size; cut++) {
		memcpy(changed, good, size);
		CHECK(!parse(changed, cut));
		put32(changed, (uint32_t)cut);
		CHECK(!parse(changed, cut));
	}
	for (int i = 0; i < 300000; i++) {
		int changes = 1 + (int)(next_random() % 3);

		memcpy(changed, good, size);
		while (changes--)
			changed[next_random() % size] =
				(unsigned char)next_random();
		accepted += parse(changed, size);
	}
	CHECK(accepted > 0); /* masks, nodes and letters may be anything */
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(malformed),
		TEST(malformed_init),
		TEST(malformed_statuses),
		TEST(descriptors_in_a_reply),
		TEST(too_large),
		TEST(forget_refused),
		TEST(cut_and_changed),
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
