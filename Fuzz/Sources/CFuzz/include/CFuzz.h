/* SPDX-License-Identifier: Apache-2.0 */
/* What glibc declares only under _GNU_SOURCE. -errno or -1 on failure. */
#ifndef CFUZZ_H
#define CFUZZ_H

int fuzz_private_mounts(void);		/* a mount namespace of our own */
int fuzz_effective_user(unsigned uid);	/* of this thread's next connect(2) */
int fuzz_memfd(void);
int fuzz_epoll(void);
int fuzz_eventfd(void);
int fuzz_exchange(const char *one, const char *other);

#endif
