#!/usr/bin/env bash
# The long runs of everything that `scripts/test.sh` does in small: hours. Prints a summary at its end.
#
#   scripts/milestone.sh              all of them
#   scripts/milestone.sh NAME...      some; `scripts/milestone.sh --list` names them
#
# CASES, SEEDS, SCHEDULES and RACES scale the runs in Rust; CHAOS_SECONDS the soak. It builds nothing in Python:
# `scripts/test.sh` has done so.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CASES=${CASES:-1000000}
SEEDS=${SEEDS:-1000000}
SCHEDULES=${SCHEDULES:-250}
RACES=${RACES:-10}
CHAOS_SECONDS=${CHAOS_SECONDS:-1800}

python=$VENV/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PROPTEST_MAX_SHRINK_ITERS=10000

py() { "$python" -m pytest --milestone -q "$@"; }
rust() { cargo test --release "$@"; }

run_codec() { PROPTEST_CASES=$CASES rust -p pydist-proto --test codec; }
run_liveness() { PROPTEST_CASES=$CASES rust -p pydist-proto --test liveness; }
run_references() { PYDIST_SIM_SEEDS=$SEEDS rust -p pydist-proto --test refcount_model; }
run_channel_model() { PYDIST_SIM_SEEDS=$SEEDS rust -p pydist-proto --test channel_model; }
run_timeouts() { PYDIST_RACES=$RACES rust -p pydist-node --test timeouts; }
run_schedules() { PYDIST_SCHEDULES=$SCHEDULES rust -p pydist-node --features shuttle --lib; }
run_chaos() { py tests/chaos/test_soak.py --chaos-seconds "$CHAOS_SECONDS" -s; }
run_leaks() { py tests/chaos/test_leaks.py; }
run_faults() { py tests/faults tests/lifecycle tests/ssh; }
run_faults_on_one_core() { taskset -c 0 "$python" -m pytest -q tests/faults; }
run_cluster() { py tests/cluster tests/ecosystem; }

names=(codec liveness references channel_model timeouts schedules leaks faults faults_on_one_core cluster chaos)
if [ "${1:-}" = --list ]; then
    printf '%s\n' "${names[@]}"
    exit
fi
[ "$#" = 0 ] || names=("$@")
for name in "${names[@]}"; do
    [ "$(type -t "run_$name")" = function ] || fail "there is no run '$name'; --list names them"
done

failed=()
for name in "${names[@]}"; do
    say "$name"
    begin=$SECONDS
    "run_$name" </dev/null 2>&1 | tee "$work/$name.log" || failed+=("$name")
    echo "$((SECONDS - begin))" >"$work/$name.seconds"
done

say "summary of the long runs (CASES=$CASES SEEDS=$SEEDS SCHEDULES=$SCHEDULES RACES=$RACES)"
for name in "${names[@]}"; do
    printf '%-20s %6s s  ' "$name" "$(cat "$work/$name.seconds")"
    grep -hE '^test result: |^[0-9]+ (passed|failed).* in [0-9.]+s' "$work/$name.log" |
        grep -v ' 0 passed; 0 failed' | tr '\n' ' '
    echo
done
for name in "${names[@]}"; do
    sed -n '/^=* faults and what came of them/,/^ *sockets/p' "$work/$name.log"
done
[ "${#failed[@]}" = 0 ] && say "all have passed" && exit
say "FAILED: ${failed[*]}"
exit 1
