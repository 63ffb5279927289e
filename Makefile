# One purpose a target; `make` alone lists them. What a target does beyond one command is a script.

.DEFAULT_GOAL := help
.PHONY: help demo build deps test unit sim system soak bench bench-quick bench-full bench-publish bench-deps bench-build \
	lint docs fmt check-fmt install clean

PREFIX ?= /usr/local
# cargo's own variable, so that `make` finds what cargo builds.
TARGET := $(or $(CARGO_TARGET_DIR),target)
# What the tests skipped on this machine, and what a soak measured.
SKIPS := $(abspath $(TARGET))/skipped-tests
FIGURES := $(abspath $(TARGET))/soak-figures
# Which run is published.
FROM ?= bench-full

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

demo: ## four workers of an unmodified Python server behind one port, in about a minute
	scripts/demo

build: ## the whole workspace, for development
	cargo build --workspace --all-targets --all-features

deps: ## what the end-to-end tests need: Debian's packages (as root), Python's and Node's into tests/.deps
	scripts/deps

# `build`, `unit`, `sim` and `system` name the same packages and features, so that cargo compiles once.
# Two tiers: this one with small counts, `soak` with the figures of every promise.
test: deps check-fmt lint build unit sim system ## everything that must hold before a commit

unit: ## unit tests of every package
	cargo test --workspace --exclude croupier-tests --all-features

sim: ## the simulator: seeds and steps by SIM_SEED, SIM_SEEDS, SIM_STEPS
	cargo test --workspace --all-features --test sim

# Each test counts processes and descriptors, so they run one after another anyway.
system: ## end-to-end tests with real processes
	@mkdir -p $(TARGET) && rm -f $(SKIPS)
	CROUPIER_SKIPS=$(SKIPS) cargo test --workspace --all-features --test system -- --test-threads=2
	scripts/check-skips $(SKIPS)

soak: deps ## the same tests with full counts, and one table of what was measured
	cargo build --release -p croupier -p croupier-preload
	scripts/soak $(FIGURES) $(SKIPS)

bench: bench-build ## croupier beside SO_REUSEPORT, a shared socket, the floor and proxies: about 20 minutes
	$(TARGET)/release/croupier-bench run --out $(TARGET)/bench

bench-quick: bench-build ## the same with fewer engines, workloads and rounds: about 2 minutes
	$(TARGET)/release/croupier-bench run --quick --out $(TARGET)/bench-quick

bench-full: bench-build ## every engine under every workload: about 55 minutes
	$(TARGET)/release/croupier-bench run --full --out $(TARGET)/bench-full

# With what the last soak measured, where there was one.
bench-publish: ## the last `make bench-full` (FROM=bench: the last `make bench`) into bench/*.md, bench/chart.svg and README.md
	cargo run --release -q -p croupier-bench --bin croupier-bench -- report $(TARGET)/$(FROM) --publish bench \
		--readme README.md $(if $(wildcard $(FIGURES)),--figures $(FIGURES))

bench-deps: ## what is compared with: wrk, haproxy, nginx, Node, by Debian's packages (as root)
	scripts/bench-deps

bench-build: bench-deps
	cargo build --release -p croupier -p croupier-preload -p croupier-bench

lint: ## clippy with warnings as errors, and the size of the shim
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	@if [ -x scripts/shim-size ]; then scripts/shim-size; fi

docs: ## write the README's table of flags anew
	CROUPIER_DOCS=write cargo test -p croupier --all-features --lib the_readme_has_every_flag

fmt: ## format everything
	cargo fmt --all

check-fmt:
	cargo fmt --all --check

install: ## into PREFIX (default /usr/local)
	cargo build --release -p croupier -p croupier-preload -p croupier-bench
	cargo build --release -p croupier-worker --features capi
	install -D -m 755 $(TARGET)/release/croupier $(DESTDIR)$(PREFIX)/bin/croupier
	install -D -m 755 $(TARGET)/release/croupier-bench $(DESTDIR)$(PREFIX)/bin/croupier-bench
	install -D -m 755 $(TARGET)/release/libcroupier_preload.so \
		$(DESTDIR)$(PREFIX)/lib/croupier/libcroupier_preload.so
	install -D -m 755 $(TARGET)/release/libcroupier_worker.so $(DESTDIR)$(PREFIX)/lib/libcroupier_worker.so
	install -D -m 644 worker-shim/include/croupier.h $(DESTDIR)$(PREFIX)/include/croupier.h
	scripts/install-docs $(TARGET)/release/croupier $(DESTDIR)$(PREFIX)/share

clean: ## remove what was built and what `make deps` put into tests/.deps
	cargo clean
	rm -rf tests/.deps
