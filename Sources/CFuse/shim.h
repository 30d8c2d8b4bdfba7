/* SPDX-License-Identifier: Apache-2.0 */
/* The API of libfuse 3.14, as Debian 12 has it. */
#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
