/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fact: a directory's descriptor may list it as it was when it was opened or
 * last rewound (btrfs does); after a rewind every entry made before is there.
 * Relied on by: the rule that a server reads a directory anew after it has been
 * registered.
 * Filesystems: ext4 xfs btrfs tmpfs
 */
#include "assume.h"
#include <dirent.h>

static bool lists(DIR *directory, const char *name)
{
	struct dirent *entry;
	bool found = false;

	while ((entry = readdir(directory)))
		found |= strcmp(entry->d_name, name) == 0;
	return found;
}

int main(int argc, char **argv)
{
	assume_begin(argc, argv);
	make_directory("d");
	touch("d/old");
	DIR *directory = opendir("d");
	HOLDS(directory);
	touch("d/new");
	bool at_once = lists(directory, "new");
	if (on("btrfs"))
		HOLDS(!at_once);
	rewinddir(directory);
	HOLDS(lists(directory, "new"));
	return 0;
}
