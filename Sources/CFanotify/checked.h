/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HW_CHECKED_H
#define HW_CHECKED_H

#include <errno.h>

/* What a system call has returned, or -errno. */
static inline int checked(long result)
{
	return result < 0 ? -errno : (int)result;
}

#endif
