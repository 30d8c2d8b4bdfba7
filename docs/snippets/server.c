/* A lookup is registered before it is answered; a thread turns events into
 * invalidations. `se` is the server's struct fuse_session. */
static int on_lookup(struct hostwatch *h, int fd, const struct stat *st,
		     uint64_t nodeid, uint64_t generation)
{
	return hostwatch_register(h, fd, nodeid, generation, 0, &st->st_ctim);
}

static void *event_thread(void *h)
{
	struct hostwatch_event e;

	while (hostwatch_next(h, &e, -1) == 1) {
		if (e.kind != HOSTWATCH_EVENT)
			continue; /* DISCONNECTED: hostwatch_reconnect() */
		if (e.node.nodeid)
			fuse_lowlevel_notify_inval_inode(se, e.node.nodeid, 0,
							 0);
		if (e.dir.nodeid && e.name_size)
			fuse_lowlevel_notify_inval_entry(
				se, e.dir.nodeid, e.name, e.name_size);
		if (e.new_dir.nodeid && e.new_name_size)
			fuse_lowlevel_notify_inval_entry(se, e.new_dir.nodeid,
							 e.new_name,
							 e.new_name_size);
	}
	return NULL;
}
