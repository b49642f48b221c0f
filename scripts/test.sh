#!/usr/bin/env bash
# Format, lints, dependency rules and all tests. Sets up first. Every step runs, also after one has failed; the summary
# at the end names each step, and the exit code is 0 only if none failed. What this machine can't run is reported as
# skipped with the reason.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

started=$SECONDS
summary=()
failed=0
skipped=0

step() { # step NAME COMMAND...
    local name=$1 from=$SECONDS status=0
    shift
    printf '\n=== %s\n' "$name"
    "$@" || status=$?
    if [ "$status" = 0 ]; then
        summary+=("$(printf 'ok      %4ds  %s' "$((SECONDS - from))" "$name")")
    else
        failed=$((failed + 1))
        summary+=("$(printf 'FAILED  %4ds  %s (exit %d)' "$((SECONDS - from))" "$name" "$status")")
        printf '=== FAILED: %s (exit %d)\n' "$name" "$status"
    fi
}

skip() { # skip NAME REASON
    printf '\n=== %s\nskipped: %s: %s\n' "$1" "$1" "$2"
    skipped=$((skipped + 1))
    summary+=("$(printf 'skipped        %s: %s' "$1" "$2")")
}

bash scripts/setup.sh

# A full disk makes a build or a test fail with words about something else. Measured of a cold build with all tests, in MB.
NEEDED_MB=7000
build_dir=${CARGO_TARGET_DIR:-$ROOT/target}
mkdir -p "$build_dir"
free_mb() { df -Pm "$build_dir" | awk 'NR == 2 { print $4 }'; }
free_before=$(free_mb)
if [ "$free_before" -lt "$NEEDED_MB" ] && [ ! -d "$build_dir/debug" ]; then
    die "the disk of $build_dir has $free_before MB left, and a build with all tests takes up to $NEEDED_MB" \
        "make room, or name a folder of another disk in CARGO_TARGET_DIR"
fi

use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh"

# The lock file in the tree is the one under test.
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
if [ "${CI:-}" = true ]; then
    export CARGO_INCREMENTAL=0
    locked=(--locked)
else
    locked=()
fi
export GLASSHOUSE_NATS_SERVER="${GLASSHOUSE_NATS_SERVER:-$ROOT/.tools/nats-server}"

# --- Cheap checks first ---------------------------------------------------------------------------------------------

step "format" cargo fmt --all --check
step "shell scripts" shellcheck -x scripts/*.sh deploy/demo/*.sh bpf/*.sh .ci/run

# bpf/build.sh by hand gives the same objects as the build of the crate, without cargo.
bpf_alone() {
    local out status=0
    out=$(mktemp -d)
    bpf/build.sh "$out" || status=$?
    ls -l "$out"
    if [ "$status" = 0 ] && [ -z "$(find "$out" -name '*.o' -print -quit)" ]; then
        echo "bpf/build.sh made no object file in $out"
        status=1
    fi
    rm -rf "$out"
    return "$status"
}
step "BPF programs alone" bpf_alone

if cargo deny --version >/dev/null 2>&1; then
    step "licences, bans, sources" cargo deny check --hide-inclusion-graph licenses bans sources
    if fetch_log=$(cargo deny fetch db 2>&1); then
        step "advisories" cargo deny check --disable-fetch advisories
    else
        skip "advisories" "the advisory database could not be fetched ($(printf '%s' "$fetch_log" | tail -n 1 | cut -c 1-160))"
    fi
else
    skip "licences, bans, sources" "cargo-deny is not installed (scripts/setup.sh could not get it)"
    skip "advisories" "cargo-deny is not installed"
fi

# --- Build and lints ------------------------------------------------------------------------------------------------

step "clippy" cargo clippy "${locked[@]}" --workspace --all-targets -- -D warnings

# The client side builds on macOS. The C halves of dependencies are not compiled here: see darwin-cc.sh.
if [ -d "$(rustc --print sysroot)/lib/rustlib/$DARWIN_TARGET" ]; then
    step "macOS check ($DARWIN_TARGET)" env \
        "CC_${DARWIN_TARGET//-/_}=$ROOT/scripts/darwin-cc.sh" "AR_${DARWIN_TARGET//-/_}=$ROOT/scripts/darwin-cc.sh" \
        cargo check "${locked[@]}" --target "$DARWIN_TARGET" \
        -p glasshouse-schema -p glasshouse-fold -p glasshouse-eval -p glasshouse-nats -p glasshouse
else
    skip "macOS check ($DARWIN_TARGET)" \
        "the target's standard library is not installed and rustup could not add it"
fi

# With what the crates ask for themselves: tests are built with more features of libraries, which could hide that one is missing.
step "check as released" cargo check "${locked[@]}" --workspace

# --- Tests ----------------------------------------------------------------------------------------------------------

# Why the comparison with strace has to leave a program out on this machine; nothing when it has all it needs.
truth_lacks() {
    local tool
    [ "$(id -u)" = 0 ] || echo "root"
    [ -e /sys/kernel/btf/vmlinux ] || echo "BTF"
    for tool in strace cc git python3 tar gzip find; do
        have "$tool" || echo "$tool"
    done
    # The switch is there since Linux 6.6.
    if [ -e /proc/sys/kernel/io_uring_disabled ]; then
        [ "$(cat /proc/sys/kernel/io_uring_disabled)" = 0 ] || echo "io_uring (kernel.io_uring_disabled)"
    else
        grep -q 'sys_io_uring_setup$' /proc/kallsyms 2>/dev/null || echo "io_uring"
    fi
    # There only where 32-bit calls are.
    [ "$(uname -m)" = x86_64 ] && [ -e /proc/sys/abi/vsyscall32 ] || echo "32-bit system calls"
    grep -q '^0\{31\}1 ' /proc/net/if_inet6 2>/dev/null || echo "an IPv6 loopback"
}

# With everything there, a program of that comparison which is skipped is a failure.
lacks=$(truth_lacks | paste -sd, - | sed 's/,/, /g')
if [ -z "$lacks" ]; then
    export GLASSHOUSE_REQUIRE_ALL=${GLASSHOUSE_REQUIRE_ALL:-1}
else
    say "programs of the comparison with strace may be skipped: this machine lacks $lacks"
fi

# Why no virtual machine can be made here; nothing when it can.
machines_lack() {
    [ "$(uname -m)" = x86_64 ] || echo "an x86-64 processor"
    have "${GLASSHOUSE_QEMU:-qemu-system-x86_64}" || echo "QEMU (qemu-system-x86)"
    PATH=$PATH:/usr/sbin have mke2fs || echo "mke2fs (e2fsprogs)"
    [ -n "${GLASSHOUSE_GUEST_KERNEL:-}" ] || echo "a guest kernel (linux-image-cloud-amd64, unpacked in .tools/)"
}
if [ -z "${GLASSHOUSE_GUEST_KERNEL:-}" ] && [ -d "$GUEST_KERNEL/boot" ]; then
    export GLASSHOUSE_GUEST_KERNEL=$GUEST_KERNEL
fi
lacks=$(machines_lack | paste -sd, - | sed 's/,/, /g')
if [ -z "$lacks" ]; then
    # Static, so built apart from everything else. With all of it there, a skipped machine is a failure.
    step "guest probe" scripts/guest-probe.sh
    export GLASSHOUSE_CONFORMANCE=${GLASSHOUSE_CONFORMANCE:-qemu}
else
    skip "virtual machines" "this machine lacks $lacks"
fi

# Why no container can be made here; nothing when it can. They are made by the runc shim: Kata's own is in no package, and was tried by hand.
containers_lack() {
    local tool
    [ "$(id -u)" = 0 ] || echo "root"
    for tool in containerd containerd-shim-runc-v2 ctr runc busybox; do
        have "$tool" || echo "$tool"
    done
}
lacks=$(containers_lack | paste -sd, - | sed 's/,/, /g')
if [ -z "$lacks" ]; then
    export GLASSHOUSE_CONFORMANCE="${GLASSHOUSE_CONFORMANCE:+$GLASSHOUSE_CONFORMANCE,}kata"
else
    skip "containers (the backend kata, by the runc shim)" "this machine lacks $lacks"
fi

# The programs that the tests start come from the same build as the tests: apart, every library would be built twice.
step "build" cargo build "${locked[@]}" --workspace --bins --tests

# The storms of `loss` want the machine to themselves; nextest would run each beside other tests.
if cargo nextest --version >/dev/null 2>&1; then
    alone='package(glasshouse-host-probe) and binary(loss)'
    step "tests" cargo nextest run "${locked[@]}" --workspace --no-fail-fast -E "not ($alone)"
    step "tests under load" cargo nextest run "${locked[@]}" --workspace --no-fail-fast --no-capture -E "$alone"
else
    step "tests" cargo test "${locked[@]}" --workspace --lib --bins --tests --no-fail-fast
fi
step "documentation tests" cargo test "${locked[@]}" --workspace --doc
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc "${locked[@]}" --workspace --no-deps --quiet

# --- Summary --------------------------------------------------------------------------------------------------------

printf '\n=== summary\n'
printf '%s\n' "${summary[@]}"
printf 'test.sh: %d steps, %d failed, %d skipped, in %d min %d s\n' \
    "${#summary[@]}" "$failed" "$skipped" "$(((SECONDS - started) / 60))" "$(((SECONDS - started) % 60))"
printf 'disk: %d MB were free, %d MB are\n' "$free_before" "$(free_mb)"
[ "$failed" = 0 ]
