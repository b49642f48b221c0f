#!/usr/bin/env bash
# Runs the conformance suite and the tests of machines against the Firecracker that GLASSHOUSE_FIRECRACKER names, for real: on this
# machine where its KVM boots kernels, else in a machine of QEMU's with an emulated KVM. The exit code is the suite's.
#
#   GLASSHOUSE_FIRECRACKER=/path GLASSHOUSE_GUEST_KERNEL=/folder scripts/firecracker.sh [ARGUMENT of the tests...]
#
# GLASSHOUSE_GUEST_KERNEL names a folder with an unpacked kernel package (deploy/guest/README.md). With GLASSHOUSE_JAILER=/path
# every machine is in that jailer's jail; its Firecracker has to be static.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

[ -n "${GLASSHOUSE_FIRECRACKER:-}" ] || die "there is no Firecracker" "name the program in GLASSHOUSE_FIRECRACKER"
[ -d "${GLASSHOUSE_GUEST_KERNEL:-}" ] || die "there is no guest kernel" "name its unpacked package in GLASSHOUSE_GUEST_KERNEL"
use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh --for build"
export GLASSHOUSE_CONFORMANCE=firecracker

"$ROOT/scripts/guest-probe.sh"
cargo build --quiet --locked -p glasshouse-vm --example nested
host=$(rustc -vV | sed -n 's/^host: //p')
runner=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUNNER
# Under an emulated KVM two machines at a time are slower than one after the other.
env "$runner=$(target_dir debug)/examples/nested" \
    cargo test --locked -p glasshouse-vm --test firecracker -- --test-threads=1 --nocapture "$@"
