/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Registers a directory tree as a FUSE server does that hands out nodeids, and
 * prints what happens to it in those, as nodeid:generation. Needs root.
 *
 *   $ cd Sources/CHostWatch && cc -pthread -Iinclude -o nodes ../../examples/nodes.c *.c
 *   # ./nodes /srv/src
 *   lookup 1:0 "notes.txt" = 2:1
 *   RENAME 1:0 "notes.txt" -> 1:0 "old.txt" node 2:1
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hostwatch.h"

#define ID(node) (uintmax_t)(node).nodeid, (uintmax_t)(node).generation

static struct node {
	union { struct file_handle handle; char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ]; };
	struct hw_node id; /* one generation more each time the nodeid is used */
	int used;
} nodes[8192]; /* by nodeid: 0 is nobody, 1 the root */
static int root, mount;

static void print_event(const struct hostwatch_event *e)
{
	static const char *const names[32] = {
		[0] = "RECHECK ", [1] = "MODIFY ", [2] = "ATTRIB ", [3] = "CLOSE_WRITE ", [8] = "CREATE ",
		[9] = "DELETE ", [10] = "DELETE_SELF ", [28] = "RENAME " };
	for (int bit = 0; bit < 32; bit++) /* bit 0 of the mask would be ACCESS: not asked for */
		fputs(names[bit] && (e->mask | (e->flags & HW_RECHECK)) >> bit & 1 ? names[bit] : "", stdout);
	if (e->dir.nodeid)
		printf("%ju:%ju \"%.*s\" ", ID(e->dir), (int)e->name_size, e->name);
	if (e->new_dir.nodeid)
		printf("-> %ju:%ju \"%.*s\" ", ID(e->new_dir), (int)e->new_name_size, e->new_name);
	if (e->node.nodeid)
		printf("node %ju:%ju ", ID(e->node));
	puts(e->kind == HOSTWATCH_LOST ? "LOST" : e->kind == HOSTWATCH_RESYNCED ? "RESYNCED" :
	     e->flags & HW_REPLACED ? "[replaced]" : "");
}

/* The node of this object, else a free one. An inode number alone may be another object's. */
static struct node *find(struct node *wanted, int fd)
{
	struct node *free = NULL;
	wanted->handle.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(fd, "", &wanted->handle, &mount, AT_EMPTY_PATH) < 0)
		return NULL;
	for (struct node *n = nodes + sizeof(nodes) / sizeof(*nodes) - 1; n > nodes; n--)
		if (!n->used)
			free = n;
		else if (!memcmp(n->bytes, wanted->bytes, sizeof(n->bytes)))
			return n;
	return free;
}

/* What a server does before it answers a LOOKUP; then for all that is below. NULL: that alone. */
static void look_up(struct hostwatch *h, struct node *dir, const char *name)
{
	struct node new = { .bytes = { 0 } }, *n;
	int fd, parent = open_by_handle_at(root, &dir->handle, O_RDONLY | O_DIRECTORY);
	DIR *names = parent < 0 ? NULL : fdopendir(parent);
	struct dirent *entry;
	struct stat st;

	while (names && !name && (entry = readdir(names)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			look_up(h, dir, entry->d_name);
	fd = names && name ? openat(parent, name, O_PATH | O_NOFOLLOW) : -1;
	if (fd >= 0 && !fstat(fd, &st) && (n = find(&new, fd)) && !n->used) {
		new.id = (struct hw_node){ n - nodes, n->id.generation + 1 };
		new.used = !hostwatch_register(h, fd, new.id.nodeid, new.id.generation, 0, &st.st_ctim);
		*n = new;
		printf("lookup %ju:%ju \"%s\" = %ju:%ju\n", ID(dir->id), name, ID(n->id));
		if (n->used && S_ISDIR(st.st_mode))
			look_up(h, n, NULL);
	}
	if (fd >= 0)
		close(fd);
	if (names)
		closedir(names);
}

int main(int argc, char **argv)
{
	struct hostwatch_options options;
	struct hostwatch_event e;
	struct hostwatch *h;
	char name[256];

	hostwatch_options_init(&options, sizeof(options));
	options.root_fd = root = open(argc > 1 ? argv[1] : ".", O_RDONLY | O_DIRECTORY);
	options.socket_path = argc > 2 ? argv[2] : NULL;
	if (root < 0 || !find(&nodes[1], root))
		return perror(argc > 1 ? argv[1] : "."), 1;
	if (hostwatch_open(&options, &h) < 0)
		return fprintf(stderr, "nodes: %s\n", hostwatch_error_text()), 1;
	nodes[1].used = nodes[1].id.nodeid = 1;
	setvbuf(stdout, NULL, _IOLBF, 0);
	look_up(h, nodes + 1, NULL);
	puts("ready");
	while (hostwatch_next(h, &e, -1) == 1 && e.kind < HOSTWATCH_DETACHED) {
		print_event(&e);
		snprintf(name, sizeof(name), "%.*s", (int)(e.mask & HW_RENAME ? e.new_name_size : e.name_size),
			 e.mask & HW_RENAME ? e.new_name : e.name);
		if (e.mask & HW_DELETE_SELF) {
			nodes[e.node.nodeid].used = 0;
			hostwatch_forget(h, &e.node, 1); /* the nodeid may be used again */
		} else if (e.flags & HW_RECHECK && e.mask & HW_ISDIR) {
			look_up(h, nodes + e.node.nodeid, NULL);
		} else if (!e.node.nodeid && *name && e.mask & (HW_CREATE | HW_RENAME)) {
			look_up(h, nodes + (e.mask & HW_RENAME ? e.new_dir : e.dir).nodeid, name);
		}
	}
	return hostwatch_close(h), 1;
}
