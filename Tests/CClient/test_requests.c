/* SPDX-License-Identifier: Apache-2.0 */
/* What goes out for each request, and what comes of each answer. */
#include "harness.h"

#include <fcntl.h>
#include <sys/stat.h>

static void check_bytes(const struct packet *packet, const void *wanted,
			size_t size)
{
	CHECK_INT(packet->size, size);
	for (size_t i = 0; i < size && i < packet->size; i++)
		if (packet->bytes[i] != ((const unsigned char *)wanted)[i]) {
			printf("# the first wrong byte is at %zu\n", i);
			CHECK(!"the bytes are as the protocol has them");
			return;
		}
}

static bool same_file(int a, int b)
{
	struct stat x;
	struct stat y;

	return !fstat(a, &x) && !fstat(b, &y) && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

/* INIT */

static void init_by_share_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	unsigned char wanted[64] = { 0 };
	unsigned char reply[80];
	uint64_t unique = fake_expect(fd, &packet, 1);

	(void)connection, (void)unused;
	put_header(wanted, 64, 1, unique);
	put16(wanted + 16, 1);
	put32(wanted + 20, 5);
	put64(wanted + 24, 0x702);
	put32(wanted + 32, 32768);
	put32(wanted + 36, 100000);
	put32(wanted + 40, 250);
	put32(wanted + 44, 4711);
	put16(wanted + 48, 1);
	put16(wanted + 50, 3);
	memcpy(wanted + 56, "src", 3);
	check_bytes(&packet, wanted, 64);
	CHECK_INT(packet.fd_count, 0);

	fake_init_reply(reply, unique);
	put32(reply + 28, 1);
	put64(reply + 32, 0x702);
	put32(reply + 64, 32768);
	put32(reply + 68, 100000);
	fake_send(fd, reply, 80);
	fake_until_hang_up(fd);
}

static void init_by_share(void)
{
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch_session session;
	struct hostwatch *h;

	fake_start(&fake, 1, init_by_share_script, NULL);
	options = client_options(&fake);
	options.options = HW_SUPPRESS_ECHO | HW_WANT_PID;
	options.events = HW_MODIFY | HW_CREATE | HW_DELETE | HW_DELETE_SELF;
	options.max_packet = 32768;
	options.queue_limit = 100000;
	options.max_delay_us = 250;
	options.echo_pid = 4711;
	CHECK_INT(hostwatch_open(&options, &h), 0);
	hostwatch_session(h, &session);
	CHECK_INT(session.id, 77);
	CHECK_INT(session.events, 0x702);
	CHECK_INT(session.options, HW_SUPPRESS_ECHO);
	CHECK_INT(session.root.nodeid, 1);
	CHECK_INT(session.root.generation, 0);
	CHECK_INT(session.max_packet, 32768);
	CHECK_INT(session.queue_limit, 100000);
	CHECK_INT(session.max_nodes, 65536);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void init_by_root_script(int fd, unsigned int connection, void *root)
{
	struct packet packet;
	unsigned char wanted[56] = { 0 };
	unsigned char reply[80];
	uint64_t unique = fake_expect(fd, &packet, 1);

	(void)connection;
	put_header(wanted, 56, 1, unique);
	put16(wanted + 16, 1);
	put64(wanted + 24, 0x1000070e);
	put16(wanted + 48, 2);
	check_bytes(&packet, wanted, 56);
	if (CHECK_INT(packet.fd_count, 1))
		CHECK(same_file(packet.fds[0], *(int *)root));
	fake_close_descriptors(&packet);
	fake_send(fd, reply, fake_init_reply(reply, unique));
	fake_until_hang_up(fd);
}

static void init_by_root(void)
{
	int root = open("/usr", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch *h;
	int32_t status = 0;
	struct hw_node node = { 2, 0 };
	struct hw_interest_entry entry = { { 2, 0 }, 0 };

	fake_start(&fake, 1, init_by_root_script, &root);
	options = client_options(&fake);
	options.share = NULL;
	options.root_fd = root;
	options.mode = HW_MODE_TREE;
	CHECK_INT(hostwatch_open(&options, &h), 0);
	/* Nothing is sent for what TREE does not have. */
	CHECK_INT(hostwatch_register(h, root, 2, 0, 0, NULL), -EINVAL);
	CHECK_INT(hostwatch_forget(h, &node, 1), -EINVAL);
	CHECK_INT(hostwatch_interest_many(h, &entry, 1, &status), -EINVAL);
	CHECK_INT(status, -EINVAL);
	hostwatch_close(h);
	fake_stop(&fake);
	close(root);
}

static void init_refused_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)connection, (void)unused;
	fake_refuse(fd, 1, fake_expect(fd, &packet, 1), -EACCES,
		    "share \"src\" does not allow uid 1000: add it to "
		    "allow-users");
	fake_until_hang_up(fd);
}

static void init_refused(void)
{
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch *h = (void *)1;

	fake_start(&fake, 1, init_refused_script, NULL);
	options = client_options(&fake);
	CHECK_INT(hostwatch_open(&options, &h), -EACCES);
	CHECK(!h);
	CHECK_TEXT(hostwatch_error_text(), "share \"src\" does not allow uid "
					   "1000: add it to allow-users");
	fake_stop(&fake);
}

static void init_unparsable_script(int fd, unsigned int connection,
				   void *unused)
{
	char text[1000];

	(void)connection, (void)unused;
	/* Without reading, without unique, too long a text, then hang up: the
	 * client's request is unread, so the kernel says ECONNRESET first. */
	usleep(20000);
	memset(text, 'x', sizeof(text));
	memcpy(text + 510, "\xc3\xa9", 2); /* é over the end */
	fake_reply(fd, 0, 0, -EPROTO, 0, text, sizeof(text));
}

static void init_unparsable(void)
{
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch *h;

	fake_start(&fake, 1, init_unparsable_script, NULL);
	options = client_options(&fake);
	CHECK_INT(hostwatch_open(&options, &h), -EPROTO);
	CHECK_INT(strlen(hostwatch_error_text()), 510);
	fake_stop(&fake);
}

static void silent_script(int fd, unsigned int connection, void *unused)
{
	(void)connection, (void)unused;
	fake_until_hang_up(fd);
}

static void open_fails(void)
{
	struct fake fake;
	struct hostwatch_options options;
	struct hostwatch *h;
	long long start = now_ms();

	fake_start(&fake, 1, silent_script, NULL);
	options = client_options(&fake);
	options.timeout_ms = 50;
	CHECK_INT(hostwatch_open(&options, &h), -ETIMEDOUT);
	CHECK(now_ms() - start >= 50);
	fake_stop(&fake);

	CHECK_INT(hostwatch_open(&options, &h), -ENOENT); /* unlinked */
	CHECK(strstr(hostwatch_error_text(), fake.path));
	options.root_fd = 0;
	CHECK_INT(hostwatch_open(&options, &h), -EINVAL);
	options.share = NULL;
	options.mode = 3;
	CHECK_INT(hostwatch_open(&options, &h), -EINVAL);
	options.mode = HW_MODE_NODES;
	options.root_fd = 1 << 20;
	CHECK_INT(hostwatch_open(&options, &h), -EBADF);
	options.root_fd = -1;
	CHECK_INT(hostwatch_open(&options, &h), -EINVAL);
	hostwatch_close(NULL);
}

/* REGISTER */

static void register_one_script(int fd, unsigned int connection, void *file)
{
	struct packet packet;
	unsigned char wanted[64] = { 0 };
	uint64_t unique;

	(void)connection;
	fake_grant(fd);
	unique = fake_expect(fd, &packet, 2);
	put_header(wanted, 64, 2, unique);
	put32(wanted + 16, 1);
	put64(wanted + 24, 42);
	put64(wanted + 32, 7);
	put64(wanted + 40, 0x702);
	put64(wanted + 48, (uint64_t)-3);
	put32(wanted + 56, 999999999);
	check_bytes(&packet, wanted, 64);
	if (CHECK_INT(packet.fd_count, 1))
		CHECK(same_file(packet.fds[0], *(int *)file));
	fake_close_descriptors(&packet);
	fake_statuses(fd, 2, unique, 1, 9, 0);

	unique = fake_expect(fd, &packet, 2);
	CHECK_INT(get64(packet.bytes + 48), 0);
	fake_close_descriptors(&packet);
	fake_statuses(fd, 2, unique, 1, 0, -EXDEV);

	unique = fake_expect(fd, &packet, 2);
	fake_close_descriptors(&packet);
	fake_refuse(fd, 2, unique, -EINVAL, "a reserved field is not zero");
	fake_until_hang_up(fd);
}

static void register_one(void)
{
	int file = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
	struct timespec since = { -3, 999999999 };
	struct fake fake;
	struct hostwatch *h;

	fake_start(&fake, 1, register_one_script, &file);
	h = open_client(&fake);
	CHECK_INT(hostwatch_register(h, file, 42, 7, 0x702, &since), 0);
	CHECK_INT(hostwatch_register(h, file, 43, 7, 0, NULL), -EXDEV);
	/* The library's own refusal leaves the session as it is. */
	CHECK_INT(hostwatch_register(h, 1 << 20, 44, 7, 0, NULL), -EBADF);
	CHECK_INT(hostwatch_register(h, file, 45, 7, 0, NULL), -EINVAL);
	CHECK_TEXT(hostwatch_error_text(), "a reserved field is not zero");
	hostwatch_close(h);
	fake_stop(&fake);
	close(file);
}

enum { many = 1003 };

static void register_many_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	uint64_t next = 2;

	(void)connection, (void)unused;
	fake_grant(fd);
	while (next < 2 + many) {
		uint64_t unique = fake_expect(fd, &packet, 2);
		uint32_t count = get32(packet.bytes + 16);
		uint32_t wanted = next + 250 <= 2 + many ? 250 : 3;

		CHECK_INT(count, wanted);
		CHECK_INT(packet.fd_count, count);
		CHECK_INT(packet.size, 24 + 40 * count);
		for (uint32_t i = 0; i < count; i++)
			CHECK_INT(get64(packet.bytes + 24 + 40 * i), next + i);
		fake_close_descriptors(&packet);
		fake_statuses(fd, 2, unique, count, next == 252 ? 8 : 999,
			      -ENOSPC);
		next += count;
	}
	/* The second time, the third message fails as a whole, then hangs up
	 * on what has been sent ahead. */
	for (int i = 0; i < 3; i++) {
		uint64_t unique = fake_expect(fd, &packet, 2);

		fake_close_descriptors(&packet);
		if (i < 2)
			fake_statuses(fd, 2, unique, 250, 999, 0);
		else
			fake_refuse(fd, 2, unique, -EINVAL, "no");
	}
}

static void register_many(void)
{
	static struct hw_register_entry entries[many];
	static int fds[many];
	static int32_t statuses[many];
	int file = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
	struct fake fake;
	struct hostwatch *h;

	for (int i = 0; i < many; i++) {
		entries[i].nodeid = 2 + (uint64_t)i;
		fds[i] = file;
		statuses[i] = 1;
	}
	fake_start(&fake, 1, register_many_script, NULL);
	h = open_client(&fake);
	CHECK_INT(hostwatch_register_many(h, entries, fds, many, statuses),
		  many - 1);
	for (int i = 0; i < many; i++)
		CHECK_INT(statuses[i], i == 258 ? -ENOSPC : 0);
	CHECK_INT(hostwatch_register_many(h, entries, fds, 0, statuses), 0);
	CHECK(hostwatch_register_many(h, entries, fds, many, statuses) < 0);
	CHECK_INT(statuses[0], 0);
	CHECK_INT(statuses[499], 0);
	CHECK_INT(statuses[500], -EINVAL);
	CHECK_INT(statuses[749], -EINVAL);
	CHECK(statuses[750] < 0);
	CHECK(statuses[many - 1] < 0);
	hostwatch_close(h);
	fake_stop(&fake);
	close(file);
}

static void register_send_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	uint64_t uniques[3];

	(void)connection, (void)unused;
	fake_grant(fd);
	for (int i = 0; i < 3; i++) { /* none is answered before all are here */
		uniques[i] = fake_expect(fd, &packet, 2);
		CHECK_INT(packet.fd_count, i < 2 ? 250 : 1);
		fake_close_descriptors(&packet);
	}
	fake_statuses(fd, 2, uniques[0], 250, 249, -EEXIST);
	fake_refuse(fd, 2, uniques[1], 0, "");
	fake_until_hang_up(fd);
}

static void register_send(void)
{
	static struct hw_register_entry entries[501];
	static int fds[501];
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;

	for (int i = 0; i < 501; i++) {
		entries[i].nodeid = 2 + (uint64_t)i;
		entries[i].generation = 3;
		fds[i] = 1;
	}
	fake_start(&fake, 1, register_send_script, NULL);
	h = open_client(&fake);
	CHECK_INT(hostwatch_register_send(h, entries, fds, 501), 0);
	CHECK_INT(hostwatch_next(h, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_REGISTER_FAILED);
	CHECK_INT(event.node.nodeid, 251);
	CHECK_INT(event.node.generation, 3);
	CHECK_INT(event.error, -EEXIST);
	/* A reply without statuses. */
	CHECK_INT(hostwatch_next(h, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_DISCONNECTED);
	CHECK_INT(event.error, -EPROTO);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* FORGET, INTEREST, STATUS */

static void other_requests_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;
	unsigned char wanted[72] = { 0 };
	uint64_t unique;

	(void)connection, (void)unused;
	fake_grant(fd);
	unique = fake_expect(fd, &packet, 3);
	put_header(wanted, 56, 3, unique);
	put32(wanted + 16, 2);
	put64(wanted + 24, 10);
	put64(wanted + 32, 11);
	put64(wanted + 40, 12);
	put64(wanted + 48, 13);
	check_bytes(&packet, wanted, 56);

	unique = fake_expect(fd, &packet, 4);
	memset(wanted, 0, sizeof(wanted));
	put_header(wanted, 48, 4, unique);
	put32(wanted + 16, 1);
	put64(wanted + 24, 10);
	put64(wanted + 32, 11);
	put64(wanted + 40, 0x300);
	check_bytes(&packet, wanted, 48);
	fake_statuses(fd, 4, unique, 1, 0, -ENOENT);

	unique = fake_expect(fd, &packet, 6);
	memset(wanted, 0, sizeof(wanted));
	put_header(wanted, 24, 6, unique);
	check_bytes(&packet, wanted, 24);
	fake_refuse(fd, 6, unique, 0, "{\"sessions\":1}");

	unique = fake_expect(fd, &packet, 6);
	fake_refuse(fd, 6, unique, -EINVAL, "");
	fake_until_hang_up(fd);
}

static void other_requests(void)
{
	const struct hw_node nodes[2] = { { 10, 11 }, { 12, 13 } };
	struct fake fake;
	struct hostwatch *h;
	char *json;

	fake_start(&fake, 1, other_requests_script, NULL);
	h = open_client(&fake);
	CHECK_INT(hostwatch_forget(h, nodes, 2), 0);
	CHECK_INT(hostwatch_forget(h, nodes, 0), 0);
	CHECK_INT(hostwatch_interest(h, 10, 11, HW_CREATE | HW_DELETE),
		  -ENOENT);
	CHECK_INT(hostwatch_status(h, &json), 0);
	CHECK_TEXT(json, "{\"sessions\":1}");
	free(json);
	CHECK_INT(hostwatch_status(h, &json), -EINVAL);
	CHECK(!json);
	CHECK_TEXT(hostwatch_error_text(), strerror(EINVAL));
	hostwatch_close(h);
	fake_stop(&fake);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(init_by_share),   TEST(init_by_root),
		TEST(init_refused),    TEST(init_unparsable),
		TEST(open_fails),      TEST(register_one),
		TEST(register_many),   TEST(register_send),
		TEST(other_requests),
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
