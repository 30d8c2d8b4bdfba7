/* SPDX-License-Identifier: Apache-2.0 */
/* Calls for tests that Swift's Glibc module does not have. */
#ifndef CTESTSUPPORT_H
#define CTESTSUPPORT_H

/* renameat2(2) with RENAME_EXCHANGE; 0 or -errno. */
int test_exchange(const char *a, const char *b);

/* Gives the calling thread a mount namespace whose mounts nobody else sees; 0
 * or -errno. */
int test_separate_mounts(void);

#endif
