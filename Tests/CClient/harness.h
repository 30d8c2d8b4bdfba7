/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A test is a function; CHECK says what was not so and goes on. The daemon is a
 * thread with a script: it accepts a connection on a temporary socket, receives
 * and sends what the script says, and hangs up. It writes the protocol's
 * offsets as numbers, so that a wrong struct shows.
 */
#ifndef HARNESS_H
#define HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hostwatch.h"

#define CHECK(condition) check(condition, #condition, __FILE__, __LINE__)
#define CHECK_INT(is, wanted)                                            \
	check_int((long long)(is), (long long)(wanted), #is, __FILE__, \
		  __LINE__)
#define CHECK_TEXT(is, wanted) check_text(is, wanted, #is, __FILE__, __LINE__)

bool check(bool condition, const char *text, const char *file, int line);
bool check_int(long long is, long long wanted, const char *text,
	       const char *file, int line);
bool check_text(const char *is, const char *wanted, const char *text,
		const char *file, int line);

struct test {
	const char *name;
	void (*run)(void);
};
#define TEST(function) { #function, function }

/* True if a CHECK of this test has failed. */
bool checks_failed(void);

/* Runs the tests whose name holds argv[1], if given, but for the one that
 * $HOSTWATCH_TEST_WITHOUT names; the exit status. */
int run_tests(const struct test *tests, size_t count, int argc, char **argv);

/* Milliseconds of CLOCK_MONOTONIC. */
long long now_ms(void);

/* The daemon. */

struct fake {
	char path[100];
	int listener;
	unsigned int connections;
	void (*script)(int fd, unsigned int connection, void *argument);
	void *argument;
	pthread_t thread;
};

/* Listens, and runs the script for each of so many connections. */
void fake_start(struct fake *fake, unsigned int connections,
		void (*script)(int fd, unsigned int connection,
			       void *argument),
		void *argument);
/* Waits for the scripts' end. */
void fake_stop(struct fake *fake);

struct packet {
	unsigned char bytes[HW_PACKET_MAX];
	size_t size;
	int fds[256];
	unsigned int fd_count;
};

/* Receives one packet and its descriptors; false on a hang-up. */
bool fake_receive(int fd, struct packet *packet);
void fake_close_descriptors(struct packet *packet);
/* Receives one and checks its type; its unique. */
uint64_t fake_expect(int fd, struct packet *packet, unsigned int type);
/* Waits until the client hangs up, discarding what it sends. */
void fake_until_hang_up(int fd);

void fake_send(int fd, const void *bytes, size_t size);
void fake_reply(int fd, unsigned int type, uint64_t unique, int32_t error,
		uint32_t detail, const void *body, size_t size);
void fake_refuse(int fd, unsigned int type, uint64_t unique, int32_t error,
		 const char *sentence);
/* A reply to REGISTER or INTEREST, each status 0 but those of `failing`. */
void fake_statuses(int fd, unsigned int type, uint64_t unique, uint32_t count,
		   uint32_t failing, int32_t status);
/* Receives INIT and grants it. */
void fake_grant(int fd);
/* A reply to INIT that grants the defaults. */
size_t fake_init_reply(unsigned char bytes[80], uint64_t unique);

/* Writing numbers at offsets. */
void put16(unsigned char *at, uint16_t value);
void put32(unsigned char *at, uint32_t value);
void put64(unsigned char *at, uint64_t value);
uint32_t get32(const unsigned char *at);
uint64_t get64(const unsigned char *at);
void put_header(unsigned char *at, size_t size, unsigned int type,
		uint64_t unique);
/* A record with names (NULL: none); its size. */
size_t put_record(unsigned char *at, uint64_t sequence, uint64_t mask,
		  const char *name, const char *new_name, const char *path,
		  const char *new_path);
/* An EVENTS packet with `count` CREATEs from `sequence` on; its size. */
size_t put_events(unsigned char *at, uint64_t sequence, uint32_t count);
void fake_events(int fd, uint64_t sequence, uint32_t count);

/* The client. */

/* Opens a NODES session at the daemon, or says why not. */
struct hostwatch *open_client(const struct fake *fake);
struct hostwatch_options client_options(const struct fake *fake);

#endif
