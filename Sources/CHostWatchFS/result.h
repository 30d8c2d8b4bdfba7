/* SPDX-License-Identifier: Apache-2.0 */
#ifndef RESULT_H
#define RESULT_H

#include <errno.h>

/* Returns what the call does, or -errno. */
#define RESULT(call)                                                           \
	do {                                                                   \
		long result = (long)(call);                                    \
		return result < 0 ? -errno : result;                           \
	} while (0)

#endif
