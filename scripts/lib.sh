# shellcheck shell=bash
# Shared by the scripts beside it; sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

# Pins. A new version is one edit here, with both sums taken from the downloaded files.
NATS_SERVER_VERSION=2.15.1
CARGO_DENY_VERSION=0.20.2
DARWIN_TARGET=aarch64-apple-darwin
export NATS_SERVER_VERSION CARGO_DENY_VERSION DARWIN_TARGET

have() { command -v "$1" >/dev/null 2>&1; }

say() { printf '%s: %s\n' "${0##*/}" "$*"; }

# What happened and why, then what to do, then stop.
die() {
    printf '%s: error: %s\n' "${0##*/}" "$1" >&2
    [ "$#" -gt 1 ] && printf '%s:   do: %s\n' "${0##*/}" "$2" >&2
    exit 1
}

# version_at_least HAVE WANT: dotted numbers, `1.95` equals `1.95.0`.
version_at_least() {
    local have=$1 want=$2
    [ "$have" = "$want" ] || [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ]
}

# The Rust that Cargo.toml asks for.
wanted_rust() { sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml"; }

# Prints the version of the Rust in use, or nothing.
rust_version() { rustc --version 2>/dev/null | awk '{ sub(/-.*/, "", $2); print $2 }' || true; }

# True if the Rust in use is new enough; where rustup's default is older than its stable toolchain, uses that instead.
use_rust() {
    local want found
    want=$(wanted_rust)
    found=$(rust_version)
    if [ -n "$found" ] && version_at_least "$found" "$want"; then
        return 0
    fi
    have rustup || return 1
    found=$(RUSTUP_TOOLCHAIN=stable RUSTUP_AUTO_INSTALL=0 rust_version)
    if [ -n "$found" ] && version_at_least "$found" "$want"; then
        export RUSTUP_TOOLCHAIN=stable
        return 0
    fi
    return 1
}

# Where setup.sh unpacks the kernel of the tests' virtual machines.
GUEST_KERNEL=$ROOT/.tools/guest-kernel
export GUEST_KERNEL

# Where cargo puts binaries of PROFILE (debug, release).
target_dir() { printf '%s/%s\n' "${CARGO_TARGET_DIR:-$ROOT/target}" "$1"; }
