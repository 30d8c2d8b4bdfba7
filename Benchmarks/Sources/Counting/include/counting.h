/* SPDX-License-Identifier: Apache-2.0 */
/* What a stretch of code allocates, and where callgrind counts. */
#ifndef COUNTING_H
#define COUNTING_H

#include <stdint.h>

/* Calls of malloc, calloc, realloc and their kin since the start. */
uint64_t counting_allocations(void);
/* Bytes that malloc has given out and not got back, as malloc_usable_size has it. */
int64_t counting_live_bytes(void);
/* Calls body(context) and returns how often it allocated. callgrind is told to
 * count while this runs. */
uint64_t counting_region(void (*body)(void *), void *context);

#endif
