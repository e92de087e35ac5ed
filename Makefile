# make help prints what there is.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
SUITE ?=
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

# Runtime and shim are static musl binaries where the toolchain has that target; .ci/setup adds it.
STATIC_TARGET := $(shell uname -m)-unknown-linux-musl
ifneq ($(wildcard $(shell rustc --print sysroot 2>/dev/null)/lib/rustlib/$(STATIC_TARGET)/lib),)
STATIC_FLAGS := --target $(STATIC_TARGET)
STATIC_DIR := target/$(STATIC_TARGET)/release
else
STATIC_FLAGS :=
STATIC_DIR := target/release
endif
DYNAMIC_DIR := target/release
DAEMON := CARGO_PROFILE_RELEASE_PANIC=unwind CARGO_PROFILE_RELEASE_OPT_LEVEL=s
CTL := CARGO_PROFILE_RELEASE_OPT_LEVEL=s

# Every container pays for its shim's pages as long as it lives (docs/decisions/0302-shim-size.md).
SHIM := CARGO_PROFILE_RELEASE_OPT_LEVEL=z

ROOT := $(filter 0,$(shell id -u))
TOP := $(CURDIR)
# The suites run the release binaries, whatever else has been built since.
BINARIES := ORLOP=$(TOP)/$(STATIC_DIR)/orlop ORLOP_SHIM=$(TOP)/$(STATIC_DIR)/containerd-shim-orlop-v1 \
	ORLOPD=$(TOP)/$(DYNAMIC_DIR)/orlopd ORLOPCTL=$(TOP)/$(DYNAMIC_DIR)/orlopctl

.PHONY: help setup build build-static demo run-demo test test-vm run-tests lint unit integration conformance newest clients bench fuzz fuzz-coverage soak proto install clean
.DEFAULT_GOAL := help

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install what building and testing takes (Debian, as root)
	@.ci/setup

build: build-static ## build the four release binaries, each on its own
	$(DAEMON) $(CARGO) build --release --locked -p orlop-manager
	$(CTL) $(CARGO) build --release --locked -p orlop-ctl

build-static:
ifeq ($(STATIC_FLAGS),)
	@echo "no $(STATIC_TARGET) in this toolchain: runtime and shim are linked dynamically" >&2
endif
	$(CARGO) build --release --locked $(STATIC_FLAGS) -p orlop
	$(SHIM) $(CARGO) build --release --locked $(STATIC_FLAGS) -p orlop-shim

# Set-up may add the static target, which is looked for when a Makefile is read: hence the second make.
demo: ## the whole stack at work, on a machine with nothing but git and Rust (as root)
	@.ci/setup
	@$(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory run-demo

run-demo:
	@$(BINARIES) tests/demo/demo.sh

test: ## all tests, installing what they need; without root, those that need none
	@.ci/setup || [ "$$(id -u)" != 0 ]
	@$(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory run-tests

run-tests:
ifneq ($(ROOT),)
	$(BINARIES) $(CARGO) test --locked --workspace --no-fail-fast
else
	$(BINARIES) $(CARGO) test --locked --workspace --exclude orlop-tests --no-fail-fast
	$(BINARIES) $(CARGO) test --locked -p orlop-tests --lib --test project --no-fail-fast
	@echo "not run without root: the suites runtime, shim, manager, docker, faults, stack, conformance and fuzz"
endif

# In the guest nothing is built: it gets by path the test programs, and the runtime whose guards can be switched off. Guests,
# one after the other: a bare one with the suites that hold anywhere, one for what Docker's containers have of AppArmor, one for
# containers by containerd's and Docker's API, two whose process 1 is systemd, with cgroup v2 and v1, and one with disks after a power cut.
# What the suites mount, and what CRIU asks of the network.
VM_MODULES := loop ext4 quota_v2 crc32c_generic nf_tables nft_compat xt_mark xt_tcpudp veth tun unix_diag inet_diag tcp_diag udp_diag raw_diag netlink_diag \
	af_packet_diag
# What Docker's networks ask of the kernel.
VM_NETWORKS := bridge br_netfilter nf_nat nft_nat nft_masq nft_ct nft_chain_nat nft_fib nft_fib_inet nft_reject nft_reject_inet nft_redir \
	xt_MASQUERADE xt_conntrack xt_addrtype xt_nat xt_REDIRECT nf_conntrack_netlink macvlan ipvlan dummy
# Of the manager's suites those that cgroup v2 could make a difference to.
VM_MANAGER := our_shim_and_orlop foreign_shim_and_orlop a_killed_daemon_finds attachments_and_limits_on_orlopd sandboxes:: owners:: \
	both_apis_see a_running_container_outlives files_go_in remap:: the_introduction_works vlan_network_lies
VM_SUITES := -p orlop-host -p orlop-tests --lib --test runtime --test shim
VM_RUN := $(BINARIES) ORLOP_SWITCHES=$(TOP)/target/test-switches/debug/orlop ORLOP_TEST_PATIENCE=6 tests/vm/run --time 1800
VM_PROGRAMS = $$($(CARGO) test --no-run --locked $(1) 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$$/\1/p')

test-vm: build ## the runtime's and the shim's suites, some of the manager's, Docker's AppArmor, quotas, and disks after a power cut, in virtual machines with cgroup v2, AppArmor, PSI, systemd (as root)
	@tests/vm/setup
	$(CARGO) build --quiet --locked -p orlop --features test-switches --target-dir target/test-switches
	$(CARGO) test --no-run --locked $(VM_SUITES) --test vm --test docker
	@$(VM_RUN) --modules "$(VM_MODULES)" -- tests/vm/suites $(call VM_PROGRAMS,$(VM_SUITES))
	@ORLOP_VM_ONLY="apparmor::" $(VM_RUN) --modules "$(VM_MODULES)" -- tests/vm/suites $(call VM_PROGRAMS,-p orlop-tests --test docker)
	@ORLOP_VM_ONLY="$(VM_MANAGER)" ORLOP_TEST_IPVLAN=1 $(VM_RUN) --memory 4G --modules "$(VM_MODULES) $(VM_NETWORKS)" -- \
		tests/vm/suites $(call VM_PROGRAMS,-p orlop-manager) $(call VM_PROGRAMS,-p orlop-tests --test manager --test docker)
	@ORLOP_VM_ONLY="systemd:: user::" $(VM_RUN) --systemd -- tests/vm/suites $(call VM_PROGRAMS,-p orlop-tests --test vm)
	@ORLOP_VM_ONLY="hybrid:: checkpoint:: quota::" $(VM_RUN) --systemd --hybrid --modules "$(VM_MODULES)" -- \
		tests/vm/suites $(call VM_PROGRAMS,-p orlop-tests --test runtime --test shim --test vm)
	@rm -rf target/power && mkdir -p target/power
	$(BINARIES) ORLOP_POWER_KEEP=$(TOP)/target/power ORLOP_POWER_CUTS=3 $(CARGO) test --locked -p orlop-tests --test manager power_cut::
	@ORLOP_VM_ONLY=in_a_machine_that_boots ORLOP_POWER_BOOTED=$(TOP)/target/power $(VM_RUN) --modules "$(VM_MODULES) erofs" \
		$$(printf -- '--disk %s ' target/power/?.image) -- tests/vm/suites $(call VM_PROGRAMS,-p orlop-tests --test manager)

lint: ## formatting, clippy, licences and bans
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p orlop-tests --test vm -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --log-level error check bans licenses sources; \
	else echo "cargo-deny is not installed: its licences, bans and sources are checked by tests/project"; fi

unit: ## unit tests alone
	$(CARGO) test --locked --workspace --exclude orlop-tests --no-fail-fast

integration: build ## black-box suites alone, SUITE=runtime for one of them (as root)
	$(BINARIES) $(CARGO) test --locked -p orlop-tests $(if $(SUITE),--test $(SUITE)) --no-fail-fast

conformance: ## a foreign suite on orlop, runc and crun side by side; needs Go and two minutes (as root)
	@.ci/setup
	@$(MAKE) --no-print-directory build-static
	$(BINARIES) ORLOP_CONFORMANCE=1 $(CARGO) test --locked -p orlop-tests --test conformance -- --nocapture

newest: build ## the newest containerd 2.x with its shim, ctr, Go and Rust clients, crictl, nerdctl and crun, with ours; needs Go and ten minutes (as root)
	$(BINARIES) ORLOP_NEWEST=1 $(CARGO) test --locked -p orlop-tests --test stack newest -- --nocapture

clients: build ## PostgreSQL, Redis and MariaDB, compose 2, buildx, testcontainers, bollard on orlopd; needs Go, python3-venv, a network and ten minutes (as root)
	$(BINARIES) ORLOP_CLIENTS=1 $(CARGO) test --locked -p orlop-tests --test docker clients -- --nocapture --test-threads 1

bench: build ## times and sizes beside the peers, in one run (as root)
	$(BINARIES) $(CARGO) bench --locked -p orlop-tests --bench perf

fuzz: build ## mutated input for FUZZ_SECONDS (60) per target (as root)
	$(BINARIES) ORLOP_FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(CARGO) test --locked -p orlop-tests --test fuzz -- --nocapture
	ORLOP_FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(CARGO) test --locked -p orlop-manager unpack::fuzz -- --nocapture

fuzz-coverage: ## which lines of the runtime's parsers its fuzz targets reach; red below 80 %
	@tests/fuzz/coverage

soak: build ## the full counts: inputs for each parser, kills of shim and manager, power cuts, full disks, memory; SOAK_SECONDS (600) of containers (as root)
	ORLOP_FUZZ_RUNS=$${FUZZ_RUNS:-1000000} CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
		$(CARGO) test --release --locked -p orlop --target-dir target/soak -- fuzz:: --nocapture
	ORLOP_FUZZ_RUNS=$${FUZZ_RUNS:-1000000} ORLOP_FUZZ_ROUNDS=$${FUZZ_ROUNDS:-1000000} \
		CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_PANIC=unwind \
		$(CARGO) test --release --locked -p orlop-manager --target-dir target/soak -- fuzz:: --nocapture
	ORLOP_FUZZ_RUNS=$${FUZZ_RUNS:-1000000} CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_PANIC=unwind \
		$(CARGO) test --release --locked -p orlop-host --features inflate --target-dir target/soak -- fuzz:: --nocapture
	$(BINARIES) ORLOP_LAYERS=$${LAYERS:-200} $(CARGO) test --locked -p orlop-tests --test manager unpackers -- --nocapture
	$(BINARIES) ORLOP_CUTS=$${CUTS:-200} $(CARGO) test --locked -p orlop-tests --test manager registry_faults -- --nocapture
	$(BINARIES) ORLOP_KILL_POINTS=$${KILL_POINTS:-300} $(CARGO) test --locked -p orlop-tests --test manager kill_points -- --nocapture
	$(BINARIES) ORLOP_KILL_POINTS=$${KILL_POINTS:-300} $(CARGO) test --locked -p orlop-tests --test docker kill_points -- --nocapture
	$(BINARIES) ORLOP_POWER_CUTS=$${POWER_CUTS:-300} $(CARGO) test --locked -p orlop-tests --test manager power_cut -- --nocapture
	$(BINARIES) ORLOP_FULL_STEPS=100 $(CARGO) test --locked -p orlop-tests --test manager exhaustion -- --nocapture
	$(BINARIES) ORLOP_BUDGET_RUNS=100 ORLOP_BUDGET_CONTAINERS=500 \
		$(CARGO) test --locked -p orlop-tests --test manager budgets -- --nocapture --test-threads 1
	$(BINARIES) ORLOP_BUDGET_RUNS=100 $(CARGO) test --locked -p orlop-tests --test docker budget -- --nocapture
	$(BINARIES) ORLOP_SHIM_KILLS=500 ORLOP_SHIM_EXECS=10000 \
		$(CARGO) test --locked -p orlop-tests --test shim -- kill:: nothing_left_after_execs --nocapture
	$(BINARIES) ORLOP_SHIM_KILLS=$${SHIM_KILLS:-250} $(CARGO) test --locked -p orlop-tests --test stack shim_kill -- --nocapture
	$(BINARIES) ORLOP_SOAK_SECONDS=$${SOAK_SECONDS:-600} $(CARGO) test --locked -p orlop-tests --test stack soak -- --nocapture

proto: ## generate the protocol code again from proto/schema
	ORLOP_PROTO_WRITE=1 $(CARGO) test --locked -p orlop-proto --test generated

# Builds what is missing, and only that, so that `make build && sudo make install` compiles nothing as root.
INSTALLED := $(STATIC_DIR)/orlop $(STATIC_DIR)/containerd-shim-orlop-v1 $(DYNAMIC_DIR)/orlopd $(DYNAMIC_DIR)/orlopctl
SHARE := $(DESTDIR)$(PREFIX)/share

install: ## install to $(DESTDIR)$(PREFIX): binaries, man pages, completions, systemd unit
	@for file in $(INSTALLED); do [ -x $$file ] || exec $(MAKE) --no-print-directory build; done
	@$(CARGO) run --quiet --locked -p orlop-ctl --example generate -- target/share
	install -d $(DESTDIR)$(PREFIX)/bin $(SHARE)/man/man8 $(SHARE)/bash-completion/completions \
		$(SHARE)/zsh/site-functions $(SHARE)/fish/vendor_completions.d $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 755 $(INSTALLED) $(DESTDIR)$(PREFIX)/bin/
	install -m 644 target/share/man/*.8 $(SHARE)/man/man8/
	install -m 644 target/share/bash/* $(SHARE)/bash-completion/completions/
	install -m 644 target/share/zsh/* $(SHARE)/zsh/site-functions/
	install -m 644 target/share/fish/* $(SHARE)/fish/vendor_completions.d/
	@sed 's|@PREFIX@|$(PREFIX)|g' manager/orlopd.service >target/share/orlopd.service
	install -m 644 target/share/orlopd.service manager/orlopd.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/

clean: ## remove what was built
	$(CARGO) clean
