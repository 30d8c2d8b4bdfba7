/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs of this folder share. Each program states one fact of the
 * kernel that hostwatchd is built on and exits with 0 if it holds, 1 if it does
 * not (saying what was seen) and 77 if it cannot be tested here.
 *
 * A program is called with the name of a filesystem. assume_begin() makes a
 * fresh one, mounts it in a mount namespace of the program's own and goes
 * there; the kernel takes mount and loop device away when the program ends,
 * however it ends.
 *
 * Records are compared as text, in which objects carry names given by know():
 *
 *     CREATE|CLOSE_WRITE root/f =f
 *     RENAME root/f > sub/g =f
 *     ATTRIB|DELETE_SELF =victim          (no directory: a "FID-only" record)
 */
#ifndef ASSUME_H
#define ASSUME_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define REST (FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | FAN_CREATE | \
	      FAN_DELETE | FAN_DELETE_SELF | FAN_RENAME | FAN_ONDIR)

static const char *assume_fs;
static char assume_root[PATH_MAX];

#define SKIP(...) \
	do { \
		printf("skipped: " __VA_ARGS__); \
		putchar('\n'); \
		exit(77); \
	} while (0)

#define FAIL(...) \
	do { \
		printf("%s:%d: ", __FILE__, __LINE__); \
		printf(__VA_ARGS__); \
		putchar('\n'); \
		exit(1); \
	} while (0)

/* The fact itself. */
#define HOLDS(cond) \
	do { \
		if (!(cond)) \
			FAIL("does not hold: %s", #cond); \
	} while (0)

/* A step on the way to the fact. */
#define MUST(expr) \
	({ \
		__typeof__(expr) must_result = (expr); \
		if ((long)must_result == -1) \
			FAIL("%s: %s", #expr, strerror(errno)); \
		must_result; \
	})

#define FAILS_WITH(expr, number) \
	do { \
		errno = 0; \
		if ((long)(expr) != -1 || errno != (number)) \
			FAIL("%s: expected %s, got %s", #expr, \
			     strerrorname_np(number), \
			     errno ? strerrorname_np(errno) : "success"); \
	} while (0)

static inline int run(const char *format, ...)
{
	char command[4096];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(command, sizeof(command), format, arguments);
	va_end(arguments);
	return system(command);
}

/* Mounts a fresh filesystem of the given kind at `where`. */
static inline void make_filesystem(const char *kind, const char *where)
{
	char image[] = "/var/tmp/hostwatch-assume-XXXXXX";
	const char *size = strcmp(kind, "xfs") == 0 ? "320M" : "200M";
	int file, failed;

	if (strcmp(kind, "tmpfs") == 0) {
		MUST(mount("assume", where, "tmpfs", 0, "size=64m"));
		return;
	}
	file = MUST(mkostemp(image, O_CLOEXEC));
	close(file);
	failed = run("exec >/dev/null 2>&1; truncate -s %s %s && mkfs.%s -q %s "
		     "&& mount -o loop %s %s",
		     size, image, kind, image, image, where);
	unlink(image);
	if (failed)
		SKIP("no %s can be made and mounted here", kind);
}

/* Enters a fresh filesystem of the kind that the command line names. */
static inline void assume_begin(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s FILESYSTEM\n", argv[0]);
		exit(64);
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	assume_fs = argv[1];
	if (geteuid() != 0)
		SKIP("needs root");
	if (unshare(CLONE_NEWNS) == -1)
		SKIP("no mount namespace: %s", strerror(errno));
	MUST(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	/* A place of this namespace alone: nothing to clean up outside. */
	MUST(mount("assume", "/mnt", "tmpfs", 0, "size=1m"));
	strcpy(assume_root, "/mnt/scratch");
	MUST(mkdir(assume_root, 0755));
	make_filesystem(assume_fs, assume_root);
	MUST(chdir(assume_root));
	umask(022);
}

static inline bool on(const char *kind)
{
	return strcmp(assume_fs, kind) == 0;
}

/* Handles. */

struct handle {
	unsigned int bytes;
	int type;
	unsigned char data[128];
};

static inline struct handle handle_at(int dirfd, const char *path)
{
	struct handle handle = { .bytes = sizeof(handle.data) };
	int mount_id;

	if (name_to_handle_at(dirfd, path, (struct file_handle *)&handle,
			      &mount_id, *path ? 0 : AT_EMPTY_PATH) == -1)
		FAIL("name_to_handle_at(%s): %s", path, strerror(errno));
	return handle;
}

static inline struct handle handle_of(const char *path)
{
	return handle_at(AT_FDCWD, path);
}

static inline bool same_handle(const struct handle *a, const struct handle *b)
{
	return a->bytes == b->bytes && a->type == b->type &&
	       memcmp(a->data, b->data, a->bytes) == 0;
}

static inline int open_handle(int mount_fd, const struct handle *handle)
{
	return open_by_handle_at(mount_fd, (struct file_handle *)handle,
				 O_PATH | O_CLOEXEC);
}

static struct {
	char name[32];
	struct handle handle;
} known[64];
static unsigned int known_count;

/* From now on records show the object at `path` as `name`. */
static inline void know(const char *name, const char *path)
{
	if (known_count == sizeof(known) / sizeof(*known))
		FAIL("too many names");
	snprintf(known[known_count].name, sizeof(known->name), "%s", name);
	known[known_count++].handle = handle_of(path);
}

static inline const char *name_of(const struct handle *handle)
{
	for (unsigned int i = known_count; i-- > 0;)
		if (same_handle(&known[i].handle, handle))
			return known[i].name;
	return "?";
}

/* Records. */

struct side {
	bool present;
	struct handle handle;
	char name[NAME_MAX + 1];
};

struct record {
	uint64_t mask;
	int pid;
	int fd;
	unsigned int length;
	struct side dir, new_dir, self;
};

static struct record records[8192];
static unsigned int record_count;

static inline int open_group(unsigned int extra)
{
	int group = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_DFID_NAME_TARGET |
				  FAN_CLOEXEC | FAN_NONBLOCK | extra, 0);

	if (group == -1)
		SKIP("fanotify_init: %s", strerror(errno));
	return group;
}

/* A group with the daemon's flags that marks the whole scratch filesystem. */
static inline int watch(uint64_t mask)
{
	int group = open_group(0);

	MUST(fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, mask,
			   AT_FDCWD, "."));
	return group;
}

static inline void parse_side(struct side *side, const unsigned char *info,
			      unsigned int length)
{
	unsigned int bytes;

	side->present = true;
	memcpy(&bytes, info + 12, 4);
	side->handle.bytes = bytes;
	memcpy(&side->handle.type, info + 16, 4);
	memcpy(side->handle.data, info + 20, bytes);
	if (20 + bytes < length)
		snprintf(side->name, sizeof(side->name), "%s",
			 (const char *)info + 20 + bytes);
}

static inline void parse_record(const unsigned char *bytes)
{
	struct fanotify_event_metadata head;
	struct record *record;

	memcpy(&head, bytes, sizeof(head));
	if (record_count == sizeof(records) / sizeof(*records))
		FAIL("too many records");
	record = &records[record_count++];
	memset(record, 0, sizeof(*record));
	record->mask = head.mask;
	record->pid = head.pid;
	record->fd = head.fd;
	record->length = head.event_len;
	for (unsigned int at = head.metadata_len; at < head.event_len;) {
		unsigned char type = bytes[at];
		unsigned short length;

		memcpy(&length, bytes + at + 2, 2);
		switch (type) {
		case FAN_EVENT_INFO_TYPE_FID:
			parse_side(&record->self, bytes + at, length);
			break;
		case FAN_EVENT_INFO_TYPE_DFID_NAME:
		case FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
		case FAN_EVENT_INFO_TYPE_DFID:
			parse_side(&record->dir, bytes + at, length);
			break;
		case FAN_EVENT_INFO_TYPE_NEW_DFID_NAME:
			parse_side(&record->new_dir, bytes + at, length);
			break;
		default:
			FAIL("unknown info type %d", type);
		}
		at += length;
	}
}

/* One read into a buffer of `size` bytes; false when nothing is queued. */
static inline bool read_once(int group, size_t size)
{
	static unsigned char buffer[262144];
	ssize_t got = read(group, buffer, size);

	if (got == -1 && errno == EAGAIN)
		return false;
	if (got == -1)
		FAIL("read: %s", strerror(errno));
	for (ssize_t at = 0; at < got;) {
		unsigned int length;

		memcpy(&length, buffer + at, 4);
		parse_record(buffer + at);
		at += length;
	}
	return true;
}

/* Reads until nothing is queued; what was read before is forgotten. */
static inline unsigned int drain(int group)
{
	record_count = 0;
	while (read_once(group, 262144))
		;
	return record_count;
}

static inline void show_mask(char *out, uint64_t mask)
{
	static const struct {
		uint64_t bit;
		const char *name;
	} names[] = {
		{ FAN_CREATE, "CREATE" }, { FAN_ACCESS, "ACCESS" },
		{ FAN_OPEN, "OPEN" }, { FAN_MODIFY, "MODIFY" },
		{ FAN_ATTRIB, "ATTRIB" }, { FAN_CLOSE_WRITE, "CLOSE_WRITE" },
		{ FAN_CLOSE_NOWRITE, "CLOSE_NOWRITE" },
		{ FAN_DELETE, "DELETE" }, { FAN_DELETE_SELF, "DELETE_SELF" },
		{ FAN_RENAME, "RENAME" }, { FAN_Q_OVERFLOW, "OVERFLOW" },
		{ FAN_ONDIR, "DIR" },
	};

	*out = 0;
	for (unsigned int i = 0; i < sizeof(names) / sizeof(*names); i++) {
		if (!(mask & names[i].bit))
			continue;
		if (*out)
			strcat(out, "|");
		strcat(out, names[i].name);
		mask &= ~names[i].bit;
	}
	if (mask)
		sprintf(out + strlen(out), "|0x%llx", (unsigned long long)mask);
}

static inline const char *show(const struct record *record)
{
	static char text[1024];
	char mask[256];

	show_mask(mask, record->mask);
	strcpy(text, mask);
	if (record->dir.present)
		sprintf(text + strlen(text), " %s/%s",
			name_of(&record->dir.handle), record->dir.name);
	if (record->new_dir.present)
		sprintf(text + strlen(text), " > %s/%s",
			name_of(&record->new_dir.handle), record->new_dir.name);
	if (record->self.present)
		sprintf(text + strlen(text), " =%s",
			name_of(&record->self.handle));
	return text;
}

/* All that is queued must read as the given lines, up to a NULL. */
static inline void expect_at(const char *file, int line, int group, ...)
{
	bool wrong = false;
	unsigned int i = 0;
	const char *want;
	va_list wanted;

	drain(group);
	va_start(wanted, group);
	for (; (want = va_arg(wanted, const char *)); i++)
		wrong |= i >= record_count || strcmp(show(&records[i]), want);
	va_end(wanted);
	if (!wrong && i == record_count)
		return;
	printf("%s:%d: expected\n", file, line);
	va_start(wanted, group);
	while ((want = va_arg(wanted, const char *)))
		printf("    %s\n", want);
	va_end(wanted);
	printf("seen\n");
	for (i = 0; i < record_count; i++)
		printf("    %s\n", show(&records[i]));
	exit(1);
}
#define EXPECT(group, ...) expect_at(__FILE__, __LINE__, group, __VA_ARGS__, NULL)
#define EXPECT_NOTHING(group) expect_at(__FILE__, __LINE__, group, NULL)

/* Everyday steps. */

static inline void touch(const char *path)
{
	close(MUST(open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644)));
}

static inline void append(const char *path, const char *text)
{
	int file = MUST(open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
			     0644));

	MUST(write(file, text, strlen(text)));
	close(file);
}

static inline void make_directory(const char *path)
{
	MUST(mkdir(path, 0755));
}

static inline void move(const char *from, const char *to)
{
	MUST(rename(from, to));
}

static inline void exchange(const char *a, const char *b)
{
	MUST(renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE));
}

/* Runs `step` in a child of its own pid and waits for it. */
#define IN_CHILD(step) \
	do { \
		int child_status; \
		pid_t child = MUST(fork()); \
		if (child == 0) { \
			step; \
			_exit(0); \
		} \
		MUST(waitpid(child, &child_status, 0)); \
		if (child_status) \
			FAIL("the child failed: %s", #step); \
	} while (0)

#endif
