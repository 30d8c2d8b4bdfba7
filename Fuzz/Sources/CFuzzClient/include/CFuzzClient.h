/* SPDX-License-Identifier: Apache-2.0 */
/* The C library, fed with packets. */
#ifndef CFUZZCLIENT_H
#define CFUZZCLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hostwatch.h"

/*
 * What is wrong with a packet, or NULL; *sequence is that of the last record before
 * it, and goes on. A reply is taken for that to a request which it fits.
 */
const char *fuzz_check_packet(const unsigned char *packet, size_t size,
			      uint64_t *sequence);

/* A client and its daemon: the handle, and the daemon's end. Aborts on failure. */
struct hostwatch *fuzz_connect(int *daemon);
/* Sends a packet from there; false once it does not fit, or nobody listens. */
bool fuzz_send(int daemon, const unsigned char *packet, size_t size);

#endif
