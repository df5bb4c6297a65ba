#!/usr/bin/env bash
# Runs tests under what finds misuse of memory: `scripts/sanitize.sh CHECK`, see docs/testing.md.
#
#   memcheck   Rust tests of the parts with `unsafe`, under valgrind: what CI runs
#   python     a session of calls, buffers and channels in Python, under valgrind, its workers included
#   address    Rust tests with AddressSanitizer, by a nightly compiler
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

target=x86_64-unknown-linux-gnu
memcheck=(
    valgrind --quiet --error-exitcode=9 --suppressions="$PWD/scripts/valgrind.supp"
    --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
)

command -v valgrind >/dev/null || case ${1:-memcheck} in memcheck | python) apt_install valgrind ;; esac

# checked ARGUMENTS...: tests under valgrind; those named after `--` alone.
checked() {
    env "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=${memcheck[*]}" cargo test "$@"
}

# sanitized NAME ARGUMENTS...: tests that are built anew, with a sanitizer, in a folder of their own.
sanitized() {
    local name=$1
    shift
    RUSTFLAGS="-Zsanitizer=$name -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR=target/$name \
        cargo +nightly test --target "$target" "$@"
}

case ${1:-memcheck} in
memcheck)
    checked -p pydist-node --test shared_buffers -- descriptor files_that memory_ one_copy
    checked -p pydist-node --test two_nodes -- a_call_brings a_future_is the_loss
    checked -p pydist-proto --test shared
    ;;
python)
    logs=$(mktemp -d)
    trap 'rm -rf "$logs"' EXIT
    PYTHONMALLOC=malloc valgrind --trace-children=yes --leak-check=no --log-file="$logs/%p" \
        --suppressions="$PWD/scripts/valgrind.supp" \
        "$VENV/bin/python" scripts/memcheck_session.py
    # CPython alone has reports of its own; those of the core have a line of Rust near their top.
    if grep -hE -A4 '^==[0-9]+== (Conditional|Use of|Invalid|Syscall|Mismatched|Source)' "$logs"/* | grep -F '.rs:'; then
        cat "$logs"/*
        fail "valgrind reports misuse of memory in the core"
    fi
    ;;
address)
    sanitized address -p pydist-proto -p pydist-node
    ;;
*)
    fail "usage: scripts/sanitize.sh [memcheck|python|address]"
    ;;
esac
