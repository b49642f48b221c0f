#!/usr/bin/env bash
# Builds the guest probe, static and small, where `glasshouse` and the tests look for it: target/guest/glasshouse-guest-probe.
#
#   scripts/guest-probe.sh
#
# For musl if rustup has its standard library, else for gnu with the C library linked in. Exit 0: it is there.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh --for build"

arch=$(uname -m)
target=$arch-unknown-linux-gnu
if [ -d "$(rustc --print sysroot)/lib/rustlib/$arch-unknown-linux-musl" ]; then
    target=$arch-unknown-linux-musl
fi
# What is C in it needs none of a C library's functions that musl has not, so any compiler will do where musl's is missing.
if [ "${target##*-}" = musl ] && ! command -v musl-gcc >/dev/null; then
    export "CC_${target//-/_}=${CC:-cc}" "CFLAGS_${target//-/_}=-U_FORTIFY_SOURCE ${CFLAGS:-}"
fi
build=$(target_dir guest-build)
# Flags of its own would rebuild everything in the usual folder each time. Size matters more than anything: it is copied
# into every machine.
RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
    CARGO_TARGET_DIR="$build" \
    CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_PANIC=abort \
    cargo build --quiet --locked --release -p glasshouse-guest-probe --target "$target" --manifest-path "$ROOT/Cargo.toml"
mkdir -p "$(target_dir guest)"
# Renamed into place, so that a machine that is being made never gets half of it.
install -m 755 "$build/$target/release/glasshouse-guest-probe" "$(target_dir guest)/.new"
mv -f "$(target_dir guest)/.new" "$(target_dir guest)/glasshouse-guest-probe"
say "$(stat -c %s "$(target_dir guest)/glasshouse-guest-probe") bytes for $target in $(target_dir guest)"
