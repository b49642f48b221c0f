#!/usr/bin/env bash
# The main job, end to end, on this machine: starts a nats-server with the pipeline around it, runs an ordinary script under
# Glasshouse, and shows the receipt and the verdict that came out at the other end. Stops all it started.
#
#   scripts/demo.sh             debug build: the first run compiles in a few minutes
#   scripts/demo.sh --release   optimised build
#   scripts/demo.sh --keep      leave the data directory for a look around
#
# Watching a command needs root (or sudo) and a kernel with BTF. Where that is missing the demo says so, shows that the
# command still runs, and exits 0; any other failure exits 1.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

profile=debug
build=()
keep=false
for argument in "$@"; do
    case "$argument" in
        --release)
            profile=release
            build=(--release)
            ;;
        --keep) keep=true ;;
        -h | --help)
            sed -n '2,10s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) die "unknown argument '$argument'" "scripts/demo.sh [--release] [--keep]" ;;
    esac
done

section() { printf '\n--- %s\n' "$*"; }

bash scripts/setup.sh --for demo
use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh"

section "building ($profile)"
cargo build "${build[@]}" -p glasshouse -p glasshouse-aggregator -p glasshouse-policy-worker
glasshouse=$(target_dir "$profile")/glasshouse
[ -x "$glasshouse" ] || die "the build made no $glasshouse" "see its output above"

data=$(mktemp -d)
policy=deploy/policies/baseline.yaml
receipt=$data/receipt.json
up=

# Stops what this script started, by its id, and nothing else.
finish() {
    local status=$?
    trap - EXIT
    if [ -n "$up" ] && kill -0 "$up" 2>/dev/null; then
        section "stopping"
        kill -INT "$up" 2>/dev/null || true
        for _ in $(seq 100); do
            kill -0 "$up" 2>/dev/null || break
            sleep 0.1
        done
        if kill -0 "$up" 2>/dev/null; then
            say "the pipeline did not stop within 10 s; killing it"
            # Its process group: the nats-server that it supervises goes too.
            kill -KILL -- "-$up" 2>/dev/null || true
            [ "$status" != 0 ] || status=1
        fi
        wait "$up" 2>/dev/null || true
    fi
    if [ "$status" != 0 ] && [ -s "$data/up.log" ]; then
        section "log of the pipeline ($data/up.log)"
        tail -n 40 "$data/up.log"
    fi
    if "$keep"; then
        say "kept: $data"
    elif [ "$status" = 0 ]; then
        rm -rf "$data" 2>/dev/null || true
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

section "starting nats-server, aggregator and policy worker"
# A job with a process group of its own: Ctrl-C reaches this script first, and SIGINT is not ignored in it.
set -m
"$glasshouse" up --dir "$data/up" --port 0 --nats-server "$ROOT/.tools/nats-server" --policy "$policy" \
    >"$data/up.log" 2>&1 </dev/null &
up=$!
set +m
deadline=$((SECONDS + 30))
until [ -s "$data/up/nats.url" ]; do
    kill -0 "$up" 2>/dev/null || die "glasshouse up ended before it was ready" "its log follows"
    [ "$SECONDS" -lt "$deadline" ] || die "glasshouse up was not ready within 30 s" "its log follows"
    sleep 0.05
done
url=$(cat "$data/up/nats.url")
say "ready at $url"

# Only watching needs root.
runner=()
unwatched=
if [ ! -e /sys/kernel/btf/vmlinux ]; then
    unwatched="this kernel has no BTF (/sys/kernel/btf/vmlinux), so the probe cannot load"
elif [ "$(id -u)" != 0 ]; then
    if have sudo; then
        say "loading the probe needs root: running the command with sudo"
        runner=(sudo)
    else
        unwatched="this is neither root nor a user with sudo, so the probe cannot load"
    fi
fi

section "glasshouse run --profile host -- sh deploy/demo/workload.sh"
status=0
"${runner[@]}" "$glasshouse" run --profile host --nats "$url" --policy "$policy" --receipt "$receipt" \
    --label demo=true -- sh deploy/demo/workload.sh || status=$?
say "the command's exit code: $status"
[ "$status" = 0 ] || die "the workload failed (exit $status)" "125 is Glasshouse's own: see the line above"
[ "${#runner[@]}" = 0 ] || sudo chown "$(id -u):$(id -g)" "$receipt" 2>/dev/null || true

if [ ! -s "$receipt" ]; then
    [ -n "$unwatched" ] || die "there is no receipt, though this machine should be able to watch" "$glasshouse doctor"
    section "no receipt on this machine"
    say "$unwatched."
    say "The command ran all the same and kept its exit code; that it went unwatched was published, and a policy"
    say "answers 'unknown' for it. What can't be shown here: the receipt and its verdict."
    say "What this machine lacks, and what to do: $glasshouse doctor"
    exit 0
fi

execution=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["execution_id"])' "$receipt")

section "the receipt of $execution, as the aggregator published it"
"$glasshouse" receipt get "$execution" --nats "$url" --wait --timeout 10s --json >"$data/published.json" ||
    die "the aggregator published no receipt within 10 s" "its log follows"
"$glasshouse" receipt show "$data/published.json"

section "the verdict of $policy"
"$glasshouse" verdict get "$execution" --nats "$url" --wait --timeout 10s ||
    die "the policy worker published no verdict within 10 s" "its log follows"
