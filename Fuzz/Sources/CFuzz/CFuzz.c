/* SPDX-License-Identifier: Apache-2.0 */
#include "CFuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

int fuzz_private_mounts(void)
{
	if (unshare(CLONE_NEWNS) != 0 ||
	    mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0)
		return -errno;
	return 0;
}

int fuzz_effective_user(unsigned uid) { return setresuid(-1, uid, -1); }
int fuzz_memfd(void) { return memfd_create("fuzz", MFD_CLOEXEC); }
int fuzz_epoll(void) { return epoll_create1(EPOLL_CLOEXEC); }
int fuzz_eventfd(void) { return eventfd(0, EFD_CLOEXEC); }

int fuzz_exchange(const char *one, const char *other)
{
	return renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE);
}
