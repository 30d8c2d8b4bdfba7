/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A read-only FUSE server that shows a directory at a mount point and lets the
 * kernel cache everything for ever. Without HOSTWATCH it is what it would be
 * without hostwatchd: what changes in the directory afterwards is not seen. The
 * lines between #ifdef HOSTWATCH and #endif are what it takes to be right.
 *
 *   $ cd Sources/CHostWatch
 *   $ cc -DHOSTWATCH -pthread -Iinclude -o mirror ../../examples/mirror.c *.c \
 *        $(pkg-config --cflags --libs fuse3)
 *
 * or, with the library installed,
 *
 *   $ cc -DHOSTWATCH -pthread -o mirror mirror.c $(pkg-config --cflags --libs fuse3 libhostwatch)
 *
 *   # ./mirror /srv/src /mnt [SOCKET]
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 34
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fuse_lowlevel.h>

#define FOREVER 1e9

struct node {
	struct node *next;
	int fd; /* O_PATH, so the inode number is not used again */
	uint64_t generation, lookups;
	struct stat status;
};
static struct node root = { .generation = 0, .lookups = 1 }, *nodes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* nodes, lookups */
static struct fuse_session *session;

static struct node *node_of(fuse_ino_t nodeid)
{
	return nodeid == FUSE_ROOT_ID ? &root : (struct node *)(uintptr_t)nodeid;
}

#ifdef HOSTWATCH
#include "hostwatch_fuse.h"

static struct hostwatch *watch;
static struct hostwatch_fuse apply;
#endif

/* The kernel, or another, has so many lookups less of the node. */
static void drop(fuse_ino_t nodeid, uint64_t lookups)
{
	struct node *n = node_of(nodeid), **at;

	pthread_mutex_lock(&lock);
	n->lookups -= lookups;
	if (!n->lookups && n != &root) {
		for (at = &nodes; *at != n; at = &(*at)->next)
			;
		*at = n->next;
#ifdef HOSTWATCH
		hostwatch_forget(watch, &(struct hw_node){ nodeid, n->generation }, 1);
#endif
		close(n->fd);
		free(n);
	}
	pthread_mutex_unlock(&lock);
}

#ifdef HOSTWATCH
static int hold(void *unused, uint64_t nodeid, uint64_t generation)
{
	struct node *n = &root;

	(void)unused;
	pthread_mutex_lock(&lock);
	if (nodeid != FUSE_ROOT_ID)
		for (n = nodes; n && ((uintptr_t)n != nodeid || n->generation != generation); n = n->next)
			;
	if (n)
		n->lookups++;
	pthread_mutex_unlock(&lock);
	return n != NULL;
}

static void release(void *unused, uint64_t nodeid)
{
	(void)unused;
	drop(nodeid, 1);
}

static int64_t links(void *unused, uint64_t nodeid)
{
	struct stat status;

	(void)unused;
	return fstat(node_of(nodeid)->fd, &status) < 0 ? -errno : (int64_t)status.st_nlink;
}

static void visit_nodes(void *unused, hostwatch_fuse_visit_node visit, void *argument)
{
	struct node *n = NULL, *next;
	uint64_t generation;

	(void)unused;
	do {
		pthread_mutex_lock(&lock);
		next = n ? n->next : nodes;
		if (next)
			next->lookups++; /* the place in the list stays */
		pthread_mutex_unlock(&lock);
		if (n) {
			generation = n->generation;
			drop((uintptr_t)n, 1); /* hold() says if the kernel has it, not this */
			visit(argument, (uintptr_t)n, generation);
		}
	} while ((n = next));
}

static void register_again(void)
{
	pthread_mutex_lock(&lock);
	for (struct node *n = nodes; n; n = n->next)
		hostwatch_register(watch, n->fd, (uintptr_t)n, n->generation, 0, &n->status.st_ctim);
	pthread_mutex_unlock(&lock);
	hostwatch_fuse_registered(&apply);
}

static void *follow(void *unused)
{
	struct hostwatch_event event;

	for (;;) {
		if (hostwatch_next(watch, &event, -1) == 1) {
			hostwatch_fuse_apply(&apply, &event);
			if (event.kind == HOSTWATCH_CONNECTED)
				register_again();
		} else if (hostwatch_reconnect(watch) < 0) {
			sleep(1); /* everything is asked for each time, meanwhile */
		}
	}
	return unused;
}
#endif

/* The node of what `fd` is open to, which it owns from now on; one lookup more. */
static struct node *find(int fd, const struct stat *status)
{
	struct node *n;

	pthread_mutex_lock(&lock);
	for (n = nodes; n; n = n->next)
		if (n->status.st_ino == status->st_ino && n->status.st_dev == status->st_dev)
			break;
	if (n) {
		close(fd);
	} else if ((n = calloc(1, sizeof(*n)))) {
		static uint64_t generation;

		*n = (struct node){ nodes, fd, ++generation, 0, *status };
		nodes = n;
#ifdef HOSTWATCH
		hostwatch_register(watch, fd, (uintptr_t)n, n->generation, 0, &status->st_ctim);
#endif
	}
	if (n)
		n->lookups++;
	pthread_mutex_unlock(&lock);
	return n;
}

static void do_forget(fuse_req_t request, fuse_ino_t nodeid, uint64_t lookups)
{
	drop(nodeid, lookups);
	fuse_reply_none(request);
}

static void do_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	double timeout = FOREVER;
	struct fuse_entry_param e = { .ino = 0 };
	struct node *n = NULL;
#ifdef HOSTWATCH
	uint64_t moment = hostwatch_fuse_moment(&apply);
#endif
	int fd = openat(node_of(parent)->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	int error = fd < 0 ? errno : 0;

	if (fd >= 0 && (fstat(fd, &e.attr) < 0 || !(n = find(fd, &e.attr))))
		error = ENOMEM;
#ifdef HOSTWATCH
	timeout = hostwatch_fuse_timeout(&apply, moment, timeout);
#endif
	e.ino = n ? (uintptr_t)n : 0; /* 0: there is nothing, and it may be cached */
	e.generation = n ? n->generation : 0;
	e.entry_timeout = e.attr_timeout = timeout;
	if (error && error != ENOENT)
		fuse_reply_err(request, error);
	else
		fuse_reply_entry(request, &e);
}

static void do_getattr(fuse_req_t request, fuse_ino_t nodeid, struct fuse_file_info *fi)
{
	double timeout = FOREVER;
	struct stat status;
#ifdef HOSTWATCH
	uint64_t moment = hostwatch_fuse_moment(&apply);
#endif
	int failed = fstat(node_of(nodeid)->fd, &status);

	(void)fi;
#ifdef HOSTWATCH
	timeout = hostwatch_fuse_timeout(&apply, moment, timeout);
#endif
	if (failed)
		fuse_reply_err(request, errno);
	else
		fuse_reply_attr(request, &status, timeout);
}

static void do_readlink(fuse_req_t request, fuse_ino_t nodeid)
{
	char target[4096];
	ssize_t size = readlinkat(node_of(nodeid)->fd, "", target, sizeof(target) - 1);

	if (size < 0) {
		fuse_reply_err(request, errno);
		return;
	}
	target[size] = 0;
	fuse_reply_readlink(request, target);
}

static void do_open(fuse_req_t request, fuse_ino_t nodeid, struct fuse_file_info *fi)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", node_of(nodeid)->fd);
	if ((fi->flags & O_ACCMODE) != O_RDONLY) {
		fuse_reply_err(request, EROFS);
		return;
	}
	fi->fh = (uint64_t)open(path, O_RDONLY | O_CLOEXEC | (fi->flags & O_DIRECTORY));
	fi->keep_cache = fi->cache_readdir = 1;
	if ((int)fi->fh < 0)
		fuse_reply_err(request, errno);
	else
		fuse_reply_open(request, fi);
}

static void do_read(fuse_req_t request, fuse_ino_t nodeid, size_t size, off_t offset,
		    struct fuse_file_info *fi)
{
	struct fuse_bufvec buffer = FUSE_BUFVEC_INIT(size);

	(void)nodeid;
	buffer.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
	buffer.buf[0].fd = (int)fi->fh;
	buffer.buf[0].pos = offset;
	fuse_reply_data(request, &buffer, 0);
}

static void do_readdir(fuse_req_t request, fuse_ino_t nodeid, size_t size, off_t offset,
		       struct fuse_file_info *fi)
{
	char *buffer = malloc(size);
	int fd = dup((int)fi->fh); /* closedir() closes it */
	DIR *dir = buffer && fd >= 0 ? fdopendir(fd) : NULL;
	size_t used = 0, more;
	struct dirent *entry;

	(void)nodeid;
	if (dir) /* from the start: a listing is that of its opening or rewinding */
		rewinddir(dir);
	for (off_t at = 1; dir && (entry = readdir(dir)); at++) {
		struct stat status = { .st_ino = entry->d_ino, .st_mode = entry->d_type << 12 };

		if (at <= offset)
			continue;
		more = fuse_add_direntry(request, buffer + used, size - used, entry->d_name, &status, at);
		if (more > size - used)
			break;
		used += more;
	}
	fuse_reply_buf(request, buffer, used);
	if (dir)
		closedir(dir);
	free(buffer);
}

static void do_release(fuse_req_t request, fuse_ino_t nodeid, struct fuse_file_info *fi)
{
	(void)nodeid;
	close((int)fi->fh);
	fuse_reply_err(request, 0);
}

static const struct fuse_lowlevel_ops operations = {
	.lookup = do_lookup, .forget = do_forget, .getattr = do_getattr, .readlink = do_readlink,
	.open = do_open, .read = do_read, .release = do_release,
	.opendir = do_open, .readdir = do_readdir, .releasedir = do_release,
};

int main(int argc, char **argv)
{
	char *options[] = { argv[0], "-oallow_other,default_permissions,fsname=mirror", NULL };
	struct fuse_args arguments = FUSE_ARGS_INIT(2, options);
	int status = -1;

	if (argc < 3 || (root.fd = open(argv[1], O_RDONLY | O_DIRECTORY)) < 0)
		return fprintf(stderr, "mirror SOURCE MOUNTPOINT [SOCKET]\n"), 64;
	session = fuse_session_new(&arguments, &operations, sizeof(operations), NULL);
#ifdef HOSTWATCH
	struct hostwatch_options wanted;
	pthread_t thread;

	hostwatch_options_init(&wanted, sizeof(wanted));
	wanted.root_fd = root.fd;
	wanted.socket_path = argc > 3 ? argv[3] : NULL;
	wanted.options = HW_SUPPRESS_ECHO;
	if (hostwatch_open(&wanted, &watch) < 0)
		return fprintf(stderr, "mirror: %s\n", hostwatch_error_text()), 69;
	hostwatch_fuse_init(&apply, session);
	apply.hold = hold;
	apply.release = release;
	apply.links = links;
	apply.nodes = visit_nodes;
#endif
	if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[2]))
		return 1;
#ifdef HOSTWATCH
	if (!pthread_create(&thread, NULL, follow, NULL))
#endif
		status = fuse_session_loop_mt(session, NULL);
#ifdef HOSTWATCH
	if (status) /* not unmounted: the thread may wait for what nobody answers any more */
		umount2(argv[2], MNT_FORCE | MNT_DETACH);
#endif
	fuse_session_unmount(session);
	return status < 0;
}
