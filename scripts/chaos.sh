#!/usr/bin/env bash
# Breaks everything around the executions, round after round: each round is one scenario with one seed, chosen by the round's number.
# Prints what became of each and, where one failed, why and the command that runs it again. The exit code is 0 only if none did.
#
#   scripts/chaos.sh [--rounds N] [--seed N] [SCENARIO...]   N rounds (default 18) from this seed on (default 1), of all scenarios
#                                                            or of these
#   scripts/chaos.sh --list                                  the scenarios
#
# Full disks and the network that is cut need root; without it their rounds are skipped, with the reason.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

usage() {
    sed -n '/^#   scripts/,/^#$/s/^# \{0,3\}//p' "$ROOT/scripts/chaos.sh"
}

rounds=18
seed=1
list=no
wanted=()
while [ "$#" -gt 0 ]; do
    case $1 in
        --rounds | --seed)
            [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "$1 takes a whole number above 0" "scripts/chaos.sh $1 20"
            if [ "$1" = --rounds ]; then rounds=$2; else seed=$2; fi
            shift
            ;;
        --list) list=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) die "unknown option $1" "scripts/chaos.sh --help" ;;
        *) wanted+=("$1") ;;
    esac
    shift
done

use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh"
export GLASSHOUSE_NATS_SERVER="${GLASSHOUSE_NATS_SERVER:-$ROOT/.tools/nats-server}"
cargo test -q -p glasshouse-aggregator --test chaos --no-run
binary=$(cargo test -q -p glasshouse-aggregator --test chaos --no-run --message-format json |
    sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$binary" ] || die "the chaos suite was not built" "cargo test -p glasshouse-aggregator --test chaos --no-run"

mapfile -t scenarios < <("$binary" --list | sed -n 's/: test$//p')
[ "${#scenarios[@]}" -gt 0 ] || die "$binary has no scenarios" "cargo test -p glasshouse-aggregator --test chaos -- --list"
if [ "$list" = yes ]; then
    printf '%s\n' "${scenarios[@]}"
    exit 0
fi
for name in "${wanted[@]}"; do
    printf '%s\n' "${scenarios[@]}" | grep -qxF -- "$name" ||
        die "there is no scenario \`$name\`" "scripts/chaos.sh --list"
done
if [ "${#wanted[@]}" -gt 0 ]; then scenarios=("${wanted[@]}"); fi

printf 'chaos.sh: %d rounds of %d scenarios, seeds %d to %d\n' "$rounds" "${#scenarios[@]}" "$seed" "$((seed + rounds - 1))"
from=$SECONDS
failed=0
skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for ((round = seed; round < seed + rounds; round++)); do
    name=${scenarios[$((round % ${#scenarios[@]}))]}
    if GLASSHOUSE_CHAOS_SEED=$round GLASSHOUSE_CHAOS_ROUNDS=1 "$binary" --exact "$name" --nocapture >"$log" 2>&1; then
        grep -o "$name.*\(seed\|skipped\).*" "$log" || true
        if grep -q ': skipped: ' "$log"; then skipped=$((skipped + 1)); fi
    else
        failed=$((failed + 1))
        printf 'FAILED %s seed %d\n' "$name" "$round"
        cat "$log"
        printf 'again: GLASSHOUSE_CHAOS_SEED=%d cargo test -p glasshouse-aggregator --test chaos -- --exact %s --nocapture\n' \
            "$round" "$name"
    fi
done
printf 'chaos.sh: %d rounds, %d failed, %d skipped, in %d min %d s\n' "$rounds" "$failed" "$skipped" \
    "$(((SECONDS - from) / 60))" "$(((SECONDS - from) % 60))"
[ "$failed" = 0 ]
