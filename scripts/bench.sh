#!/usr/bin/env bash
# Every benchmark, each beside its peer or limit: what `run` adds to a command, what watching costs, and what codec, fold,
# pipeline and evaluator can take.
# Run it on an idle machine; figures go to docs/benchmarks.md with this command beside them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

bash scripts/setup.sh --for bench
use_rust || die "Rust $(wanted_rust) or newer is needed" "scripts/setup.sh"

cargo build --release -p glasshouse -p glasshouse-node-agent
printf '\n=== what glasshouse run adds\n'
cargo bench -q -p glasshouse-e2e --bench run
printf '\n=== what watching costs\n'
cargo bench -q -p glasshouse-host-probe --bench cost
printf '\n=== what hooks cost\n'
cargo bench -q -p glasshouse-host-probe --bench hooks
printf '\n=== codec\n'
cargo bench -q -p glasshouse-schema --bench codec
printf '\n=== fold\n'
cargo bench -q -p glasshouse-fold --bench fold
printf '\n=== the pipeline\n'
cargo bench -q -p glasshouse-aggregator --bench pipeline
printf '\n=== codec, compression and fold over recordings of real workloads\n'
cargo bench -q -p glasshouse-fold --bench recordings
printf '\n=== evaluator\n'
cargo bench -q -p glasshouse-eval --bench evaluate
