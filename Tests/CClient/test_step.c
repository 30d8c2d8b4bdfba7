/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HOSTWATCH_RECONNECT: a daemon that goes and comes back in every way, and a
 * server that looks at IN_STEP and OUT_OF_STEP alone.
 */
#include "harness.h"

#include <poll.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

static int64_t realtime(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* A server with one node, and what its callback was called with. */
struct server {
	uint64_t nodeid;
	int calls;
	int64_t since[8]; /* nanoseconds */
	int result;	  /* of the first call */
	int timeout_ms;	  /* 0: the default */
};

static int reregister(struct hostwatch *h, const struct timespec *since,
		      void *argument)
{
	struct server *server = argument;
	const int call = server->calls++;

	server->since[call] = since->tv_sec * INT64_C(1000000000) +
			      since->tv_nsec;
	if (!call && server->result)
		return server->result;
	/* A lost connection is the library's to see. */
	hostwatch_register(h, 1, server->nodeid, 0, 0, since);
	return 0;
}

static struct hostwatch *open_server(const struct fake *fake,
				     struct server *server)
{
	struct hostwatch_options options = client_options(fake);
	struct hostwatch *h = NULL;

	options.flags = HOSTWATCH_RECONNECT;
	options.sync_interval_ms = 1;
	if (server->timeout_ms)
		options.timeout_ms = server->timeout_ms;
	options.reregister = reregister;
	options.argument = server;
	if (!CHECK_INT(hostwatch_open(&options, &h), 0))
		exit(1);
	return h;
}

static void expect_next(struct hostwatch *h, uint32_t kind)
{
	struct hostwatch_event event;

	CHECK_INT(hostwatch_next(h, &event, 20000), 1);
	CHECK_INT(event.kind, kind);
}

static void answer_sync(int fd)
{
	struct packet packet;

	fake_reply(fd, 5, fake_expect(fd, &packet, 5), 0, 0, NULL, 0);
}

/* Answers a REGISTER of one node; its `since` in nanoseconds. */
static int64_t answer_register(int fd, uint64_t nodeid)
{
	struct packet packet;
	const uint64_t unique = fake_expect(fd, &packet, 2);
	const unsigned char *entry = packet.bytes + 24;

	CHECK_INT(packet.fd_count, 1);
	CHECK_INT(get64(entry), nodeid);
	fake_close_descriptors(&packet);
	fake_statuses(fd, 2, unique, 1, 1, 0);
	return (int64_t)get64(entry + 24) * INT64_C(1000000000) +
	       get32(entry + 32);
}

static void fake_notice(int fd, unsigned int type, uint64_t first,
			uint64_t second)
{
	unsigned char bytes[40] = { 0 };
	const size_t size = type == 0x4003 ? 40 : type == 0x4002 ? 32 : 24;

	put_header(bytes, size, type, 0);
	if (type == 0x4003) {
		put64(bytes + 16, first);
	} else {
		put32(bytes + 16, (uint32_t)first);
		if (size == 32)
			put64(bytes + 24, second);
	}
	fake_send(fd, bytes, size);
}

/* The connection is lost, and everything is told. */

struct moments {
	int64_t before_sync;
	int64_t sync_came;
	int64_t asked;
};

static void lost_script(int fd, unsigned int connection, void *argument)
{
	struct moments *moments = argument;

	fake_grant(fd);
	if (connection == 0) {
		fake_events(fd, 1, 1);
		/* Because of the event, and while nobody calls for it. */
		answer_sync(fd);
		usleep(30000);
		moments->before_sync = realtime();
		fake_events(fd, 2, 1);
		answer_sync(fd);
		moments->sync_came = realtime();
		usleep(30000);
		fake_events(fd, 3, 1);
		return;
	}
	moments->asked = answer_register(fd, 4);
	fake_events(fd, 1, 1);
	answer_sync(fd);
	fake_events(fd, 2, 1);
	fake_until_hang_up(fd);
}

static void lost_connection(void)
{
	struct moments moments = { 0 };
	struct server server = { .nodeid = 4 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;

	fake_start(&fake, 2, lost_script, &moments);
	h = open_server(&fake, &server);
	for (int i = 0; i < 3; i++)
		expect_next(h, HOSTWATCH_EVENT);
	CHECK_INT(hostwatch_next(h, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_OUT_OF_STEP);
	CHECK_INT(event.error, -ECONNRESET);
	CHECK_TEXT(event.text, "hostwatchd closed the connection");
	expect_next(h, HOSTWATCH_DISCONNECTED);
	expect_next(h, HOSTWATCH_CONNECTED);
	/* Of the root, which nobody registers: the library's own. */
	CHECK_INT(hostwatch_next(h, &event, 20000), 1);
	CHECK_INT(event.kind, HOSTWATCH_EVENT);
	CHECK_INT(event.sequence, 0);
	CHECK_INT(event.flags, HW_RECHECK);
	CHECK_INT(event.mask, HW_ISDIR);
	CHECK_INT(event.node.nodeid, 1);
	CHECK_INT(event.name_size, 0);
	expect_next(h, HOSTWATCH_EVENT);
	expect_next(h, HOSTWATCH_IN_STEP);
	expect_next(h, HOSTWATCH_EVENT);
	CHECK_INT(server.calls, 1);
	CHECK_INT(moments.asked, server.since[0]);
	/* The time of the SYNC that was answered last, less a tick. */
	CHECK(server.since[0] >= moments.before_sync - 10000000);
	CHECK(server.since[0] <= moments.sync_came - 10000000);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* The same for a server that polls. */
static void lost_connection_polled(void)
{
	static const uint32_t wanted[] = {
		HOSTWATCH_EVENT,	HOSTWATCH_EVENT,
		HOSTWATCH_EVENT,	HOSTWATCH_OUT_OF_STEP,
		HOSTWATCH_DISCONNECTED, HOSTWATCH_CONNECTED,
		HOSTWATCH_EVENT,	HOSTWATCH_EVENT,
		HOSTWATCH_IN_STEP,	HOSTWATCH_EVENT,
	};
	struct moments moments = { 0 };
	struct server server = { .nodeid = 4 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;
	size_t seen = 0;
	int wakes = 0;

	fake_start(&fake, 2, lost_script, &moments);
	h = open_server(&fake, &server);
	while (seen < sizeof(wanted) / sizeof(*wanted)) {
		struct pollfd one = { .fd = hostwatch_fd(h), .events = POLLIN };

		CHECK_INT(poll(&one, 1, 20000), 1);
		wakes++;
		while (hostwatch_next(h, &event, 0) == 1)
			CHECK_INT(event.kind, wanted[seen++]);
		if (checks_failed())
			break;
	}
	CHECK(wakes < 60);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* Lost again while the nodes are registered, and while the SYNC is out. */

static void again_script(int fd, unsigned int connection, void *argument)
{
	struct packet packet;

	(void)argument;
	if (connection == 2) { /* not even a session */
		fake_expect(fd, &packet, 1);
		return;
	}
	fake_grant(fd);
	if (connection == 0)
		return;
	if (connection == 1) {
		fake_expect(fd, &packet, 2);
		fake_close_descriptors(&packet);
		return;
	}
	answer_register(fd, 4);
	if (connection == 3) {
		fake_events(fd, 1, 1);
		fake_expect(fd, &packet, 5);
		return;
	}
	/* A loss and its end before the session is in step. */
	fake_notice(fd, 0x4002, 1, 0);
	fake_notice(fd, 0x4003, 0, 0);
	answer_sync(fd);
	fake_until_hang_up(fd);
}

static void lost_again(void)
{
	struct server server = { .nodeid = 4, .result = 0 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;
	uint32_t steps[4] = { 0 };
	int count = 0;
	int connected = 0;

	fake_start(&fake, 5, again_script, NULL);
	h = open_server(&fake, &server);
	while (count < 2 && !checks_failed()) {
		CHECK_INT(hostwatch_next(h, &event, 20000), 1);
		connected += event.kind == HOSTWATCH_CONNECTED;
		if (event.kind >= HOSTWATCH_OUT_OF_STEP)
			steps[count++] = event.kind;
	}
	CHECK_INT(steps[0], HOSTWATCH_OUT_OF_STEP);
	CHECK_INT(steps[1], HOSTWATCH_IN_STEP);
	CHECK_INT(connected, 3);
	CHECK_INT(server.calls, 3);
	CHECK_INT(server.since[1], server.since[0]);
	CHECK_INT(server.since[2], server.since[0]);
	CHECK_INT(hostwatch_next(h, &event, 50), 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* A callback that fails is called again, in another session. */
static void failing_script(int fd, unsigned int connection, void *argument)
{
	(void)argument;
	fake_grant(fd);
	if (connection == 0)
		return;
	if (connection == 2) {
		answer_register(fd, 4);
		answer_sync(fd);
	}
	fake_until_hang_up(fd);
}

static void failing_callback(void)
{
	struct server server = { .nodeid = 4, .result = -ENOMEM };
	struct hostwatch_event event = { .kind = 0 };
	struct fake fake;
	struct hostwatch *h;

	fake_start(&fake, 3, failing_script, NULL);
	h = open_server(&fake, &server);
	while (event.kind != HOSTWATCH_IN_STEP && !checks_failed())
		CHECK_INT(hostwatch_next(h, &event, 20000), 1);
	CHECK_INT(server.calls, 2);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* LOST and RESYNCED are the same two states, in NODES and TREE. */

static void gap_script(int fd, unsigned int connection, void *go)
{
	fake_grant(fd);
	if (connection == 0) {
		fake_events(fd, 1, 1);
		sem_wait(go);
		fake_notice(fd, 0x4002, 2, 1);
		fake_events(fd, 2, 1);
		fake_notice(fd, 0x4003, 2, 0);
		fake_events(fd, 3, 1);
		sem_wait(go);
		return;
	}
	fake_events(fd, 1, 1);
	fake_until_hang_up(fd);
}

static void gap_in_tree(void)
{
	struct hostwatch_options options;
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h = NULL;
	sem_t go;

	sem_init(&go, 0, 0);
	fake_start(&fake, 2, gap_script, &go);
	options = client_options(&fake);
	options.mode = HW_MODE_TREE;
	options.flags = HOSTWATCH_RECONNECT;
	options.sync_interval_ms = 1;
	CHECK_INT(hostwatch_open(&options, &h), 0);
	expect_next(h, HOSTWATCH_EVENT);
	sem_post(&go);
	CHECK_INT(hostwatch_next(h, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_OUT_OF_STEP);
	CHECK_INT(event.error, 0);
	CHECK_INT(event.reason, HW_LOST_SESSION);
	expect_next(h, HOSTWATCH_LOST);
	expect_next(h, HOSTWATCH_EVENT);
	expect_next(h, HOSTWATCH_RESYNCED);
	expect_next(h, HOSTWATCH_IN_STEP);
	expect_next(h, HOSTWATCH_EVENT);
	sem_post(&go);
	expect_next(h, HOSTWATCH_OUT_OF_STEP);
	expect_next(h, HOSTWATCH_DISCONNECTED);
	expect_next(h, HOSTWATCH_CONNECTED);
	expect_next(h, HOSTWATCH_IN_STEP); /* it reads its tree */
	expect_next(h, HOSTWATCH_EVENT);
	hostwatch_close(h);
	fake_stop(&fake);
	sem_destroy(&go);
}

/* The ends of a session, for good and not. */

static void detached_script(int fd, unsigned int connection, void *argument)
{
	unsigned int *reason = argument;

	fake_grant(fd);
	if (connection == 0) {
		fake_notice(fd, 0x4004, *reason, 0);
		return;
	}
	answer_register(fd, 4);
	answer_sync(fd);
	fake_until_hang_up(fd);
}

static void detached(unsigned int reason)
{
	struct server server = { .nodeid = 4 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;

	fake_start(&fake, 2, detached_script, &reason);
	h = open_server(&fake, &server);
	CHECK_INT(hostwatch_next(h, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_OUT_OF_STEP);
	CHECK_INT(event.reason, reason);
	expect_next(h, HOSTWATCH_DETACHED);
	expect_next(h, HOSTWATCH_DISCONNECTED);
	if (reason != HW_DETACHED_SHUTDOWN) {
		CHECK_INT(hostwatch_next(h, &event, -1), -ENOTCONN);
		CHECK_INT(hostwatch_next(h, &event, 0), -ENOTCONN);
		CHECK_INT(hostwatch_reconnect(h), 0);
	}
	expect_next(h, HOSTWATCH_CONNECTED);
	expect_next(h, HOSTWATCH_EVENT);
	expect_next(h, HOSTWATCH_IN_STEP);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void daemon_shut_down(void)
{
	detached(HW_DETACHED_SHUTDOWN);
}

static void root_gone(void)
{
	detached(HW_DETACHED_UNMOUNTED);
	detached(HW_DETACHED_REMOVED);
}

/* Refusals that pass, one that does not, and a daemon that says nothing: a
 * service manager's socket before the daemon runs. */
static void refusing_script(int fd, unsigned int connection, void *unused)
{
	static const int32_t errors[] = { 0, -EUSERS, -ENODEV, 0, -EACCES };
	struct packet packet;
	uint64_t unique;

	(void)unused;
	if (connection == 0) {
		fake_grant(fd);
		return;
	}
	unique = fake_expect(fd, &packet, 1);
	if (errors[connection])
		fake_refuse(fd, 1, unique, errors[connection], "because");
	fake_until_hang_up(fd);
}

static void refused(void)
{
	struct server server = { .nodeid = 4, .timeout_ms = 1000 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;

	fake_start(&fake, 5, refusing_script, NULL);
	h = open_server(&fake, &server);
	expect_next(h, HOSTWATCH_OUT_OF_STEP);
	expect_next(h, HOSTWATCH_DISCONNECTED);
	CHECK_INT(hostwatch_register(h, 1, 9, 0, 0, NULL), -ECONNRESET);
	CHECK_INT(hostwatch_next(h, &event, 20000), -ENOTCONN);
	CHECK_TEXT(hostwatch_error_text(), "not connected: because");
	CHECK_INT(hostwatch_register(h, 1, 9, 0, 0, NULL), -ECONNRESET);
	CHECK_INT(server.calls, 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* Who polls is told of it, too: nothing would make the descriptor readable again. */
static void refused_polled(void)
{
	struct server server = { .nodeid = 4 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;
	int r = 0;

	fake_start(&fake, 5, refusing_script, NULL);
	h = open_server(&fake, &server);
	while (r >= 0 && !checks_failed()) {
		struct pollfd one = { .fd = hostwatch_fd(h), .events = POLLIN };

		CHECK_INT(poll(&one, 1, 20000), 1);
		while ((r = hostwatch_next(h, &event, 0)) == 1)
			;
	}
	CHECK_INT(r, -ENOTCONN);
	CHECK_TEXT(hostwatch_error_text(), "not connected: because");
	hostwatch_close(h);
	fake_stop(&fake);
}

/* What an earlier attempt was refused for says nothing of one that finds no daemon. */
static void once_refused_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)unused;
	if (connection == 1) {
		fake_refuse(fd, 1, fake_expect(fd, &packet, 1), -EACCES, "because");
		fake_until_hang_up(fd);
		return;
	}
	fake_grant(fd);
	if (connection == 0)
		return;
	answer_register(fd, 4);
	answer_sync(fd);
	fake_until_hang_up(fd);
}

static void comes_back(struct fake *fake, const char *aside, struct hostwatch *h)
{
	CHECK_INT(rename(aside, fake->path), 0);
	expect_next(h, HOSTWATCH_CONNECTED);
	expect_next(h, HOSTWATCH_EVENT);
	expect_next(h, HOSTWATCH_IN_STEP);
	hostwatch_close(h);
	fake_stop(fake);
}

static void refused_and_away(void)
{
	struct server server = { .nodeid = 4 };
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;
	char aside[120];

	fake_start(&fake, 3, once_refused_script, NULL);
	h = open_server(&fake, &server);
	expect_next(h, HOSTWATCH_OUT_OF_STEP);
	expect_next(h, HOSTWATCH_DISCONNECTED);
	CHECK_INT(hostwatch_next(h, &event, 20000), -ENOTCONN);
	snprintf(aside, sizeof(aside), "%s.away", fake.path);
	CHECK_INT(rename(fake.path, aside), 0);
	CHECK_INT(hostwatch_reconnect(h), 0);
	CHECK_INT(hostwatch_next(h, &event, 300), 0);
	comes_back(&fake, aside, h);
}

/* No socket for a while. */
static void away(void)
{
	struct server server = { .nodeid = 4 };
	unsigned int reason = HW_DETACHED_SHUTDOWN;
	struct hostwatch_event event;
	struct fake fake;
	struct hostwatch *h;
	char aside[120];
	long long start;

	fake_start(&fake, 2, detached_script, &reason);
	h = open_server(&fake, &server);
	snprintf(aside, sizeof(aside), "%s.away", fake.path);
	CHECK_INT(rename(fake.path, aside), 0);
	expect_next(h, HOSTWATCH_OUT_OF_STEP);
	expect_next(h, HOSTWATCH_DETACHED);
	expect_next(h, HOSTWATCH_DISCONNECTED);
	start = now_ms();
	CHECK_INT(hostwatch_next(h, &event, 200), 0);
	CHECK(now_ms() - start >= 200);
	comes_back(&fake, aside, h);
}

/* Who waits for the daemon to come back is woken. */
static void gone_script(int fd, unsigned int connection, void *unused)
{
	(void)connection, (void)unused;
	fake_grant(fd);
}

static void *wait_for_daemon(void *argument)
{
	struct hostwatch_event event;
	int r;

	while ((r = hostwatch_next(argument, &event, -1)) == 1)
		;
	return (void *)(intptr_t)r;
}

static void shutdown_wakes(void)
{
	struct server server = { .nodeid = 4 };
	struct fake fake;
	struct hostwatch *h;
	pthread_t waiter;
	void *result;

	fake_start(&fake, 1, gone_script, NULL);
	h = open_server(&fake, &server);
	fake_stop(&fake); /* and its socket is gone */
	pthread_create(&waiter, NULL, wait_for_daemon, h);
	usleep(150000); /* for it to wait; right in any case */
	hostwatch_shutdown(h);
	pthread_join(waiter, &result);
	CHECK_INT((intptr_t)result, -ENOTCONN);
	hostwatch_close(h);
}

/* And one that waits in connect(2), whose daemon accepts nobody. */
static void shutdown_wakes_connect(void)
{
	struct server server = { .nodeid = 4 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct hostwatch_options options;
	struct fake fake;
	struct hostwatch *h;
	pthread_t waiter;
	void *result;
	long long start;
	int listener, peers[3];

	fake_start(&fake, 1, gone_script, NULL);
	options = client_options(&fake);
	options.flags = HOSTWATCH_RECONNECT;
	options.timeout_ms = -1;
	options.reregister = reregister;
	options.argument = &server;
	CHECK_INT(hostwatch_open(&options, &h), 0);
	fake_stop(&fake);
	strcpy(address.sun_path, fake.path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	CHECK_INT(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_INT(listen(listener, 1), 0);
	for (int i = 0; i < 3; i++) {
		peers[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
		CHECK_INT(connect(peers[i], (struct sockaddr *)&address,
				  sizeof(address)), i < 2 ? 0 : -1);
	}
	pthread_create(&waiter, NULL, wait_for_daemon, h);
	usleep(150000); /* for it to wait; right in any case */
	start = now_ms();
	hostwatch_shutdown(h);
	pthread_join(waiter, &result);
	CHECK_INT((intptr_t)result, -ENOTCONN);
	CHECK(now_ms() - start < 5000);
	hostwatch_close(h);
	for (int i = 0; i < 3; i++)
		close(peers[i]);

	/* Who opens is told when the time is over. */
	peers[0] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	peers[1] = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	close(listener);
	unlink(fake.path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);
	CHECK_INT(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
	CHECK_INT(listen(listener, 1), 0);
	for (int i = 0; i < 2; i++)
		CHECK_INT(connect(peers[i], (struct sockaddr *)&address,
				  sizeof(address)), 0);
	options.timeout_ms = 100;
	start = now_ms();
	CHECK_INT(hostwatch_open(&options, &h), -ETIMEDOUT);
	CHECK(now_ms() - start >= 100);
	close(peers[0]);
	close(peers[1]);
	close(listener);
	unlink(fake.path);
}

/* Threads that look up and forget while the daemon comes and goes. */

enum { nodes_total = 512, threads = 4, rounds = 7, lookups = 400 };

struct table {
	pthread_mutex_t lock;
	bool held[nodes_total];	      /* the server's */
	atomic_int registered[nodes_total]; /* the daemon's */
	atomic_bool last;
	struct hostwatch *h;
	atomic_int number;
};

static void take_requests(int fd, struct packet *packet, struct table *table)
{
	const unsigned int type = get32(packet->bytes + 4);
	const uint64_t unique = get64(packet->bytes + 8);
	const uint32_t count = packet->size > 16 ? get32(packet->bytes + 16) : 0;

	for (uint32_t i = 0; i < count; i++) {
		size_t at = type == 2 ? 24 + 40 * i : 24 + 16 * i;

		if (type == 2 || type == 3)
			table->registered[get64(packet->bytes + at) - 2] =
				type == 2;
	}
	fake_close_descriptors(packet);
	if (type == 2)
		fake_statuses(fd, 2, unique, count, count, 0);
	else if (type == 5)
		fake_reply(fd, 5, unique, 0, 0, NULL, 0);
}

static void coming_and_going(int fd, unsigned int connection, void *argument)
{
	struct table *table = argument;
	struct packet packet;
	/* Sooner and later: in the callback, in the SYNC, in step. */
	unsigned int left = connection + 1 < rounds ? 5 + 800 * (connection % 4)
						   : UINT32_MAX;

	for (int i = 0; i < nodes_total; i++)
		table->registered[i] = 0;
	table->last = connection + 1 == rounds;
	fake_grant(fd);
	while (left-- && fake_receive(fd, &packet))
		take_requests(fd, &packet, table);
}

static int reregister_table(struct hostwatch *h, const struct timespec *since,
			    void *argument)
{
	struct table *table = argument;

	for (int i = 0; i < nodes_total; i++) {
		struct hw_node node = { (uint64_t)i + 2, 1 };
		bool held;

		pthread_mutex_lock(&table->lock);
		held = table->held[i];
		pthread_mutex_unlock(&table->lock);
		if (!held)
			continue;
		hostwatch_register(h, 1, node.nodeid, 1, 0, since);
		/* It may have been forgotten in between. */
		pthread_mutex_lock(&table->lock);
		if (!table->held[i])
			hostwatch_forget(h, &node, 1);
		pthread_mutex_unlock(&table->lock);
	}
	return 0;
}

static void *look_up_and_forget(void *argument)
{
	struct table *table = argument;
	unsigned int seed = (unsigned int)table->number++;
	const int first = (int)seed * (nodes_total / threads);

	for (int i = 0; i < lookups || !table->last; i++) {
		const int at = first + rand_r(&seed) % (nodes_total / threads);
		const struct hw_node node = { (uint64_t)at + 2, 1 };
		bool held;

		pthread_mutex_lock(&table->lock);
		held = table->held[at] = !table->held[at];
		if (!held)
			hostwatch_forget(table->h, &node, 1);
		pthread_mutex_unlock(&table->lock);
		if (held)
			hostwatch_register(table->h, 1, node.nodeid, 1, 0,
					   NULL);
		if (i % 16 == 0)
			usleep(1000);
	}
	return NULL;
}

static void *take_events(void *argument)
{
	struct table *table = argument;
	struct hostwatch_event event;
	bool in_step = true;
	int steps = 0;

	while (hostwatch_next(table->h, &event, -1) == 1) {
		if (event.kind == HOSTWATCH_OUT_OF_STEP) {
			CHECK(in_step);
			in_step = false;
		} else if (event.kind == HOSTWATCH_IN_STEP) {
			CHECK(!in_step);
			in_step = true;
			steps++;
		}
	}
	CHECK(steps > 1);
	return NULL;
}

static void storm(void)
{
	static struct table table;
	struct hostwatch_options options;
	struct fake fake;
	pthread_t reader;
	pthread_t ids[threads];

	pthread_mutex_init(&table.lock, NULL);
	fake_start(&fake, rounds, coming_and_going, &table);
	options = client_options(&fake);
	options.flags = HOSTWATCH_RECONNECT;
	options.sync_interval_ms = 5;
	options.reregister = reregister_table;
	options.argument = &table;
	CHECK_INT(hostwatch_open(&options, &table.h), 0);
	pthread_create(&reader, NULL, take_events, &table);
	for (int i = 0; i < threads; i++)
		pthread_create(&ids[i], NULL, look_up_and_forget, &table);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	/* The last connection stays; its daemon knows what the server holds. */
	for (bool same = false; !same && !checks_failed();) {
		while (hostwatch_sync(table.h))
			usleep(1000);
		usleep(20000);
		same = true;
		for (int i = 0; i < nodes_total; i++)
			same = same && table.held[i] == table.registered[i];
	}
	hostwatch_shutdown(table.h);
	pthread_join(reader, NULL);
	hostwatch_close(table.h);
	/* Connections that are left over. */
	shutdown(fake.listener, SHUT_RDWR);
	fake_stop(&fake);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(lost_connection),	TEST(lost_connection_polled),
		TEST(lost_again),	TEST(failing_callback),
		TEST(gap_in_tree),	TEST(daemon_shut_down),
		TEST(root_gone),	TEST(refused),
		TEST(refused_polled),	TEST(refused_and_away),
		TEST(away),		TEST(shutdown_wakes),
		TEST(shutdown_wakes_connect),
		TEST(storm),
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
