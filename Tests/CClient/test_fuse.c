/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What hostwatch_fuse.h tells a kernel for each record, without one: libfuse's
 * functions are here, and write down what they are called for.
 */
#include "harness.h"

#include <stdarg.h>
#include <sys/uio.h>

/* What the header takes of <fuse_lowlevel.h>. */
#define FUSE_LOWLEVEL_H_
#define FUSE_ROOT_ID 1
struct fuse_session;
int fuse_session_fd(struct fuse_session *session);
int fuse_lowlevel_notify_inval_inode(struct fuse_session *session,
				     uint64_t node, off_t offset, off_t size);
int fuse_lowlevel_notify_inval_entry(struct fuse_session *session,
				     uint64_t parent, const char *name,
				     size_t size);
int fuse_lowlevel_notify_delete(struct fuse_session *session, uint64_t parent,
				uint64_t child, const char *name, size_t size);
static ssize_t told(int fd, const struct iovec *parts, int count);
#define writev told
#include "hostwatch_fuse.h"
#undef writev

static char log_[2048];
static int has_epochs = 1, has_entry = 1, delete_result;
static int unarrived; /* how often an inode is not there yet */
static int unmounted;

__attribute__((format(printf, 1, 2))) static void note(const char *format, ...)
{
	size_t used = strlen(log_);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(log_ + used, sizeof(log_) - used, format, arguments);
	va_end(arguments);
}

int fuse_session_fd(struct fuse_session *session)
{
	(void)session;
	return 4711;
}

int fuse_lowlevel_notify_inval_inode(struct fuse_session *session,
				     uint64_t node, off_t offset, off_t size)
{
	(void)session;
	CHECK_INT(size, 0);
	note("%s %llu; ", offset ? "attributes" : "contents",
	     (unsigned long long)node);
	if (unmounted || (node != FUSE_ROOT_ID && unarrived > 0 && unarrived--))
		return -ENOENT;
	return 0;
}

int fuse_lowlevel_notify_inval_entry(struct fuse_session *session,
				     uint64_t parent, const char *name,
				     size_t size)
{
	(void)session;
	note("entry %llu %.*s; ", (unsigned long long)parent, (int)size, name);
	return has_entry ? 0 : -ENOENT;
}

int fuse_lowlevel_notify_delete(struct fuse_session *session, uint64_t parent,
				uint64_t child, const char *name, size_t size)
{
	(void)session;
	note("delete %llu %.*s %llu; ", (unsigned long long)parent, (int)size,
	     name, (unsigned long long)child);
	return delete_result;
}

/* A message to /dev/fuse: an epoch, or an entry that is to be expired. */
static ssize_t told(int fd, const struct iovec *parts, int count)
{
	struct {
		uint32_t len;
		int32_t error;
		uint64_t unique;
	} header;
	uint32_t size = 0;

	CHECK_INT(fd, 4711);
	CHECK_INT(parts[0].iov_len, 16);
	memcpy(&header, parts[0].iov_base, sizeof(header));
	for (int i = 0; i < count; i++)
		size += (uint32_t)parts[i].iov_len;
	CHECK_INT(header.len, size);
	CHECK_INT(header.unique, 0);
	if (header.error == 8) {
		CHECK_INT(size, 16);
		note("epoch; ");
		if (has_epochs)
			return size;
		errno = EINVAL;
		return -1;
	}
	CHECK_INT(header.error, 3);
	CHECK_INT(parts[1].iov_len, 16);
	const unsigned char *body = parts[1].iov_base;
	const char *name = parts[2].iov_base;
	CHECK_INT(get32(body + 8), parts[2].iov_len);
	CHECK_INT(get32(body + 12), 1);
	CHECK_INT(parts[3].iov_len, 1);
	CHECK_INT(*(const char *)parts[3].iov_base, 0);
	note("expire %llu %.*s; ", (unsigned long long)get64(body),
	     (int)parts[2].iov_len, name);
	if (has_entry)
		return size;
	errno = ENOENT;
	return -1;
}

/* Two directories with names, as a server keeps them. */
static void names(void *context, uint64_t directory, hostwatch_fuse_visit visit,
		  void *argument)
{
	CHECK_INT(*(const int *)context, 5);
	if (!directory || directory == 1) {
		visit(argument, 1, "a", 1);
		visit(argument, 1, "bc", 2);
	}
	if (!directory || directory == 7)
		visit(argument, 7, "d", 1);
}

/* Three objects, one of which it holds. */
static void nodes(void *context, hostwatch_fuse_visit_node visit, void *argument)
{
	CHECK_INT(*(const int *)context, 5);
	visit(argument, 1, 0);
	visit(argument, 9, 1);
	visit(argument, 8, 1);
}

static int64_t link_count;

static int64_t links(void *context, uint64_t node)
{
	CHECK_INT(*(const int *)context, 5);
	CHECK_INT(node, 9);
	return link_count;
}

/* One object, 9 of generation 1, which is forgotten after `lookups` times. */
static int lookups, held;

static int hold(void *context, uint64_t node, uint64_t generation)
{
	CHECK_INT(*(const int *)context, 5);
	CHECK_INT(held, 0);
	if (node != FUSE_ROOT_ID && (node != 9 || generation != 1 || !lookups))
		return 0;
	if (node == 9 && lookups > 0)
		lookups--;
	return held = 1;
}

static void release(void *context, uint64_t node)
{
	CHECK_INT(*(const int *)context, 5);
	CHECK(node == FUSE_ROOT_ID || node == 9);
	CHECK_INT(held, 1);
	held = 0;
}

static int five = 5;

static struct hostwatch_fuse fresh(int with_names)
{
	struct hostwatch_fuse f;

	hostwatch_fuse_init(&f, NULL);
	f.context = &five;
	f.names = with_names ? names : NULL;
	f.links = links;
	*log_ = 0;
	has_epochs = has_entry = 1;
	delete_result = unarrived = unmounted = held = 0;
	lookups = -1;
	return f;
}

static struct hostwatch_event record(uint64_t mask, uint32_t flags,
				     uint64_t dir, const char *name,
				     uint64_t node)
{
	return (struct hostwatch_event){
		.kind = HOSTWATCH_EVENT, .mask = mask, .flags = flags,
		.dir = { dir, 1 }, .node = { node, 1 }, .name = name,
		.name_size = (uint32_t)strlen(name), .new_name = ""
	};
}

static void tells(struct hostwatch_fuse *f, struct hostwatch_event e,
		  const char *wanted)
{
	*log_ = 0;
	CHECK_INT(hostwatch_fuse_apply(f, &e), 0);
	CHECK_TEXT(log_, wanted);
}

static void records(void)
{
	struct hostwatch_fuse f = fresh(1);
	struct hostwatch_event e;

	tells(&f, record(HW_CREATE, 0, 1, "a", 9),
	      "entry 1 a; contents 1; attributes 9; ");
	tells(&f, record(HW_CREATE, 0, 1, "a", 0), "entry 1 a; contents 1; ");
	tells(&f, record(HW_MODIFY, 0, 1, "a", 9), "contents 9; ");
	tells(&f, record(HW_MODIFY, 0, 1, "a", 0), "entry 1 a; ");
	tells(&f, record(HW_ATTRIB, 0, 0, "", 9), "attributes 9; ");
	tells(&f, record(HW_ACCESS, 0, 0, "", 9), "attributes 9; ");
	tells(&f, record(HW_DELETE_SELF, 0, 0, "", 9), "contents 9; ");
	e = record(HW_RENAME, 0, 1, "a", 9);
	e.new_dir = (struct hw_node){ 7, 1 };
	e.new_name = "x";
	e.new_name_size = 1;
	tells(&f, e,
	      "entry 1 a; contents 1; entry 7 x; contents 7; attributes 9; ");
	CHECK_INT(f.failed, 0);
}

/* Only what is gone is deleted: a watcher of another link would be told so. */
static void deletion(void)
{
	struct hostwatch_fuse f = fresh(0);

	link_count = 0;
	tells(&f, record(HW_DELETE, 0, 1, "a", 9),
	      "delete 1 a 9; contents 1; attributes 9; ");
	link_count = 1;
	tells(&f, record(HW_DELETE, 0, 1, "a", 9),
	      "entry 1 a; contents 1; attributes 9; ");
	tells(&f, record(HW_DELETE | HW_ISDIR, 0, 1, "a", 9),
	      "delete 1 a 9; contents 1; attributes 9; ");
	delete_result = -ENOTEMPTY;
	tells(&f, record(HW_DELETE | HW_ISDIR, 0, 1, "a", 9),
	      "delete 1 a 9; entry 1 a; contents 1; attributes 9; ");
	CHECK_INT(f.deleted, 2);
	CHECK_INT(f.entries, 2);
}

/* What the kernel does not have yet is told until it has it, or has forgotten
 * it, or is gone itself. */
static void under_way(void)
{
	struct hostwatch_fuse f = fresh(0);
	struct hostwatch_event modify = record(HW_MODIFY, 0, 0, "", 9);

	unarrived = 2;
	tells(&f, modify, "contents 9; "); /* without .hold once */
	f.hold = hold;
	f.release = release;
	unarrived = 2;
	tells(&f, modify,
	      "contents 9; attributes 1; contents 9; attributes 1; contents 9; ");
	CHECK_INT(f.inodes, 1);
	unarrived = 9;
	lookups = 2;
	tells(&f, modify,
	      "contents 9; attributes 1; contents 9; attributes 1; ");
	CHECK_INT(unarrived, 7);
	lookups = -1;
	unmounted = 1;
	tells(&f, modify, "contents 9; attributes 1; ");
	CHECK_INT(f.inodes, 1);
	CHECK_INT(f.failed, 0);
	CHECK_INT(held, 0);
}

/* A nodeid that is another object's by now is not deleted. */
static void used_again(void)
{
	struct hostwatch_fuse f = fresh(0);
	struct hostwatch_event e = record(HW_DELETE | HW_ISDIR, 0, 1, "a", 9);

	f.hold = hold;
	f.release = release;
	e.dir.generation = 0;
	tells(&f, e, "delete 1 a 9; contents 1; attributes 9; ");
	e.node.generation = 2;
	tells(&f, e, "entry 1 a; contents 1; ");
	CHECK_INT(held, 0);
}

/* A directory in doubt: its names are expired one by one, or all there are. */
static void recheck(void)
{
	struct hostwatch_fuse with = fresh(1), without = fresh(0);

	tells(&with, record(HW_ISDIR, HW_RECHECK, 0, "", 1),
	      "contents 1; expire 1 a; expire 1 bc; ");
	CHECK_INT(with.expired, 2);
	CHECK_INT(with.epochs, 0);
	tells(&with, record(0, HW_RECHECK, 0, "", 9), "contents 9; ");
	tells(&without, record(HW_ISDIR, HW_RECHECK, 0, "", 1),
	      "contents 1; epoch; ");
	CHECK_INT(without.epochs, 1);
	has_entry = 0; /* nothing cached is no failure */
	tells(&with, record(HW_ISDIR, HW_RECHECK, 0, "", 1),
	      "contents 1; expire 1 a; expire 1 bc; ");
	CHECK_INT(with.expired, 2);
	CHECK_INT(with.failed, 0);
}

/* Out of step: everything, by an epoch and by what is known by name; on a kernel
 * without epochs by name alone, and without names it is an error. */
static void everything(void)
{
	struct hostwatch_fuse f = fresh(1);
	struct hostwatch_event lost = { .kind = HOSTWATCH_LOST };
	uint64_t before = hostwatch_fuse_moment(&f);

	CHECK(hostwatch_fuse_timeout(&f, before, 9.0) == 9.0);
	tells(&f, lost,
	      "epoch; contents 1; expire 1 a; expire 1 bc; contents 7; expire 7 d; contents 1; ");
	CHECK(hostwatch_fuse_timeout(&f, before, 9.0) == 0.0);
	CHECK(hostwatch_fuse_timeout(&f, hostwatch_fuse_moment(&f), 9.0) == 0.0);
	has_epochs = 0;
	tells(&f, lost,
	      "epoch; contents 1; expire 1 a; expire 1 bc; contents 7; expire 7 d; contents 1; ");
	CHECK_INT(f.failed, 0);
	hostwatch_fuse_registered(&f);
	CHECK(hostwatch_fuse_timeout(&f, hostwatch_fuse_moment(&f), 9.0) == 9.0);
	CHECK(hostwatch_fuse_timeout(&f, before, 9.0) == 0.0);
	tells(&f, lost,
	      "epoch; contents 1; expire 1 a; expire 1 bc; contents 7; expire 7 d; contents 1; ");
	tells(&f, (struct hostwatch_event){ .kind = HOSTWATCH_IN_STEP }, "");
	CHECK(hostwatch_fuse_timeout(&f, hostwatch_fuse_moment(&f), 9.0) == 9.0);

	f = fresh(0);
	has_epochs = 0;
	CHECK_INT(hostwatch_fuse_apply(&f, &lost), -EINVAL);
	CHECK_INT(f.failed, 1);
	has_epochs = 1;
	tells(&f, lost, "epoch; contents 1; ");

	/* What is open or somebody's working directory is found by no name. */
	f.nodes = nodes;
	tells(&f, lost, "epoch; contents 9; contents 8; contents 1; ");
	f.hold = hold;
	f.release = release;
	unarrived = 1;
	tells(&f, lost, "epoch; contents 9; attributes 1; contents 9; contents 1; ");
	CHECK_INT(held, 0);
}

int main(int argc, char **argv)
{
	static const struct test tests[] = {
		TEST(records), TEST(deletion), TEST(under_way), TEST(used_again),
		TEST(recheck), TEST(everything)
	};

	return run_tests(tests, sizeof(tests) / sizeof(*tests), argc, argv);
}
