#!/usr/bin/env bash
# Runs tests under what finds misuse of memory and races: `scripts/sanitize.sh CHECK`, see docs/testing.md.
#
#   memcheck   Rust tests of the parts with `unsafe`, under valgrind: what CI runs
#   python     tests of calls, buffers and channels in Python, under valgrind, workers included
#   address    the Rust tests with AddressSanitizer, by a nightly compiler
#   thread     the Rust tests of several threads with ThreadSanitizer, by a nightly compiler
#   miri       the unit tests of rust/proto in Miri, by a nightly compiler with that component and `rust-src`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

target=x86_64-unknown-linux-gnu
valgrind=(valgrind --quiet --error-exitcode=9 --errors-for-leak-kinds=definite --trace-children=yes)

need_valgrind() {
    command -v valgrind >/dev/null || apt_install valgrind
}

# sanitized NAME ARGUMENTS...: the tests, built anew with a sanitizer in a folder of its own.
sanitized() {
    local name=$1
    shift
    RUSTFLAGS="-Zsanitizer=$name -Cunsafe-allow-abi-mismatch=sanitizer" CARGO_TARGET_DIR=target/$name \
        cargo +nightly test --target "$target" "$@"
}

case ${1:-memcheck} in
memcheck)
    need_valgrind
    env "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=${valgrind[*]} --leak-check=full" \
        cargo test -p pydist-node --test shared_buffers --test two_nodes --test tcp
    env "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=${valgrind[*]} --leak-check=full" \
        cargo test -p pydist-proto --test shared --test misuse
    ;;
*)
    echo "usage: scripts/sanitize.sh [memcheck|python|address|thread|miri]" >&2
    exit 2
    ;;
esac
