// SPDX-License-Identifier: Apache-2.0
// The headers, and the library's names, from C++.
#include <hostwatch.h>
#include <hostwatch_fsnotify.h>
#include <hostwatch_protocol.h>

#if __has_include(<fuse3/fuse_lowlevel.h>)
#define FUSE_USE_VERSION 34
#include <fuse3/fuse_lowlevel.h>
#include <hostwatch_fuse.h>
#endif

#include <cerrno>
#include <cstdio>

int main()
{
	hostwatch_options options;
	hostwatch *h = nullptr;
	hostwatch_event event{};

	hostwatch_options_init(&options, sizeof options);
	options.socket_path = "/nonexistent/hostwatchd.sock";
	options.share = "src";
	event.kind = HOSTWATCH_EVENT;
	bool good = hostwatch_open(&options, &h) == -ENOENT && h == nullptr &&
		    *hostwatch_error_text() && event.mask == 0;
	std::puts(good ? "ok cxx" : "not ok cxx");
	return good ? 0 : 1;
}
