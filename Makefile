# hostwatchd. `make help` lists the targets.

SWIFT ?= swift
export SWIFT
DESTDIR ?=
PREFIX ?= /usr
LIBDIR ?= $(PREFIX)/lib

include packaging/library.mk

.DEFAULT_GOAL = help
.PHONY: help build release test bench bench-pieces bench-check soak fuzz faults test-asan test-tsan demo docc install uninstall deb install-packages format lint clean

help:
	@sed -n 's/^#: //p' $(MAKEFILE_LIST)

#: make build             debug build
build:
	$(SWIFT) build

#: make release           optimised build that needs no Swift runtime on the host
release:
	$(SWIFT) build -c release --static-swift-stdlib --disable-local-rpath \
	  -Xlinker --gc-sections -Xlinker -s -Xlinker -z -Xlinker now \
	  -Xcc -ffile-prefix-map=$(CURDIR)=. -Xcxx -ffile-prefix-map=$(CURDIR)=. \
	  -Xswiftc -file-prefix-map -Xswiftc $(CURDIR)=.

#: make test              every test; installs missing packages, as root; without
#:                        root it says what it left out
test: install-packages
	scripts/test

#: make bench             the daemon against the least a watcher can do, and against
#:                        other watchers if they are installed (root; ten minutes).
#:                        BENCH="--quick --only storm" and the like; figures in out/
bench: release
	mkdir -p out
	Benchmarks/end-to-end/run --json out/bench.json $(BENCH)

#: make bench-pieces      the parts of an event's way one by one
bench-pieces:
	cd Benchmarks && $(SWIFT) package -c release -Xswiftc -enable-testing benchmark

#: make bench-check       instructions, allocations, memory against the baseline
bench-check:
	cd Benchmarks && $(SWIFT) build -c release -Xswiftc -enable-testing --product figures
	Benchmarks/check

#: make soak MINUTES=10   everything at once for so long: sessions, mounts, hostile
#:                        clients, restarts, kills; figures as it goes (root)
soak: build
	scripts/soak $(MINUTES)

#: make fuzz SECONDS=60   the fuzzers, each for so long, under AddressSanitizer; without it
#:                        with SANITIZE=none (root for one of them)
fuzz:
	scripts/fuzz $(or $(SECONDS),60)

#: make faults            each system call of the daemon fails, in turn, with each errno;
#:                        some half an hour (root)
faults: build
	HOSTWATCH_FAULTS=all Tests/SystemTests/run test_faults

#: make test-asan         the unit and kernel tests under AddressSanitizer
test-asan:
	scripts/test-sanitized address

#: make test-tsan         the same under ThreadSanitizer
test-tsan:
	scripts/test-sanitized thread

#: make demo              shows the daemon at work on a scratch filesystem; installs
#:                        missing packages and builds (root)
demo:
	scripts/demo

#: make docc              the Swift library's documentation, in .build/docc
docc:
	scripts/docc

#: make install-packages  what Debian has to have for building and testing (root)
install-packages:
	scripts/install-packages

#: make install           installs the release build and the C library; heeds
#:                        DESTDIR=, PREFIX= and LIBDIR=
install: release library
	scripts/install "$(DESTDIR)" "$(PREFIX)" "$(LIBDIR)"

#: make uninstall         takes that away again, but not the configuration
uninstall:
	scripts/install --uninstall "$(DESTDIR)" "$(PREFIX)" "$(LIBDIR)"

#: make deb               Debian packages in .build/deb; installs missing packages
deb: install-packages release library
	scripts/make-deb

#: make format            formats the Swift sources
format:
	$(SWIFT) format --in-place --recursive Sources Tests Fuzz/Sources Fuzz/Package.swift \
		Benchmarks/Sources Benchmarks/Benchmarks Benchmarks/Package.swift Package.swift

#: make lint              checks their format
lint:
	$(SWIFT) format lint --strict --recursive Sources Tests Fuzz/Sources Fuzz/Package.swift \
		Benchmarks/Sources Benchmarks/Benchmarks Benchmarks/Package.swift Package.swift

#: make clean             removes what was built
clean:
	rm -rf .build Benchmarks/.build Fuzz/.build* out
