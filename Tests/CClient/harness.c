/* SPDX-License-Identifier: Apache-2.0 */
#include "harness.h"

#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

static atomic_int failures;

bool check(bool condition, const char *text, const char *file, int line)
{
	if (!condition) {
		failures++;
		printf("# %s:%d: not so: %s\n", file, line, text);
	}
	return condition;
}

bool check_int(long long is, long long wanted, const char *text,
	       const char *file, int line)
{
	if (is != wanted) {
		failures++;
		printf("# %s:%d: %s is %lld, not %lld (%s)\n", file, line,
		       text, is, wanted, hostwatch_error_text());
	}
	return is == wanted;
}

bool check_text(const char *is, const char *wanted, const char *text,
		const char *file, int line)
{
	if (strcmp(is, wanted)) {
		failures++;
		printf("# %s:%d: %s is \"%s\", not \"%s\"\n", file, line, text,
		       is, wanted);
	}
	return !strcmp(is, wanted);
}

bool checks_failed(void)
{
	return failures != 0;
}

int run_tests(const struct test *tests, size_t count, int argc, char **argv)
{
	const char *without = getenv("HOSTWATCH_TEST_WITHOUT");
	int failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; i < count; i++) {
		if (argc > 1 && !strstr(tests[i].name, argv[1]))
			continue;
		if (without && !strcmp(tests[i].name, without))
			continue;
		alarm(60); /* a test that hangs is killed */
		failures = 0;
		tests[i].run();
		printf("%s %s\n", failures ? "not ok" : "ok", tests[i].name);
		failed += failures != 0;
	}
	return failed != 0;
}

long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* The daemon. */

static void *serve(void *argument)
{
	struct fake *fake = argument;

	for (unsigned int i = 0; i < fake->connections; i++) {
		int fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			break;
		fake->script(fd, i, fake->argument);
		close(fd);
	}
	return NULL;
}

void fake_start(struct fake *fake, unsigned int connections,
		void (*script)(int fd, unsigned int connection,
			       void *argument),
		void *argument)
{
	static atomic_int number;
	const char *directory = getenv("HOSTWATCH_TEST_DIR");
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	fake->connections = connections;
	fake->script = script;
	fake->argument = argument;
	snprintf(fake->path, sizeof(fake->path), "%s/%d.%d.sock",
		 directory ? directory : "/tmp", (int)getpid(), number++);
	strcpy(address.sun_path, fake->path);
	fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (bind(fake->listener, (struct sockaddr *)&address,
		 sizeof(address)) < 0 ||
	    listen(fake->listener, 8) < 0) {
		perror(fake->path);
		exit(1);
	}
	pthread_create(&fake->thread, NULL, serve, fake);
}

void fake_stop(struct fake *fake)
{
	pthread_join(fake->thread, NULL);
	close(fake->listener);
	unlink(fake->path);
}

bool fake_receive(int fd, struct packet *packet)
{
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(256 * sizeof(int))];
	} control;
	struct iovec part = { packet->bytes, sizeof(packet->bytes) };
	struct msghdr message = { .msg_iov = &part,
				  .msg_iovlen = 1,
				  .msg_control = &control,
				  .msg_controllen = sizeof(control) };
	struct cmsghdr *header;
	ssize_t size = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);

	packet->fd_count = 0;
	packet->size = 0;
	if (size <= 0)
		return false;
	packet->size = (size_t)size;
	header = CMSG_FIRSTHDR(&message);
	if (header) {
		packet->fd_count = (unsigned int)((header->cmsg_len -
						   CMSG_LEN(0)) /
						  sizeof(int));
		memcpy(packet->fds, CMSG_DATA(header),
		       packet->fd_count * sizeof(int));
	}
	return true;
}

void fake_close_descriptors(struct packet *packet)
{
	while (packet->fd_count)
		close(packet->fds[--packet->fd_count]);
}

uint64_t fake_expect(int fd, struct packet *packet, unsigned int type)
{
	if (!CHECK(fake_receive(fd, packet)))
		return 0;
	CHECK_INT(get32(packet->bytes), packet->size);
	CHECK_INT(get32(packet->bytes + 4), type); /* and flags 0 */
	CHECK(get64(packet->bytes + 8) != 0);
	return get64(packet->bytes + 8);
}

void fake_until_hang_up(int fd)
{
	struct packet packet;

	while (fake_receive(fd, &packet))
		fake_close_descriptors(&packet);
}

void fake_send(int fd, const void *bytes, size_t size)
{
	/* The client may have hung up already: that is its test's matter. */
	(void)!send(fd, bytes, size, MSG_NOSIGNAL);
}

void fake_reply(int fd, unsigned int type, uint64_t unique, int32_t error,
		uint32_t detail, const void *body, size_t size)
{
	unsigned char *bytes = calloc(1, 24 + size);

	put_header(bytes, 24 + size, type | 0x8000, unique);
	put32(bytes + 16, (uint32_t)error);
	put32(bytes + 20, detail);
	if (size)
		memcpy(bytes + 24, body, size);
	fake_send(fd, bytes, 24 + size);
	free(bytes);
}

void fake_refuse(int fd, unsigned int type, uint64_t unique, int32_t error,
		 const char *sentence)
{
	fake_reply(fd, type, unique, error, 0, sentence, strlen(sentence));
}

void fake_statuses(int fd, unsigned int type, uint64_t unique, uint32_t count,
		   uint32_t failing, int32_t status)
{
	int32_t statuses[HW_REGISTER_MAX + 2] = { 0 };

	if (failing < count)
		statuses[failing] = status;
	fake_reply(fd, type, unique, 0, count, statuses,
		   (4 * (size_t)count + 7) & ~(size_t)7);
}

size_t fake_init_reply(unsigned char bytes[80], uint64_t unique)
{
	memset(bytes, 0, 80);
	put_header(bytes, 80, 0x8001, unique);
	put16(bytes + 24, 1);
	put64(bytes + 32, 0x1000070e);
	put64(bytes + 40, 77);
	put64(bytes + 48, 1);
	put32(bytes + 64, 65536);
	put32(bytes + 68, 4194304);
	put32(bytes + 72, 65536);
	return 80;
}

void fake_grant(int fd)
{
	struct packet packet;
	unsigned char reply[80];

	fake_send(fd, reply,
		  fake_init_reply(reply, fake_expect(fd, &packet, 1)));
	fake_close_descriptors(&packet);
}

/* Numbers at offsets. */

void put16(unsigned char *at, uint16_t value)
{
	memcpy(at, &value, sizeof(value));
}

void put32(unsigned char *at, uint32_t value)
{
	memcpy(at, &value, sizeof(value));
}

void put64(unsigned char *at, uint64_t value)
{
	memcpy(at, &value, sizeof(value));
}

uint32_t get32(const unsigned char *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

uint64_t get64(const unsigned char *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

void put_header(unsigned char *at, size_t size, unsigned int type,
		uint64_t unique)
{
	put32(at, (uint32_t)size);
	put16(at + 4, (uint16_t)type);
	put16(at + 6, 0);
	put64(at + 8, unique);
}

static size_t put_text(unsigned char *at, const char *text)
{
	const size_t size = text ? strlen(text) : 0;

	if (size)
		memcpy(at, text, size);
	return size;
}

size_t put_record(unsigned char *at, uint64_t sequence, uint64_t mask,
		  const char *name, const char *new_name, const char *path,
		  const char *new_path)
{
	size_t sizes[4];
	size_t end = 96;

	memset(at, 0, 96);
	end += sizes[0] = put_text(at + end, name);
	end += sizes[1] = put_text(at + end, new_name);
	end += sizes[2] = put_text(at + end, path);
	end += sizes[3] = put_text(at + end, new_path);
	while (end % 8)
		at[end++] = 0;
	put32(at, (uint32_t)end);
	put64(at + 8, sequence);
	put64(at + 16, mask);
	put64(at + 24, 1);
	put64(at + 40, 1000 + sequence);
	put64(at + 48, 5);
	put16(at + 84, (uint16_t)sizes[0]);
	put16(at + 86, (uint16_t)sizes[1]);
	put32(at + 88, (uint32_t)sizes[2]);
	put32(at + 92, (uint32_t)sizes[3]);
	return end;
}

size_t put_events(unsigned char *at, uint64_t sequence, uint32_t count)
{
	size_t end = 24;

	for (uint32_t i = 0; i < count; i++) {
		char name[24];

		snprintf(name, sizeof(name), "f%llu",
			 (unsigned long long)(sequence + i));
		end += put_record(at + end, sequence + i, HW_CREATE, name,
				  NULL, NULL, NULL);
	}
	put_header(at, end, 0x4001, 0);
	put32(at + 16, count);
	put32(at + 20, 0);
	return end;
}

void fake_events(int fd, uint64_t sequence, uint32_t count)
{
	unsigned char *packet = malloc(HW_PACKET_MAX);

	fake_send(fd, packet, put_events(packet, sequence, count));
	free(packet);
}

/* The client. */

struct hostwatch_options client_options(const struct fake *fake)
{
	struct hostwatch_options options;

	hostwatch_options_init(&options, sizeof(options));
	options.socket_path = fake->path;
	options.share = "src";
	return options;
}

struct hostwatch *open_client(const struct fake *fake)
{
	const struct hostwatch_options options = client_options(fake);
	struct hostwatch *h = NULL;

	if (!CHECK_INT(hostwatch_open(&options, &h), 0))
		exit(1);
	return h;
}
