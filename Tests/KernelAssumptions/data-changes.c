/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: truncate, fallocate and copy_file_range report MODIFY; a store through
 * a shared mapping and its msync report nothing. chmod and utimensat report
 * ATTRIB.
 * Relied on by: what the protocol promises of MODIFY and ATTRIB.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	append("f", "0123456789");
	append("g", "0123456789");
	know("root", ".");
	know("f", "f");
	int from = MUST(open("g", O_RDONLY));
	int file = MUST(open("f", O_RDWR));
	int group = watch(REST);

	MUST(truncate("f", 5));
	EXPECT(group, "MODIFY root/f =f");
	MUST(ftruncate(file, 4096));
	EXPECT(group, "MODIFY root/f =f");
	MUST(fallocate(file, 0, 0, 8192));
	EXPECT(group, "MODIFY root/f =f");
	MUST(copy_file_range(from, NULL, file, NULL, 10, 0));
	EXPECT(group, "MODIFY root/f =f");
	MUST(fchmod(file, 0600));
	EXPECT(group, "ATTRIB root/f =f");
	MUST(utimensat(AT_FDCWD, "f", NULL, 0));
	EXPECT(group, "ATTRIB root/f =f");

	char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	HOLDS(map != MAP_FAILED);
	map[0] = 'y';
	MUST(msync(map, 4096, MS_SYNC));
	EXPECT_NOTHING(group);
	return 0;
}
