/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: an O_TMPFILE object is reported under the name "#" and its inode number
 * in the directory it was opened in, and so it still is when it is closed after
 * linkat(2) gave it a name.
 * Relied on by: the reconciler, which never lets such a name out.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"

int main(int argc, char **argv)
{
	char name[64], link[64], want[128], want2[128];
	struct stat status;

	assume_begin(argc, argv);
	know("root", ".");
	int group = watch(REST);
	int file = MUST(open(".", O_TMPFILE | O_RDWR, 0644));

	MUST(fstat(file, &status));
	sprintf(link, "/proc/self/fd/%d", file);
	drain(group);
	MUST(write(file, "x", 1));
	MUST(linkat(AT_FDCWD, link, AT_FDCWD, "f", AT_SYMLINK_FOLLOW));
	know("f", "f");
	sprintf(name, "#%llu", (unsigned long long)status.st_ino);
	sprintf(want, "MODIFY root/%s =f", name);
	EXPECT(group, want, "ATTRIB =f", "CREATE root/f =f");
	close(file);
	sprintf(want2, "CLOSE_WRITE root/%s =f", name);
	EXPECT(group, want2);
	return 0;
}
