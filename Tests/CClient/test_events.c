/* SPDX-License-Identifier: Apache-2.0 */
/* What is handed out, in which order, and when the descriptor is readable. */
#include "harness.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

static bool readable(struct hostwatch *h)
{
	struct pollfd fd = { .fd = hostwatch_fd(h), .events = POLLIN };

	return poll(&fd, 1, 0) == 1;
}

static void wait_readable(struct hostwatch *h)
{
	struct pollfd fd = { .fd = hostwatch_fd(h), .events = POLLIN };

	CHECK_INT(poll(&fd, 1, 10000), 1);
}

static void check_next(struct hostwatch *h, struct hostwatch_event *event,
		       int timeout_ms, enum hostwatch_kind kind)
{
	CHECK_INT(hostwatch_next(h, event, timeout_ms), 1);
	CHECK_INT(event->kind, kind);
}

static void check_bytes(const char *is, size_t size, const char *wanted)
{
	CHECK(size == strlen(wanted) && !memcmp(is, wanted, size));
}

static void send_notice(int fd, unsigned int type, size_t size, uint64_t first,
			uint64_t second, uint64_t third)
{
	unsigned char bytes[40] = { 0 };

	put_header(bytes, size, type, 0);
	put64(bytes + 16, first);
	put64(bytes + 24, second);
	put64(bytes + 32, third);
	fake_send(fd, bytes, size);
}

static void kinds_script(int fd, unsigned int connection, void *unused)
{
	unsigned char bytes[1024];
	size_t end = 24;

	(void)connection, (void)unused;
	fake_grant(fd);
	end += put_record(bytes + end, 1, HW_RENAME | HW_ISDIR, "old", "newer",
			  "a/b", "c");
	put32(bytes + 24 + 4, HW_CORRECTED | HW_REPLACED);
	put64(bytes + 24 + 32, 11);
	put64(bytes + 24 + 56, 12);
	put64(bytes + 24 + 64, 13);
	put64(bytes + 24 + 72, 14);
	put32(bytes + 24 + 80, 4711);
	end += put_record(bytes + end, 2, 0, NULL, NULL, NULL, NULL);
	put_header(bytes, end, 0x4001, 0);
	put32(bytes + 16, 2);
	put32(bytes + 20, 0);
	fake_send(fd, bytes, end);
	send_notice(fd, 0x4002, 32, 2, 2, 0);
	fake_events(fd, 3, 1);
	send_notice(fd, 0x4003, 40, 3, 500, 7);
	send_notice(fd, 0x4004, 24, 3, 0, 0);
}

static void kinds(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;

	fake_start(&fake, 1, kinds_script, NULL);
	h = open_client(&fake);
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	CHECK_INT(event.sequence, 1);
	CHECK_INT(event.mask, HW_RENAME | HW_ISDIR);
	CHECK_INT(event.flags, HW_CORRECTED | HW_REPLACED);
	CHECK_INT(event.dir.nodeid, 1);
	CHECK_INT(event.dir.generation, 11);
	CHECK_INT(event.node.nodeid, 1001);
	CHECK_INT(event.node.generation, 5);
	CHECK_INT(event.new_dir.nodeid, 12);
	CHECK_INT(event.new_dir.generation, 13);
	CHECK_INT(event.origin, 14);
	CHECK_INT(event.pid, 4711);
	check_bytes(event.name, event.name_size, "old");
	check_bytes(event.new_name, event.new_name_size, "newer");
	check_bytes(event.path, event.path_size, "a/b");
	check_bytes(event.new_path, event.new_path_size, "c");
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	CHECK_INT(event.sequence, 2);
	CHECK_INT(event.name_size, 0);
	CHECK(event.name && event.path);
	check_next(h, &event, -1, HOSTWATCH_LOST);
	CHECK_INT(event.reason, HW_LOST_SESSION);
	CHECK_INT(event.sequence, 2);
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	check_bytes(event.name, event.name_size, "f3");
	check_next(h, &event, -1, HOSTWATCH_RESYNCED);
	CHECK_INT(event.sequence, 3);
	CHECK_INT(event.nodes_checked, 500);
	CHECK_INT(event.nodes_reported, 7);
	check_next(h, &event, -1, HOSTWATCH_DETACHED);
	CHECK_INT(event.reason, HW_DETACHED_SHUTDOWN);
	check_next(h, &event, -1, HOSTWATCH_DISCONNECTED);
	CHECK_INT(event.error, -ECONNRESET);
	CHECK_TEXT(event.text, "hostwatchd closed the connection");
	CHECK_INT(hostwatch_next(h, &event, -1), -ENOTCONN);
	CHECK_INT(hostwatch_sync(h), -ECONNRESET);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* Events come before, while and after a SYNC is under way. */
static void sync_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	uint64_t unique;

	(void)connection, (void)unused;
	fake_grant(fd);
	fake_events(fd, 1, 3);
	unique = fake_expect(fd, &packet, 5);
	CHECK_INT(packet.size, 16);
	for (uint64_t i = 4; i <= 100; i++)
		fake_events(fd, i, 1);
	fake_reply(fd, 5, unique, 0, 0, NULL, 0);
	fake_until_hang_up(fd);
}

static void sync_order(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;

	fake_start(&fake, 1, sync_script, NULL);
	h = open_client(&fake);
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	CHECK_INT(hostwatch_sync(h), 0);
	check_bytes(event.name, event.name_size, "f1"); /* still valid */
	for (uint64_t i = 2; i <= 100; i++) {
		check_next(h, &event, 0, HOSTWATCH_EVENT);
		CHECK_INT(event.sequence, i);
	}
	CHECK_INT(hostwatch_next(h, &event, 0), 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void timeouts(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	long long start;

	fake_start(&fake, 1, sync_script, NULL);
	h = open_client(&fake);
	for (int i = 1; i <= 3; i++)
		check_next(h, &event, -1, HOSTWATCH_EVENT);
	start = now_ms();
	CHECK_INT(hostwatch_next(h, &event, 0), 0);
	CHECK_INT(hostwatch_next(h, &event, 30), 0);
	CHECK(now_ms() - start >= 30);
	CHECK_INT(hostwatch_sync(h), 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void descriptor(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	int fd;

	fake_start(&fake, 1, sync_script, NULL);
	h = open_client(&fake);
	fd = hostwatch_fd(h);
	CHECK(fd >= 0);
	CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	wait_readable(h); /* by the socket */
	for (int i = 1; i <= 3; i++) {
		CHECK(readable(h)); /* by the rest of the packet */
		check_next(h, &event, 0, HOSTWATCH_EVENT);
	}
	CHECK(!readable(h));
	CHECK_INT(hostwatch_sync(h), 0);
	for (int i = 4; i <= 100; i++) {
		CHECK(readable(h)); /* by what the library holds */
		check_next(h, &event, 0, HOSTWATCH_EVENT);
	}
	CHECK(!readable(h));
	CHECK_INT(hostwatch_next(h, &event, 0), 0);
	hostwatch_shutdown(h);
	CHECK(readable(h));
	check_next(h, &event, 0, HOSTWATCH_DISCONNECTED);
	CHECK_INT(event.error, -ESHUTDOWN);
	CHECK(!readable(h));
	CHECK_INT(hostwatch_fd(h), fd);
	CHECK_INT(hostwatch_sync(h), -ESHUTDOWN);
	CHECK_INT(hostwatch_reconnect(h), -ESHUTDOWN);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* Each connection: two events, then a hang-up; the last stays. */
static void reconnect_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)unused;
	if (connection == 1) { /* a daemon that refuses */
		fake_refuse(fd, 1, fake_expect(fd, &packet, 1), -EUSERS,
			    "too many sessions");
		fake_close_descriptors(&packet);
		return;
	}
	CHECK_INT(fake_expect(fd, &packet, 1) != 0, 1);
	CHECK_INT(packet.fd_count, 1);
	fake_close_descriptors(&packet);
	{
		unsigned char reply[80];

		fake_init_reply(reply, get64(packet.bytes + 8));
		put64(reply + 40, 100 + connection);
		fake_send(fd, reply, 80);
	}
	fake_events(fd, 1, 2);
	if (connection == 2)
		fake_until_hang_up(fd);
}

static void reconnect(void)
{
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch_session session;
	struct hostwatch *h;
	struct hostwatch_event event;
	int fd;

	fake_start(&fake, 3, reconnect_script, NULL);
	options = client_options(&fake);
	options.share = NULL;
	options.root_fd = open("/usr", O_PATH | O_CLOEXEC);
	CHECK_INT(hostwatch_open(&options, &h), 0);
	close(options.root_fd); /* the library has its own */
	fd = hostwatch_fd(h);
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	CHECK_INT(hostwatch_sync(h), -ECONNRESET);
	CHECK_INT(hostwatch_reconnect(h), -EUSERS);
	CHECK_TEXT(hostwatch_error_text(), "too many sessions");
	CHECK_INT(hostwatch_reconnect(h), 0);
	CHECK_INT(hostwatch_reconnect(h), -EISCONN);
	hostwatch_session(h, &session);
	CHECK_INT(session.id, 102);
	/* What was left of the old session, then the new. */
	check_next(h, &event, 0, HOSTWATCH_EVENT);
	CHECK_INT(event.sequence, 2);
	check_next(h, &event, 0, HOSTWATCH_DISCONNECTED);
	check_next(h, &event, 0, HOSTWATCH_CONNECTED);
	for (uint64_t i = 1; i <= 2; i++) {
		wait_readable(h);
		check_next(h, &event, -1, HOSTWATCH_EVENT);
		CHECK_INT(event.sequence, i);
	}
	CHECK(!readable(h));
	CHECK_INT(hostwatch_fd(h), fd);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* In place of libc's: so many sockets cannot be watched. */
static _Atomic int unwatchable;

int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event)
{
	struct stat status;

	if (unwatchable && operation == EPOLL_CTL_ADD && !fstat(fd, &status) &&
	    S_ISSOCK(status.st_mode)) {
		unwatchable--;
		errno = ENOSPC; /* fs.epoll.max_user_watches */
		return -1;
	}
	return (int)syscall(SYS_epoll_ctl, epoll, operation, fd, event);
}

static void unwatched_script(int fd, unsigned int connection, void *unused)
{
	(void)unused;
	fake_grant(fd);
	if (connection == 1) /* it hangs up by itself */
		return fake_until_hang_up(fd);
	fake_events(fd, 1, 1);
	if (connection == 2)
		fake_until_hang_up(fd);
}

/* A descriptor that would not tell of the connection is not given out, and a
 * connection that it would not tell of is not made. */
static void unwatched(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;

	fake_start(&fake, 3, unwatched_script, NULL);
	h = open_client(&fake);
	unwatchable = 1;
	CHECK_INT(hostwatch_fd(h), -ENOSPC);
	CHECK(hostwatch_fd(h) >= 0);
	wait_readable(h);
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	check_next(h, &event, -1, HOSTWATCH_DISCONNECTED);
	unwatchable = 1;
	CHECK_INT(hostwatch_reconnect(h), -ENOSPC);
	CHECK(strstr(hostwatch_error_text(), "watching the connection"));
	CHECK(!readable(h));
	CHECK_INT(hostwatch_reconnect(h), 0);
	check_next(h, &event, 0, HOSTWATCH_CONNECTED);
	wait_readable(h);
	check_next(h, &event, -1, HOSTWATCH_EVENT);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void hang_up_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)connection, (void)unused;
	fake_grant(fd);
	fake_expect(fd, &packet, 2);
	fake_close_descriptors(&packet);
	fake_events(fd, 1, 2);
}

static void hang_up_in_request(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;

	fake_start(&fake, 1, hang_up_script, NULL);
	h = open_client(&fake);
	CHECK_INT(hostwatch_register(h, 1, 2, 0, 0, NULL), -ECONNRESET);
	CHECK_TEXT(hostwatch_error_text(), "hostwatchd closed the connection");
	check_next(h, &event, 0, HOSTWATCH_EVENT);
	check_next(h, &event, 0, HOSTWATCH_EVENT);
	check_next(h, &event, 0, HOSTWATCH_DISCONNECTED);
	CHECK_INT(hostwatch_next(h, &event, 0), -ENOTCONN);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* The daemon closes the session over the first of many requests: what it said
 * and sent before reaches the client although sending fails. */
static void accused_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)connection, (void)unused;
	fake_grant(fd);
	fake_expect(fd, &packet, 3);
	fake_events(fd, 1, 1);
	fake_refuse(fd, 3, get64(packet.bytes + 8), -EPROTO,
		    "a body that is cut off");
	usleep(10000); /* requests that stay unread */
	shutdown(fd, SHUT_RDWR);
}

static void accused(void)
{
	const struct hw_node node = { 9, 9 };
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	int r = 0;

	fake_start(&fake, 1, accused_script, NULL);
	h = open_client(&fake);
	while (!r)
		r = hostwatch_forget(h, &node, 1);
	CHECK_INT(r, -EPROTO);
	CHECK_TEXT(hostwatch_error_text(), "a body that is cut off");
	check_next(h, &event, 0, HOSTWATCH_EVENT);
	check_next(h, &event, 0, HOSTWATCH_DISCONNECTED);
	CHECK_INT(event.error, -EPROTO);
	CHECK_TEXT(event.text, "a body that is cut off");
	hostwatch_close(h);
	fake_stop(&fake);
}

/* libfuse reads the byte behind a name. The last one ends with the packet. */

static void send_named(int fd, uint64_t sequence, const char *name)
{
	unsigned char bytes[1024];
	size_t end = 24 + put_record(bytes + 24, sequence, HW_CREATE, name, NULL,
				     NULL, NULL);

	put_header(bytes, end, 0x4001, 0);
	put32(bytes + 16, 1);
	put32(bytes + 20, 0);
	fake_send(fd, bytes, end);
}

static void behind_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	uint64_t unique;

	(void)connection, (void)unused;
	fake_grant(fd);
	send_named(fd, 1, "sixteen and more");
	send_named(fd, 2, "sixteen and more");
	send_named(fd, 3, "8 letter");
	unique = fake_expect(fd, &packet, 5);
	send_named(fd, 4, "8 letter");
	fake_reply(fd, 5, unique, 0, 0, NULL, 0);
	fake_until_hang_up(fd);
}

static void behind_a_name(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;

	fake_start(&fake, 1, behind_script, NULL);
	h = open_client(&fake);
	for (int i = 1; i <= 4; i++) {
		if (i == 4) /* it is queued */
			CHECK_INT(hostwatch_sync(h), 0);
		check_next(h, &event, -1, HOSTWATCH_EVENT);
		check_bytes(event.name, event.name_size,
			    i < 3 ? "sixteen and more" : "8 letter");
		CHECK_INT(event.name[event.name_size], 0);
	}
	hostwatch_close(h);
	fake_stop(&fake);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(behind_a_name),
		TEST(kinds),	  TEST(sync_order),
		TEST(timeouts),	  TEST(descriptor),
		TEST(reconnect),  TEST(unwatched),
		TEST(accused),	  TEST(hang_up_in_request),
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
