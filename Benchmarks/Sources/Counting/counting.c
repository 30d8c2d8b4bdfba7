// SPDX-License-Identifier: Apache-2.0
//
// malloc and its kin, in place of libc's own for the whole process, libc's
// doing the work. One thread counts; others would be counted roughly.

#include "counting.h"

#include <errno.h>
#include <malloc.h>
#include <stddef.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static uint64_t allocations;
static int64_t live;

static void *counted(void *p)
{
	allocations++;
	live += (int64_t)malloc_usable_size(p);
	return p;
}

void *malloc(size_t size)
{
	return counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
	return counted(__libc_calloc(count, size));
}

void *realloc(void *old, size_t size)
{
	size_t before = malloc_usable_size(old);
	void *p = __libc_realloc(old, size);

	if (p || !size)
		live -= (int64_t)before;
	return p ? counted(p) : p;
}

void *memalign(size_t alignment, size_t size)
{
	return counted(__libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
	return memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
	void *p = memalign(alignment, size);

	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

void free(void *p)
{
	live -= (int64_t)malloc_usable_size(p);
	__libc_free(p);
}

uint64_t counting_allocations(void)
{
	return allocations;
}

int64_t counting_live_bytes(void)
{
	return live;
}

__attribute__((noinline)) uint64_t counting_region(void (*body)(void *),
						   void *context)
{
	uint64_t before = allocations;

	body(context);
	return allocations - before;
}
