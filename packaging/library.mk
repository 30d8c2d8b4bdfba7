# SPDX-License-Identifier: Apache-2.0
# The C library as others link it: `make library` puts it into $(C_OUT).
# Programs of this package have it linked in and do not use these files.

C_OUT = .build/c
SOVERSION = 0
C_VERSION = $(shell scripts/version)
CFLAGS ?= -O2 -g -Wall -Wextra
C_HARDENING = -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fstack-clash-protection -Wformat -Werror=format-security
C_FLAGS = -std=c11 -fPIC -pthread -ffile-prefix-map=$(CURDIR)=. $(C_HARDENING) $(CFLAGS)
C_LINK = -Wl,-z,relro -Wl,-z,now -Wl,-z,defs -Wl,--as-needed $(LDFLAGS)

C_SOURCES = $(wildcard Sources/CHostWatch/*.c)
C_HEADERS = $(wildcard Sources/CHostWatch/*.h Sources/CHostWatch/include/*.h)
C_OBJECTS = $(C_SOURCES:Sources/CHostWatch/%.c=$(C_OUT)/%.o)
C_SHARED = $(C_OUT)/libhostwatch.so.$(C_VERSION)

$(C_OUT)/%.o: Sources/CHostWatch/%.c $(C_HEADERS) packaging/library.mk
	@mkdir -p $(C_OUT)
	$(CC) $(C_FLAGS) -ISources/CHostWatch/include -c $< -o $@

$(C_OUT)/libhostwatch.a: $(C_OBJECTS)
	rm -f $@
	$(AR) rcD $@ $(C_OBJECTS)

$(C_SHARED): $(C_OBJECTS) packaging/libhostwatch.map
	$(CC) -shared -pthread -Wl,-soname,libhostwatch.so.$(SOVERSION) \
	  -Wl,--version-script=packaging/libhostwatch.map $(C_LINK) $(C_OBJECTS) -o $@

.PHONY: library
#: make library           the C library, static and shared, in .build/c
library: $(C_OUT)/libhostwatch.a $(C_SHARED)
