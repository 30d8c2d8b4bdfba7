/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon that grants every INIT. It is a thread, since hostwatch_open() waits for
 * the answer; the connection is then whoever's has called fuzz_connect().
 */
#include "CFuzzClient.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char path[64];
static int listener;
static int accepted;
static pthread_barrier_t granted;

static void fail(const char *what)
{
	perror(what);
	abort();
}

static void grant(int fd)
{
	struct hw_init init;
	struct hw_init_reply reply = {
		.reply = { .header = { .size = sizeof(reply),
				       .type = HW_INIT | HW_REPLY } },
		.major = HW_PROTOCOL_MAJOR,
		.events = HW_EVENTS_DEFAULT,
		.session = 1,
		.max_packet = HW_PACKET_MAX,
		.queue_limit = HW_QUEUE_MIN,
	};

	if (recv(fd, &init, sizeof(init), 0) < (ssize_t)sizeof(init.header))
		fail("recv");
	reply.reply.header.unique = init.header.unique;
	if (send(fd, &reply, sizeof(reply), 0) != sizeof(reply))
		fail("send");
}

static void *serve(void *unused)
{
	(void)unused;
	for (;;) {
		accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (accepted < 0)
			fail("accept");
		grant(accepted);
		pthread_barrier_wait(&granted);
	}
	return NULL;
}

static void stop(void)
{
	unlink(path);
}

static void start(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	pthread_t thread;

	snprintf(path, sizeof(path), "/tmp/hostwatch-fuzz-%d", (int)getpid());
	strcpy(address.sun_path, path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (listener < 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    listen(listener, 1) < 0)
		fail(path);
	atexit(stop);
	if (pthread_barrier_init(&granted, NULL, 2) != 0 ||
	    pthread_create(&thread, NULL, serve, NULL) != 0)
		fail("pthread_create");
	pthread_detach(thread);
}

struct hostwatch *fuzz_connect(int *daemon)
{
	struct hostwatch_options options;
	struct hostwatch *handle;

	if (!*path)
		start();
	hostwatch_options_init(&options, sizeof(options));
	options.socket_path = path;
	options.share = "s";
	if (hostwatch_open(&options, &handle) != 0) {
		fprintf(stderr, "%s\n", hostwatch_error_text());
		abort();
	}
	pthread_barrier_wait(&granted);
	*daemon = accepted;
	return handle;
}

bool fuzz_send(int daemon, const unsigned char *packet, size_t size)
{
	return send(daemon, packet, size, MSG_DONTWAIT | MSG_NOSIGNAL) ==
	       (ssize_t)size;
}
