/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many threads at one handle, and a daemon that, like the real one, reads no
 * request while the client does not take what is queued for it.
 */
#include "harness.h"

#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static void answer(int fd, struct packet *packet)
{
	const unsigned int type = get32(packet->bytes + 4);
	const uint64_t unique = get64(packet->bytes + 8);
	const uint32_t count = packet->size > 16 ? get32(packet->bytes + 16) : 0;

	if (type == 2) {
		CHECK_INT(packet->fd_count, count);
		fake_close_descriptors(packet);
		/* A node with an odd id does not exist. */
		fake_statuses(fd, 2, unique, count,
			      get64(packet->bytes + 24) % 2 ? 0 : count,
			      -ENOSPC);
	} else if (type == 5) {
		fake_reply(fd, 5, unique, 0, 0, NULL, 0);
	}
}

static bool can(int fd, short events)
{
	struct pollfd one = { .fd = fd, .events = events };

	return poll(&one, 1, 0) == 1;
}

/* Many threads register and sync while one reads. */

enum { events_total = 100000, batch = 20, threads = 8, requests = 300 };

static void storm_script(int fd, unsigned int connection, void *unused)
{
	uint64_t sequence = 1;
	struct packet packet;

	(void)connection, (void)unused;
	fake_grant(fd);
	for (;;) {
		struct pollfd one = { .fd = fd, .events = POLLIN };

		if (sequence <= events_total) {
			fake_events(fd, sequence, batch);
			sequence += batch;
			if (!can(fd, POLLIN))
				continue;
		}
		poll(&one, 1, -1);
		if (!fake_receive(fd, &packet))
			break;
		answer(fd, &packet);
	}
	CHECK(sequence > events_total);
}

static void *register_and_sync(void *argument)
{
	struct hostwatch *h = argument;
	static atomic_uint_fast64_t next = 2;

	for (int i = 0; i < requests; i++) {
		uint64_t nodeid = next++;

		CHECK_INT(hostwatch_register(h, 1, nodeid, 0, 0, NULL),
			  nodeid % 2 ? -ENOSPC : 0);
		if (i % 50 == 0)
			CHECK_INT(hostwatch_sync(h), 0);
	}
	return NULL;
}

static void storm(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	pthread_t ids[threads];
	bool named = true;

	fake_start(&fake, 1, storm_script, NULL);
	h = open_client(&fake);
	for (int i = 0; i < threads; i++)
		pthread_create(&ids[i], NULL, register_and_sync, h);
	for (uint64_t i = 1; i <= events_total; i++) {
		char name[24];

		/* Now and then as a loop with poll would. */
		while (hostwatch_next(h, &event, i % 7 ? -1 : 0) == 0)
			sched_yield();
		if (event.kind != HOSTWATCH_EVENT || event.sequence != i) {
			CHECK(!"the events come in order");
			break;
		}
		snprintf(name, sizeof(name), "f%llu", (unsigned long long)i);
		named = named && event.name_size == strlen(name) &&
			!memcmp(event.name, name, event.name_size);
	}
	CHECK(named);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	CHECK_INT(hostwatch_next(h, &event, 0), 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* The same with nobody in hostwatch_next(): the waiters read for each other. */
static void nobody_reads_events(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	pthread_t ids[threads];
	uint64_t last = 0;

	fake_start(&fake, 1, storm_script, NULL);
	h = open_client(&fake);
	hostwatch_fd(h);
	for (int i = 0; i < threads; i++)
		pthread_create(&ids[i], NULL, register_and_sync, h);
	for (int i = 0; i < threads; i++)
		pthread_join(ids[i], NULL);
	while (last < events_total && hostwatch_next(h, &event, 10000) == 1 &&
	       event.sequence == last + 1)
		last++;
	CHECK_INT(last, events_total);
	hostwatch_close(h);
	fake_stop(&fake);
}

/* A daemon that sends all it has before it reads a request. */

static void deaf_script(int fd, unsigned int connection, void *argument)
{
	struct packet packet;
	uint64_t last = 3000;

	(void)connection;
	fake_grant(fd);
	if (argument) { /* one event, when the sender is blocked */
		sem_wait(argument);
		fake_events(fd, 1, 1);
	}
	for (uint64_t i = argument ? 2 : 1; i <= last; i++)
		fake_events(fd, i, 1); /* blocks until the client reads */
	while (fake_receive(fd, &packet))
		answer(fd, &packet);
}

/* Far more than the socket holds. */
static void send_many(struct hostwatch *h)
{
	static const struct hw_node nodes[250];
	static const struct hw_register_entry entries[2500];
	static const int fds[2500]; /* standard input will do */

	for (int i = 0; i < 200; i++)
		CHECK_INT(hostwatch_forget(h, nodes, 250), 0);
	for (int i = 0; i < 4; i++)
		CHECK_INT(hostwatch_register_send(h, entries, fds, 2500), 0);
}

static void back_pressure(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;

	fake_start(&fake, 1, deaf_script, NULL);
	h = open_client(&fake);
	send_many(h);
	CHECK_INT(hostwatch_sync(h), 0);
	for (uint64_t i = 1; i <= 3000; i++) {
		CHECK_INT(hostwatch_next(h, &event, 0), 1);
		if (!CHECK_INT(event.sequence, i))
			break;
	}
	CHECK_INT(hostwatch_next(h, &event, 0), 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void *send_in_thread(void *argument)
{
	send_many(argument);
	return NULL;
}

static void many_senders(void)
{
	struct fake fake;
	struct hostwatch *h;
	pthread_t ids[3];

	fake_start(&fake, 1, deaf_script, NULL);
	h = open_client(&fake);
	for (int i = 0; i < 3; i++)
		pthread_create(&ids[i], NULL, send_in_thread, h);
	for (int i = 0; i < 3; i++)
		pthread_join(ids[i], NULL);
	CHECK_INT(hostwatch_sync(h), 0);
	hostwatch_close(h);
	fake_stop(&fake);
}

static void *read_one(void *argument)
{
	struct hostwatch_event event;

	CHECK_INT(hostwatch_next(argument, &event, -1), 1);
	CHECK_INT(event.sequence, 1);
	return NULL;
}

/* The reader leaves with its event while a sender is blocked: the sender must
 * take over reading, or the daemon never reads again. */
static void reader_leaves(void)
{
	sem_t blocked;
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	pthread_t reader;
	pthread_t sender;

	sem_init(&blocked, 0, 0);
	fake_start(&fake, 1, deaf_script, &blocked);
	h = open_client(&fake);
	pthread_create(&reader, NULL, read_one, h);
	/* While it waits, no second thread may. */
	while (hostwatch_next(h, &event, 0) != -EBUSY)
		sched_yield();
	pthread_create(&sender, NULL, send_in_thread, h);
	usleep(50000); /* for the sender to be blocked; right in any case */
	sem_post(&blocked);
	pthread_join(reader, NULL);
	pthread_join(sender, NULL);
	CHECK_INT(hostwatch_sync(h), 0);
	for (uint64_t i = 2; i <= 3000; i++) {
		CHECK_INT(hostwatch_next(h, &event, 0), 1);
		if (!CHECK_INT(event.sequence, i))
			break;
	}
	hostwatch_close(h);
	fake_stop(&fake);
	sem_destroy(&blocked);
}

/* hostwatch_next() keeps its time limit while another thread reads. */
static void silent_script(int fd, unsigned int connection, void *asked)
{
	struct packet packet;

	(void)connection;
	fake_grant(fd);
	fake_expect(fd, &packet, 5);
	sem_post(asked);
	fake_until_hang_up(fd);
}

static void *wait_for_sync(void *argument)
{
	return (void *)(intptr_t)hostwatch_sync(argument);
}

static void limit_while_another_reads(void)
{
	sem_t asked;
	struct fake fake;
	struct hostwatch *h;
	struct hostwatch_event event;
	pthread_t waiter;
	long long start;

	sem_init(&asked, 0, 0);
	fake_start(&fake, 1, silent_script, &asked);
	h = open_client(&fake);
	pthread_create(&waiter, NULL, wait_for_sync, h);
	sem_wait(&asked);
	usleep(10000); /* for it to lead; right in any case */
	start = now_ms();
	CHECK_INT(hostwatch_next(h, &event, 50), 0);
	CHECK(now_ms() - start >= 50);
	CHECK_INT(hostwatch_next(h, &event, 0), 0);
	hostwatch_shutdown(h);
	pthread_join(waiter, NULL);
	hostwatch_close(h);
	fake_stop(&fake);
	sem_destroy(&asked);
}

/* The end of a connection, and everybody wakes. */

static void *wait_for_end(void *argument)
{
	struct hostwatch_event event;

	CHECK_INT(hostwatch_next(argument, &event, -1), 1);
	CHECK_INT(event.kind, HOSTWATCH_DISCONNECTED);
	return (void *)(intptr_t)event.error;
}

/* Takes as many requests as it is told and answers none. */
static void mute_script(int fd, unsigned int connection, void *argument)
{
	struct packet packet;

	fake_grant(fd);
	for (int i = 0; i < 4; i++)
		fake_expect(fd, &packet, 5);
	if (argument)
		sem_post(argument);
	if (connection == 0 && argument)
		fake_until_hang_up(fd);
}

static void everybody_wakes(bool by_shutdown)
{
	const int wanted = by_shutdown ? -ESHUTDOWN : -ECONNRESET;
	sem_t waiting;
	struct fake fake;
	struct hostwatch *h;
	pthread_t ids[5];
	void *result;

	sem_init(&waiting, 0, 0);
	fake_start(&fake, by_shutdown ? 1 : 20, mute_script,
		   by_shutdown ? &waiting : NULL);
	h = open_client(&fake);
	for (int round = 0; round < (by_shutdown ? 1 : 20); round++) {
		if (round)
			CHECK_INT(hostwatch_reconnect(h), 0);
		if (round) {
			struct hostwatch_event event;

			CHECK_INT(hostwatch_next(h, &event, 0), 1);
			CHECK_INT(event.kind, HOSTWATCH_CONNECTED);
		}
		pthread_create(&ids[4], NULL, wait_for_end, h);
		for (int i = 0; i < 4; i++)
			pthread_create(&ids[i], NULL, wait_for_sync, h);
		if (by_shutdown) {
			sem_wait(&waiting);
			hostwatch_shutdown(h);
		}
		for (int i = 0; i < 5; i++) {
			pthread_join(ids[i], &result);
			CHECK_INT((intptr_t)result, wanted);
		}
	}
	hostwatch_close(h);
	fake_stop(&fake);
	sem_destroy(&waiting);
}

static void hang_up_wakes_all(void)
{
	everybody_wakes(false);
}

static void shutdown_wakes_all(void)
{
	everybody_wakes(true);
}

struct half {
	sem_t closed, ended;
};

/* Takes nothing any more, and stays all the same. */
static void half_closed_script(int fd, unsigned int connection, void *argument)
{
	struct half *half = argument;

	(void)connection;
	fake_grant(fd);
	fake_events(fd, 1, 3);
	shutdown(fd, SHUT_RD);
	sem_post(&half->closed);
	sem_wait(&half->ended);
}

static void *read_to_the_end(void *argument)
{
	struct hostwatch_event event;
	intptr_t events = 0;

	while (hostwatch_next(argument, &event, -1) == 1 &&
	       event.kind != HOSTWATCH_DISCONNECTED)
		events++;
	return (void *)events;
}

/* A thread that reads must not sleep on while another finds that nothing is taken. */
static void half_closed(void)
{
	struct fake fake;
	struct hostwatch *h;
	struct half half;
	pthread_t reader;
	void *events;

	sem_init(&half.closed, 0, 0);
	sem_init(&half.ended, 0, 0);
	fake_start(&fake, 1, half_closed_script, &half);
	h = open_client(&fake);
	pthread_create(&reader, NULL, read_to_the_end, h);
	sem_wait(&half.closed);
	CHECK_INT(hostwatch_sync(h), -ECONNRESET);
	pthread_join(reader, &events);
	CHECK_INT((intptr_t)events, 3);
	sem_post(&half.ended);
	hostwatch_close(h);
	fake_stop(&fake);
	sem_destroy(&half.closed);
	sem_destroy(&half.ended);
}

/* More descriptors on their way than an unprivileged process may have. */

static void slow_script(int fd, unsigned int connection, void *unused)
{
	struct packet packet;

	(void)connection, (void)unused;
	fake_grant(fd);
	usleep(50000); /* the client runs into the limit meanwhile */
	while (fake_receive(fd, &packet))
		answer(fd, &packet);
}

static int with_few_descriptors(void)
{
	const struct rlimit few = { 300, 300 };
	struct fake fake;
	struct hostwatch *h;

	if (setrlimit(RLIMIT_NOFILE, &few))
		return 1;
	if (geteuid() == 0 && setresuid(65534, 65534, 65534))
		return 1;
	fake_start(&fake, 1, slow_script, NULL);
	h = open_client(&fake);
	send_many(h);
	CHECK_INT(hostwatch_sync(h), 0);
	hostwatch_close(h);
	fake_stop(&fake);
	return checks_failed();
}

static void many_descriptors(void)
{
	int status = 0;
	pid_t child = fork();

	if (!child)
		_exit(with_few_descriptors());
	waitpid(child, &status, 0);
	CHECK_INT(status, 0);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(many_descriptors), /* first: it forks */
		TEST(storm),
		TEST(nobody_reads_events),
		TEST(back_pressure),
		TEST(many_senders),
		TEST(reader_leaves),
		TEST(limit_while_another_reads),
		TEST(hang_up_wakes_all),
		TEST(half_closed),
		TEST(shutdown_wakes_all),
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
