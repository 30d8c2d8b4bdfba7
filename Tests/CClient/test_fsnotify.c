/* SPDX-License-Identifier: Apache-2.0 */
/* Records as the messages of a kernel with FUSE_NOTIFY_FSNOTIFY, byte by byte. */
#include "harness.h"

#include "hostwatch_fsnotify.h"

static const struct hostwatch_fsnotify_numbers posted = {
	.notify_code = 77, .opcode = 88, .init_flag = 1ULL << 41,
	.layout = HOSTWATCH_FSNOTIFY_POSTED
};
static const struct hostwatch_fsnotify_numbers whole = {
	.notify_code = 78, .opcode = 89, .init_flag = 1ULL << 42,
	.layout = HOSTWATCH_FSNOTIFY_WHOLE
};

static struct hostwatch_event record(uint64_t mask, const char *name,
				     const char *new_name)
{
	return (struct hostwatch_event){
		.kind = HOSTWATCH_EVENT, .sequence = 0x100000009, .mask = mask,
		.dir = { 21, 22 }, .node = { 23, 24 },
		.new_dir = { new_name ? 25 : 0, new_name ? 26 : 0 },
		.name = name, .name_size = (uint32_t)strlen(name),
		.new_name = new_name ? new_name : "",
		.new_name_size = new_name ? (uint32_t)strlen(new_name) : 0
	};
}

/* One posted message, with offsets as numbers; where the next begins. */
static size_t check_posted(const unsigned char *at, uint64_t nodeid,
			   uint64_t mask, uint32_t cookie, const char *name)
{
	size_t size = strlen(name);

	CHECK_INT(get32(at), 40 + size);
	CHECK_INT(get32(at + 4), 77);
	CHECK_INT(get64(at + 8), 0);
	CHECK_INT(get64(at + 16), nodeid);
	CHECK_INT(get64(at + 24), mask);
	CHECK_INT(get32(at + 32), size);
	CHECK_INT(get32(at + 36), cookie);
	CHECK(!memcmp(at + 40, name, size));
	return 40 + size;
}

static void posted_rename(void)
{
	unsigned char bytes[HOSTWATCH_FSNOTIFY_MAX];
	struct hostwatch_event e = record(HW_RENAME | HW_ISDIR, "old", "newer");
	size_t end = 0;
	int size = hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes));

	end += check_posted(bytes + end, 21, 0x40 | HW_ISDIR, 9, "old");
	end += check_posted(bytes + end, 25, 0x80 | HW_ISDIR, 9, "newer");
	end += check_posted(bytes + end, 23, 0x800 | HW_ISDIR, 0, "");
	CHECK_INT(size, end);

	/* Out of what the session knows: one half, and the cookie is never 0. */
	e.new_dir = (struct hw_node){ 0, 0 };
	e.new_name_size = 0;
	e.node = (struct hw_node){ 0, 0 };
	e.sequence = 0x200000000;
	size = hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes));
	CHECK_INT(size, check_posted(bytes, 21, 0x40 | HW_ISDIR, 1, "old"));
}

static void posted_events(void)
{
	unsigned char bytes[HOSTWATCH_FSNOTIFY_MAX];
	struct hostwatch_event e = record(HW_CREATE, "f", NULL);
	size_t end = 0;
	int size = hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes));

	CHECK_INT(size, check_posted(bytes, 21, HW_CREATE, 0, "f"));
	e = record(HW_MODIFY | HW_CLOSE_WRITE, "f", NULL);
	CHECK_INT(hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes)),
		  41 + 40);
	end += check_posted(bytes, 21, HW_MODIFY | HW_CLOSE_WRITE, 0, "f");
	check_posted(bytes + end, 23, HW_MODIFY | HW_CLOSE_WRITE, 0, "");
	e = record(HW_DELETE_SELF, "", NULL);
	e.dir = (struct hw_node){ 0, 0 };
	size = hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes));
	CHECK_INT(size, check_posted(bytes, 23, HW_DELETE_SELF, 0, ""));
}

static void whole_rename(void)
{
	static const unsigned char wanted[] = {
		88, 0, 0, 0, 78, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0x10, 0, 0, 0, 0, /* FS_RENAME */
		21, 0, 0, 0, 0, 0, 0, 0, 22, 0, 0, 0, 0, 0, 0, 0,
		23, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0, 0, 0, 0, 0,
		25, 0, 0, 0, 0, 0, 0, 0, 26, 0, 0, 0, 0, 0, 0, 0,
		3, 0, 0, 0, 5, 0, 0, 0, 'o', 'l', 'd', 'n', 'e', 'w', 'e', 'r'
	};
	unsigned char bytes[HOSTWATCH_FSNOTIFY_MAX];
	struct hostwatch_event e = record(HW_RENAME, "old", "newer");

	CHECK_INT(hostwatch_fsnotify_encode(&whole, &e, bytes, sizeof(bytes)),
		  sizeof(wanted));
	CHECK(!memcmp(bytes, wanted, sizeof(wanted)));
}

static void nothing_to_tell(void)
{
	unsigned char bytes[HOSTWATCH_FSNOTIFY_MAX];
	struct hostwatch_event e = record(HW_ISDIR, "", NULL);

	e.flags = HW_RECHECK;
	CHECK_INT(hostwatch_fsnotify_encode(&whole, &e, bytes, sizeof(bytes)),
		  0);
	e = record(HW_MODIFY, "f", NULL);
	e.kind = HOSTWATCH_LOST;
	CHECK_INT(hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes)),
		  0);
	e = record(HW_CREATE, "f", NULL);
	e.dir = (struct hw_node){ 0, 0 };
	CHECK_INT(hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes)),
		  0);
}

static void refusals(void)
{
	static char long_name[256];
	unsigned char bytes[HOSTWATCH_FSNOTIFY_MAX];
	struct hostwatch_event e = record(HW_CREATE, "f", NULL);
	struct hostwatch_fsnotify_numbers wrong = posted;

	CHECK_INT(hostwatch_fsnotify_encode(&posted, &e, bytes, 639), -ENOSPC);
	wrong.notify_code = 0;
	CHECK_INT(hostwatch_fsnotify_encode(&wrong, &e, bytes, sizeof(bytes)),
		  -EINVAL);
	wrong = posted;
	wrong.layout = 3;
	CHECK_INT(hostwatch_fsnotify_encode(&wrong, &e, bytes, sizeof(bytes)),
		  -EINVAL);
	memset(long_name, 'n', 255);
	e = record(HW_RENAME, long_name, long_name);
	CHECK(hostwatch_fsnotify_encode(&posted, &e, bytes, sizeof(bytes)) > 0);
	CHECK(hostwatch_fsnotify_encode(&whole, &e, bytes, sizeof(bytes)) > 0);
	e.name_size = 256;
	CHECK_INT(hostwatch_fsnotify_encode(&whole, &e, bytes, sizeof(bytes)),
		  -EINVAL);
}

static void interest(void)
{
	unsigned char request[16] = { 0 };
	uint64_t mask = 0;

	put64(request, 0x40 | HW_CREATE | 0x2000 /* UNMOUNT */);
	put64(request + 8, 4711);
	CHECK_INT(hostwatch_fsnotify_interest(&posted, 88, request, 16, &mask),
		  0);
	CHECK_INT(mask, HW_CREATE | HW_RENAME);
	CHECK_INT(hostwatch_fsnotify_interest(&posted, 51, request, 16, &mask),
		  -ENOSYS);
	CHECK_INT(hostwatch_fsnotify_interest(&posted, 88, request, 8, &mask),
		  -EINVAL);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(posted_rename), TEST(posted_events), TEST(whole_rename),
		TEST(nothing_to_tell), TEST(refusals), TEST(interest)
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
