/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hostwatch protocol, version 1: what a FUSE server and hostwatchd say to
 * each other. This header is the one definition of its numbers and structs;
 * docs/protocol.md says what they mean.
 *
 * AF_UNIX, SOCK_SEQPACKET. One packet is one message, in host byte order.
 * Every struct is a multiple of 8 bytes. Reserved fields and padding are zero.
 * No message carries a file handle, in either direction.
 */
#ifndef HOSTWATCH_PROTOCOL_H
#define HOSTWATCH_PROTOCOL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#define HW_ASSERT(cond, text) static_assert(cond, text)
#else
#define HW_ASSERT(cond, text) _Static_assert(cond, text)
#endif

/* Where the daemon listens unless its configuration says otherwise. */
#define HW_SOCKET_PATH "/run/hostwatchd/hostwatchd.sock"

/* Of this header. Another major version is refused; a minor one adds only. */
#define HW_PROTOCOL_MAJOR 1u
#define HW_PROTOCOL_MINOR 0u

/* Message types. A reply has its request's type with HW_REPLY set. */
#define HW_INIT 1u     /* begins a session: struct hw_init */
#define HW_REGISTER 2u /* objects by descriptor: struct hw_batch, entries */
#define HW_FORGET 3u   /* hw_batch, hw_node[]; answered only with an error */
#define HW_INTEREST 4u /* masks of nodes: hw_batch, hw_interest_entry[] */
#define HW_SYNC 5u     /* answered after all that came before: a header */
#define HW_STATUS 6u   /* figures as JSON: struct hw_status */
#define HW_EVENTS 0x4001u   /* struct hw_events, then records */
#define HW_LOST 0x4002u	    /* a gap begins: struct hw_lost */
#define HW_RESYNCED 0x4003u /* and is made up for: struct hw_resynced */
#define HW_DETACHED 0x4004u /* the session ends: struct hw_detached */
#define HW_REPLY 0x8000u

/* hw_init.mode */
#define HW_MODE_NODES 1u /* what was registered, in the server's nodeids */
#define HW_MODE_TREE 2u	 /* all below the root, in inode numbers */

/* hw_init.options */
#define HW_SUPPRESS_ECHO 0x1u	  /* leave out what this server did itself */
#define HW_EXPLICIT_INTEREST 0x2u /* a node starts with an empty mask */
#define HW_WANT_PID 0x4u	  /* hw_record.pid; privileged peers only */
#define HW_WANT_PATH 0x8u	  /* paths of directories; TREE only */
#define HW_OPTIONS_ALL 0xfu

/* Event mask bits: fsnotify's values and meaning. Several stand in one record
 * only where the kernel merged them; HW_ISDIR goes with each of a directory. */
#define HW_ACCESS 0x1u
#define HW_MODIFY 0x2u
#define HW_ATTRIB 0x4u
#define HW_CLOSE_WRITE 0x8u
#define HW_CLOSE_NOWRITE 0x10u
#define HW_OPEN 0x20u
#define HW_CREATE 0x100u
#define HW_DELETE 0x200u
#define HW_DELETE_SELF 0x400u
#define HW_OPEN_EXEC 0x1000u
#define HW_RENAME 0x10000000u
#define HW_ISDIR 0x40000000u
/* Every bit above but HW_ISDIR, which asks for nothing. */
#define HW_EVENTS_ALL 0x1000173fu
/* What a server needs to keep its view of a share true: MODIFY, ATTRIB,
 * CLOSE_WRITE, CREATE, DELETE, DELETE_SELF, RENAME. */
#define HW_EVENTS_DEFAULT 0x1000070eu
HW_ASSERT(HW_EVENTS_ALL == (HW_ACCESS | HW_MODIFY | HW_ATTRIB | HW_CLOSE_WRITE |
			    HW_CLOSE_NOWRITE | HW_OPEN | HW_CREATE | HW_DELETE |
			    HW_DELETE_SELF | HW_OPEN_EXEC | HW_RENAME),
	  "HW_EVENTS_ALL");
HW_ASSERT(HW_EVENTS_DEFAULT == (HW_MODIFY | HW_ATTRIB | HW_CLOSE_WRITE |
				HW_CREATE | HW_DELETE | HW_DELETE_SELF |
				HW_RENAME),
	  "HW_EVENTS_DEFAULT");

/* hw_record.flags */
#define HW_RECHECK 0x1u	  /* the object may have changed: look again */
#define HW_MOVED_OUT 0x2u /* a RENAME to where this session knows nothing */
#define HW_MOVED_IN 0x4u  /* a RENAME from where this session knows nothing */
#define HW_CORRECTED 0x8u /* worked out from the filesystem */
#define HW_REPLACED 0x10u /* a RENAME that removed what had the new name */

/* hw_lost.reason */
#define HW_LOST_KERNEL 1u  /* the kernel's queue overflowed, or the
				* daemon could not tell records apart */
#define HW_LOST_SESSION 2u /* this session's queue overflowed */
#define HW_LOST_RESTART 3u /* the daemon was restarted */

/* hw_detached.reason */
#define HW_DETACHED_UNMOUNTED 1u /* the filesystem is gone */
#define HW_DETACHED_REMOVED 2u /* the share left the configuration */
#define HW_DETACHED_SHUTDOWN 3u /* the daemon stops */

/* Limits that are part of the protocol; of packets and queues in bytes. */
#define HW_REGISTER_MAX 250u /* descriptors, and so entries, of one REGISTER */
#define HW_PACKET_DEFAULT 65536u
#define HW_PACKET_MIN 4096u
#define HW_PACKET_MIN_WITH_PATH 16384u
#define HW_PACKET_MAX 131072u
#define HW_QUEUE_MIN 65536u
#define HW_INIT_TIMEOUT_SECONDS 5u

/* Limits that the configuration may change: the defaults. Per user: of a uid
 * that is not privileged; of nodes per session, of queues in bytes. */
#define HW_SESSIONS_DEFAULT 1024u
#define HW_FILESYSTEMS_PER_USER_DEFAULT 8u
#define HW_SESSIONS_PER_USER_DEFAULT 64u
#define HW_NODES_DEFAULT 4194304u
#define HW_NODES_UNPRIVILEGED_DEFAULT 65536u
#define HW_QUEUE_DEFAULT 4194304u
#define HW_QUEUE_PER_USER_DEFAULT 67108864u

/* Every message starts so. */
struct hw_header {
	uint32_t size; /* of the whole message: the packet's length */
	uint16_t type; /* HW_INIT … HW_DETACHED */
	uint16_t flags;	 /* 0 */
	uint64_t unique; /* not 0 in a request, echoed in its reply */
};
HW_ASSERT(sizeof(struct hw_header) == 16, "hw_header");

/* The first request: with the root's descriptor (SCM_RIGHTS), or a share's name. */
struct hw_init {
	struct hw_header header; /* HW_INIT */
	uint16_t major;		 /* HW_PROTOCOL_MAJOR */
	uint16_t minor;		 /* HW_PROTOCOL_MINOR */
	uint32_t options;	 /* wanted: HW_SUPPRESS_ECHO … */
	uint64_t events;	 /* wanted: a mask */
	uint32_t max_packet;   /* bytes; 0 = HW_PACKET_DEFAULT */
	uint32_t queue_limit;  /* bytes; 0 = the daemon's default */
	uint32_t max_delay_us; /* microseconds; 0 = send at once */
	uint32_t echo_pid;     /* 0 = the connecting process */
	uint16_t mode;	       /* HW_MODE_NODES or HW_MODE_TREE */
	uint16_t share_size; /* bytes of the name; 0 when a descriptor is passed */
	uint32_t reserved; /* 0 */
	/* then the share's name, padded with zeros to a multiple of 8 */
};
HW_ASSERT(sizeof(struct hw_init) == 56, "hw_init");

/* Every reply starts so. On an error a UTF-8 sentence follows. */
struct hw_reply {
	struct hw_header header; /* the request's type | HW_REPLY, its unique */
	int32_t error;		 /* 0 or a negative errno */
	uint32_t detail;	 /* a count where the request has one, else 0 */
};
HW_ASSERT(sizeof(struct hw_reply) == 24, "hw_reply");

/* What INIT was granted. */
struct hw_init_reply {
	struct hw_reply reply; /* error is 0, or nothing follows but its text */
	uint16_t major;	       /* the daemon's */
	uint16_t minor;	       /* the daemon's */
	uint32_t options;      /* granted */
	uint64_t events;       /* granted */
	uint64_t session;      /* its id, which origin names */
	uint64_t root_nodeid;	  /* 1 */
	uint64_t root_generation; /* 0 */
	uint32_t max_packet;	  /* granted; bytes, of what the daemon sends */
	uint32_t queue_limit;	  /* granted; bytes */
	uint32_t max_nodes;	  /* that may be registered at a time */
	uint32_t reserved; /* 0 */
};
HW_ASSERT(sizeof(struct hw_init_reply) == 80, "hw_init_reply");

/* REGISTER, FORGET and INTEREST start so. */
struct hw_batch {
	struct hw_header header; /* HW_REGISTER, HW_FORGET or HW_INTEREST */
	uint32_t count;		 /* of the entries that follow */
	uint32_t reserved; /* 0 */
};
HW_ASSERT(sizeof(struct hw_batch) == 24, "hw_batch");

/* One of REGISTER's, for the descriptor at the same place. */
struct hw_register_entry {
	uint64_t nodeid;     /* the server's; not 0, not 1 */
	uint64_t generation; /* of the nodeid: new when it is used again */
	uint64_t interest;  /* 0 = the session's */
	int64_t since_sec;  /* the ctime the server knows; 0.0 = no check */
	uint32_t since_nsec; /* below 1,000,000,000 */
	uint32_t reserved; /* 0 */
};
HW_ASSERT(sizeof(struct hw_register_entry) == 40, "hw_register_entry");

/* An identity. nodeid 0: none, or none that the session knows. */
struct hw_node {
	uint64_t nodeid;     /* NODES: the server's; TREE: the inode number */
	uint64_t generation; /* NODES: the server's; TREE: the filesystem's */
};
HW_ASSERT(sizeof(struct hw_node) == 16, "hw_node");

/* One of INTEREST's. */
struct hw_interest_entry {
	struct hw_node node; /* registered before */
	uint64_t mask;	     /* what is told of it from here on */
};
HW_ASSERT(sizeof(struct hw_interest_entry) == 24, "hw_interest_entry");

/*
 * The reply to REGISTER and INTEREST: `detail` of hw_reply is the count, then
 * int32_t status[count], padded with zeros to a multiple of 8.
 */

/* Asks for figures. */
struct hw_status {
	struct hw_header header; /* HW_STATUS */
	uint32_t what;		 /* 0 = all */
	uint32_t reserved; /* 0 */
	/* the reply: hw_reply, then a JSON object, not padded */
};
HW_ASSERT(sizeof(struct hw_status) == 24, "hw_status");

/* What happened, in order. */
struct hw_events {
	struct hw_header header; /* HW_EVENTS; unique is 0 */
	uint32_t count; /* of the records that follow */
	uint32_t reserved; /* 0 */
};
HW_ASSERT(sizeof(struct hw_events) == 24, "hw_events");

/* One change. */
struct hw_record {
	uint32_t size;	   /* with names and padding, a multiple of 8 */
	uint32_t flags;	   /* HW_RECHECK … HW_REPLACED */
	uint64_t sequence; /* 1, 2, 3 … per session, without gaps */
	uint64_t mask;	   /* what happened */
	struct hw_node dir;	/* in which the name is, or was */
	struct hw_node node;	/* the object */
	struct hw_node new_dir; /* of a RENAME: where to */
	uint64_t origin; /* session id of the server that did it, or 0 */
	int32_t pid;	 /* with HW_WANT_PID */
	uint16_t name_size;	/* bytes; 0 = no name is told */
	uint16_t new_name_size; /* bytes; of a RENAME */
	uint32_t path_size;	/* with HW_WANT_PATH: of dir's path */
	uint32_t new_path_size; /* with HW_WANT_PATH: of new_dir's path */
	/* then name, new name, path, new path; then zeros */
};
HW_ASSERT(sizeof(struct hw_record) == 96, "hw_record");

/* Records are missing from here on. */
struct hw_lost {
	struct hw_header header; /* HW_LOST */
	uint32_t reason;	 /* HW_LOST_KERNEL … */
	uint32_t reserved; /* 0 */
	uint64_t sequence; /* of the last record before the gap */
};
HW_ASSERT(sizeof(struct hw_lost) == 32, "hw_lost");

/* What the gap had is told: by records for NODES, by reading anew for TREE. */
struct hw_resynced {
	struct hw_header header; /* HW_RESYNCED */
	uint64_t sequence;	 /* of the last record before this */
	uint64_t nodes_checked;	 /* registered nodes that were looked at */
	uint64_t nodes_reported; /* of them, told as changed or gone */
};
HW_ASSERT(sizeof(struct hw_resynced) == 40, "hw_resynced");

/* The last message; the connection is closed behind it. */
struct hw_detached {
	struct hw_header header; /* HW_DETACHED */
	uint32_t reason;	 /* HW_DETACHED_UNMOUNTED … */
	uint32_t reserved; /* 0 */
};
HW_ASSERT(sizeof(struct hw_detached) == 24, "hw_detached");

#ifdef __cplusplus
}
#endif

#endif
