#!/usr/bin/env bash
# Fuzzes what parses bytes of the kernel, the bus or a file, one target after the other, and prints what each
# did: executions, coverage, findings. The exit code is 0 only if there was none.
#
#   scripts/fuzz.sh [--seconds N] [TARGET...]   each target, or these, for N seconds (default 600)
#   scripts/fuzz.sh --check [TARGET...]         only builds them and replays the seeds
#   scripts/fuzz.sh --list                      the targets
#
# Seeds are committed (seeds/TARGET beside the targets, and the golden files of schema). What a run adds to them stays in
# corpus/TARGET, and the input of a finding in artifacts/TARGET: neither is committed.
#
# The compiler is the stable one that ships the product. AddressSanitizer is a `-Z` flag there, which RUSTC_BOOTSTRAP=1
# lets pass; its runtime comes with the stable toolchain. An execution takes about five times as long with it, and it is
# worth that: it sees the one `unsafe` read of kernel bytes (bpf/src/abi.rs) and those of the dependencies, and only with
# it does libFuzzer know of a single allocation that is too large. FUZZ_SANITIZER=none does without, and needs no `-Z`.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

CARGO_FUZZ_VERSION=0.13.2
FOLDERS=(schema/fuzz producers/host-probe/fuzz producers/guest-link/fuzz producers/guest-nats/fuzz nats/fuzz)
GOLDEN=schema/tests/golden

# A frame of 1 MiB takes 16 MiB and 64 times its own size at most (schema/tests/allocation.rs); no input here is as long.
MALLOC_LIMIT_MIB=128
# Seconds for one input. The longest takes about a second with all checks; a machine may be busy.
INPUT_SECONDS=20

usage() {
    sed -n '/^#   scripts/s/^# \{0,3\}//p' "$ROOT/scripts/fuzz.sh"
}

seconds=600
mode=run
wanted=()
while [ "$#" -gt 0 ]; do
    case $1 in
        --seconds)
            seconds=${2:-}
            [[ "$seconds" =~ ^[1-9][0-9]*$ ]] || die "--seconds takes a whole number above 0" "scripts/fuzz.sh --seconds 60"
            shift
            ;;
        --check) mode=check ;;
        --list) mode=list ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) die "unknown option $1" "scripts/fuzz.sh --help" ;;
        *) wanted+=("$1") ;;
    esac
    shift
done

# The targets of a folder: the names of its [[bin]]s.
targets_of() { sed -n '/^\[\[bin\]\]/,/^path/s/^name = "\(.*\)"$/\1/p' "$1/Cargo.toml"; }

if [ "$mode" = list ]; then
    for folder in "${FOLDERS[@]}"; do targets_of "$folder"; done
    exit 0
fi

targets=() # "FOLDER TARGET"
for folder in "${FOLDERS[@]}"; do
    while read -r target; do
        if [ "${#wanted[@]}" = 0 ] || [[ " ${wanted[*]} " == *" $target "* ]]; then
            targets+=("$folder $target")
        fi
    done < <(targets_of "$folder")
done
for name in "${wanted[@]}"; do
    printf '%s\n' "${targets[@]##* }" | grep -qxF -- "$name" ||
        die "there is no fuzz target \`$name\`" "scripts/fuzz.sh --list"
done

use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh"
have c++ || die "libFuzzer is C++ and there is no compiler for it" "apt-get install g++"
export PATH="$ROOT/.tools/bin:$PATH"
if ! cargo fuzz --version >/dev/null 2>&1; then
    say "installing cargo-fuzz $CARGO_FUZZ_VERSION into .tools"
    cargo install --quiet --locked --root "$ROOT/.tools" "cargo-fuzz@$CARGO_FUZZ_VERSION" ||
        die "cargo-fuzz $CARGO_FUZZ_VERSION could not be installed" "cargo install --locked cargo-fuzz"
fi

sanitizer=${FUZZ_SANITIZER:-address}
if [ "$sanitizer" != none ]; then export RUSTC_BOOTSTRAP=1; fi
host=$(rustc -vV | sed -n 's/^host: //p')
# One place for all folders, so that what they share is built once.
built=${CARGO_TARGET_DIR:-$ROOT/target}/fuzz
if [ "$sanitizer" != address ]; then built+=-$sanitizer; fi
# As cargo-fuzz sets it; and no long stack of every allocation, which costs a third of the time.
export ASAN_OPTIONS=detect_odr_violation=0:malloc_context_size=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}

# seeds_of FOLDER TARGET: the folders that hold them.
seeds_of() {
    if [ -d "$1/seeds/$2" ]; then printf '%s\n' "$1/seeds/$2"; fi
    case $1 in schema/*) printf '%s\n' "$GOLDEN" ;; esac
}

# The log of libFuzzer, in its last state of coverage and its final statistics.
number_in() { sed -n "s/.*$2[^0-9]\{1,\}\([0-9]\{1,\}\).*/\1/p" "$1" | tail -n 1; }

summary=()
findings=0
for pair in "${targets[@]}"; do
    folder=${pair% *}
    target=${pair#* }
    printf '\n=== %s\n' "$target"
    cargo fuzz build --fuzz-dir "$folder" --target-dir "$built" --sanitizer "$sanitizer" "$target" ||
        die "the fuzz target $target does not build"

    corpus=$folder/corpus/$target
    artifacts=$folder/artifacts/$target
    log=$built/$target.log
    mkdir -p "$corpus" "$artifacts"
    mapfile -t inputs < <(seeds_of "$folder" "$target")
    options=(-print_final_stats=1 -timeout="$INPUT_SECONDS" -malloc_limit_mb="$MALLOC_LIMIT_MIB" -rss_limit_mb=2048
        -artifact_prefix="$artifacts/")
    # Several whole records of the kernel, each up to 25 KiB; elsewhere the length of the longest seed or 4 KiB do.
    if [ "$target" = kernel_record ]; then options+=(-max_len=65536); fi
    case $mode in
        check)
            [ "${#inputs[@]}" -gt 0 ] || die "the fuzz target $target has no seeds" "commit some in $folder/seeds/$target"
            options+=(-runs=0)
            ;;
        *)
            inputs=("$corpus" "${inputs[@]}")
            options+=(-max_total_time="$seconds")
            ;;
    esac
    from=$SECONDS
    status=0
    "$built/$host/release/$target" "${options[@]}" "${inputs[@]}" >"$log" 2>&1 || status=$?
    if [ "$status" = 0 ]; then
        finding=none
    else
        findings=$((findings + 1))
        finding="FOUND (exit $status)"
        grep -vE '^#[0-9]+' "$log" | tail -n 60
        input=$(sed -n 's/^.*Test unit written to //p' "$log" | tail -n 1)
        printf 'fuzz.sh: log %s, input %s\n' "$log" "${input:-unknown}"
        printf 'fuzz.sh:   do: cargo fuzz tmin --fuzz-dir %s --sanitizer %s %s %s (with RUSTC_BOOTSTRAP=1)\n' \
            "$folder" "$sanitizer" "$target" "${input:-INPUT}"
    fi
    executed=$(number_in "$log" 'stat::number_of_executed_units:')
    row=$(printf '%-14s %10s executions in %4d s, %5s edges, %6s features, %5s inputs kept, findings: %s' "$target" \
        "${executed:-?}" "$((SECONDS - from))" "$(number_in "$log" ' cov:')" "$(number_in "$log" ' ft:')" \
        "$(number_in "$log" ' corp:')" "$finding")
    printf '%s\n' "$row"
    summary+=("$row")
done

printf '\n=== summary (%s, cargo-fuzz %s, sanitizer %s)\n' \
    "$(rustc --version | cut -d ' ' -f 1-2)" "$(cargo fuzz --version | cut -d ' ' -f 2)" "$sanitizer"
printf '%s\n' "${summary[@]}"
printf 'fuzz.sh: %d targets, %d with a finding\n' "${#summary[@]}" "$findings"
[ "$findings" = 0 ]
