/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of this folder have in common. */
#ifndef COMMON_H
#define COMMON_H

#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

enum { DIRECTORIES = 64, FILES_PER_DIRECTORY = 1000 };

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* The CPU time of this process, user and system. */
static inline uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static inline void sleep_until(uint64_t ns)
{
	struct timespec t = {.tv_sec = (time_t)(ns / 1000000000),
			     .tv_nsec = (long)(ns % 1000000000)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL))
		;
}

static inline int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Prints percentiles of `count` latencies, in nanoseconds, as JSON. */
static inline void print_latencies(uint64_t *latencies, size_t count)
{
	qsort(latencies, count, sizeof(*latencies), compare_u64);
	printf("{\"count\": %zu, \"p50_ns\": %lu, \"p99_ns\": %lu, "
	       "\"max_ns\": %lu}\n",
	       count, latencies[count / 2], latencies[count * 99 / 100],
	       latencies[count - 1]);
	fflush(stdout);
}

/* Number `index` of the registered files, below the filesystem's top. */
static inline void node_path(char *path, size_t size, uint64_t index)
{
	snprintf(path, size, "nodes/%lu/%lu", index / FILES_PER_DIRECTORY,
		 index % FILES_PER_DIRECTORY);
}

#endif
