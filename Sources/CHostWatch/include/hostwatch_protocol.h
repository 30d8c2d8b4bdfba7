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

#define HW_SOCKET_PATH "/run/hostwatchd/hostwatchd.sock"

#define HW_PROTOCOL_MAJOR 1u
#define HW_PROTOCOL_MINOR 0u

/* Message types. A reply has its request's type with HW_REPLY set. */
#define HW_INIT 1u
#define HW_REGISTER 2u
#define HW_FORGET 3u /* answered only with an error */
#define HW_INTEREST 4u
#define HW_SYNC 5u
#define HW_STATUS 6u
#define HW_EVENTS 0x4001u
#define HW_LOST 0x4002u
#define HW_RESYNCED 0x4003u
#define HW_DETACHED 0x4004u
#define HW_REPLY 0x8000u

/* hw_init.mode */
#define HW_MODE_NODES 1u
#define HW_MODE_TREE 2u

/* hw_init.options */
#define HW_SUPPRESS_ECHO 0x1u	  /* leave out what this server did itself */
#define HW_EXPLICIT_INTEREST 0x2u /* a node starts with an empty mask */
#define HW_WANT_PID 0x4u	  /* privileged peers only */
#define HW_WANT_PATH 0x8u	  /* TREE only */
#define HW_OPTIONS_ALL 0xfu

/* Event mask bits: fsnotify's values. */
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
#define HW_LOST_KERNEL 1u  /* the kernel's queue overflowed */
#define HW_LOST_SESSION 2u /* this session's queue overflowed */
#define HW_LOST_RESTART 3u /* the daemon was restarted */

/* hw_detached.reason */
#define HW_DETACHED_UNMOUNTED 1u
#define HW_DETACHED_REMOVED 2u /* the share left the configuration */
#define HW_DETACHED_SHUTDOWN 3u

/* Limits that are part of the protocol. */
#define HW_REGISTER_MAX 250u /* descriptors, and so entries, of one REGISTER */
#define HW_PACKET_DEFAULT 65536u
#define HW_PACKET_MIN 4096u
#define HW_PACKET_MIN_WITH_PATH 16384u
#define HW_PACKET_MAX 131072u
#define HW_QUEUE_MIN 65536u
#define HW_INIT_TIMEOUT_SECONDS 5u

/* Limits that the configuration may change: the defaults. */
#define HW_SESSIONS_DEFAULT 1024u
#define HW_FILESYSTEMS_PER_USER_DEFAULT 8u
#define HW_SESSIONS_PER_USER_DEFAULT 64u
#define HW_NODES_DEFAULT 4194304u
#define HW_NODES_UNPRIVILEGED_DEFAULT 65536u
#define HW_QUEUE_DEFAULT 4194304u
#define HW_QUEUE_PER_USER_DEFAULT 67108864u

struct hw_header {
	uint32_t size; /* of the whole message: the packet's length */
	uint16_t type;
	uint16_t flags;	 /* 0 */
	uint64_t unique; /* not 0 in a request, echoed in its reply */
};
HW_ASSERT(sizeof(struct hw_header) == 16, "hw_header");

struct hw_init {
	struct hw_header header;
	uint16_t major;
	uint16_t minor;
	uint32_t options;
	uint64_t events;
	uint32_t max_packet;   /* bytes; 0 = HW_PACKET_DEFAULT */
	uint32_t queue_limit;  /* bytes; 0 = the daemon's default */
	uint32_t max_delay_us; /* microseconds; 0 = send at once */
	uint32_t echo_pid;     /* 0 = the connecting process */
	uint16_t mode;
	uint16_t share_size; /* bytes of the name; 0 when a descriptor is passed */
	uint32_t reserved;
	/* then the share's name, padded with zeros to a multiple of 8 */
};
HW_ASSERT(sizeof(struct hw_init) == 56, "hw_init");

/* Every reply starts so. On an error a UTF-8 sentence follows. */
struct hw_reply {
	struct hw_header header;
	int32_t error; /* 0 or a negative errno */
	uint32_t detail;
};
HW_ASSERT(sizeof(struct hw_reply) == 24, "hw_reply");

struct hw_init_reply {
	struct hw_reply reply;
	uint16_t major;
	uint16_t minor;
	uint32_t options; /* granted */
	uint64_t events;  /* granted */
	uint64_t session;
	uint64_t root_nodeid;	  /* 1 */
	uint64_t root_generation; /* 0 */
	uint32_t max_packet;
	uint32_t queue_limit;
	uint32_t max_nodes;
	uint32_t reserved;
};
HW_ASSERT(sizeof(struct hw_init_reply) == 80, "hw_init_reply");

/* REGISTER, FORGET and INTEREST start so. */
struct hw_batch {
	struct hw_header header;
	uint32_t count;
	uint32_t reserved;
};
HW_ASSERT(sizeof(struct hw_batch) == 24, "hw_batch");

struct hw_register_entry {
	uint64_t nodeid; /* not 0, not 1 */
	uint64_t generation;
	uint64_t interest;  /* 0 = the session's */
	int64_t since_sec;  /* the ctime the server knows; 0.0 = no check */
	uint32_t since_nsec;
	uint32_t reserved;
};
HW_ASSERT(sizeof(struct hw_register_entry) == 40, "hw_register_entry");

struct hw_node {
	uint64_t nodeid;
	uint64_t generation;
};
HW_ASSERT(sizeof(struct hw_node) == 16, "hw_node");

struct hw_interest_entry {
	struct hw_node node;
	uint64_t mask;
};
HW_ASSERT(sizeof(struct hw_interest_entry) == 24, "hw_interest_entry");

/*
 * The reply to REGISTER and INTEREST: `detail` of hw_reply is the count, then
 * int32_t status[count], padded with zeros to a multiple of 8.
 */

struct hw_status {
	struct hw_header header;
	uint32_t what; /* 0 = all */
	uint32_t reserved;
	/* the reply: hw_reply, then a JSON object, not padded */
};
HW_ASSERT(sizeof(struct hw_status) == 24, "hw_status");

struct hw_events {
	struct hw_header header;
	uint32_t count; /* of the records that follow */
	uint32_t reserved;
};
HW_ASSERT(sizeof(struct hw_events) == 24, "hw_events");

struct hw_record {
	uint32_t size; /* with names and padding, a multiple of 8 */
	uint32_t flags;
	uint64_t sequence; /* 1, 2, 3 … per session, without gaps */
	uint64_t mask;
	struct hw_node dir;
	struct hw_node node;
	struct hw_node new_dir;
	uint64_t origin; /* session id of the server that did it, or 0 */
	int32_t pid;	 /* with HW_WANT_PID */
	uint16_t name_size;
	uint16_t new_name_size;
	uint32_t path_size;	/* with HW_WANT_PATH: of dir's path */
	uint32_t new_path_size; /* with HW_WANT_PATH: of new_dir's path */
	/* then name, new name, path, new path; then zeros */
};
HW_ASSERT(sizeof(struct hw_record) == 96, "hw_record");

struct hw_lost {
	struct hw_header header;
	uint32_t reason;
	uint32_t reserved;
	uint64_t sequence; /* of the last record before the gap */
};
HW_ASSERT(sizeof(struct hw_lost) == 32, "hw_lost");

struct hw_resynced {
	struct hw_header header;
	uint64_t sequence;
	uint64_t nodes_checked;
	uint64_t nodes_reported;
};
HW_ASSERT(sizeof(struct hw_resynced) == 40, "hw_resynced");

struct hw_detached {
	struct hw_header header;
	uint32_t reason;
	uint32_t reserved;
};
HW_ASSERT(sizeof(struct hw_detached) == 24, "hw_detached");

#ifdef __cplusplus
}
#endif

#endif
