# hostwatchd. `make help` lists the targets.

SWIFT ?= swift
DESTDIR ?=
PREFIX ?= /usr

.PHONY: help build release test bench bench-pieces bench-check soak demo install install-packages format lint clean

help:
	@sed -n 's/^#: //p' Makefile

#: make build             debug build
build:
	$(SWIFT) build

#: make release           optimised build that needs no Swift runtime on the host
release:
	$(SWIFT) build -c release --static-swift-stdlib -Xlinker --gc-sections -Xlinker -s

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

#: make soak MINUTES=10   random histories and hostile clients for so long (root)
soak: build
	scripts/soak $(MINUTES)

#: make demo              shows the daemon at work on a scratch filesystem; installs
#:                        missing packages and builds (root)
demo:
	SWIFT="$(SWIFT)" scripts/demo

#: make install-packages  what Debian has to have for building and testing (root)
install-packages:
	scripts/install-packages

#: make install           installs the release build; DESTDIR= and PREFIX= are heeded
install: release
	scripts/install "$(DESTDIR)" "$(PREFIX)"

#: make format            formats the Swift sources
format:
	$(SWIFT) format --in-place --recursive Sources Tests Benchmarks/Sources Benchmarks/Benchmarks \
		Benchmarks/Package.swift Package.swift

#: make lint              checks their format
lint:
	$(SWIFT) format lint --strict --recursive Sources Tests Benchmarks/Sources Benchmarks/Benchmarks \
		Benchmarks/Package.swift Package.swift

#: make clean             removes what was built
clean:
	rm -rf .build
