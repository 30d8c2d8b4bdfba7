/* The library stays in step by itself: after a restart of the daemon it
 * connects again and has all nodes registered. */
static int open_session(struct hostwatch **h, hostwatch_reregister *all_nodes)
{
	struct hostwatch_options o;

	hostwatch_options_init(&o, sizeof(o));
	o.share = "src";
	o.options = HW_SUPPRESS_ECHO;
	o.flags = HOSTWATCH_RECONNECT;
	o.reregister = all_nodes;
	return hostwatch_open(&o, h);
}

/* A lookup is registered before it is answered; a thread turns events into
 * invalidations. `se` is the server's struct fuse_session; expire_names() is
 * the server's, too: an inval_entry for each name it has told of a directory. */
static int on_lookup(struct hostwatch *h, int fd, const struct stat *st,
		     uint64_t nodeid, uint64_t generation)
{
	return hostwatch_register(h, fd, nodeid, generation, 0, &st->st_ctim);
}

static void *event_thread(void *h)
{
	struct hostwatch_event e;

	while (hostwatch_next(h, &e, -1) == 1) {
		if (e.kind == HOSTWATCH_OUT_OF_STEP)
			may_cache = false; /* short timeouts from here on */
		if (e.kind == HOSTWATCH_IN_STEP)
			may_cache = true; /* what changed has been told */
		if (e.node.nodeid)
			fuse_lowlevel_notify_inval_inode(se, e.node.nodeid, 0,
							 0);
		/* After a gap nobody says which names have changed. */
		if (e.flags & HW_RECHECK && e.mask & HW_ISDIR)
			expire_names(e.node.nodeid);
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
