#!/usr/bin/env bash
# Runs tests under what finds misuse of memory: `scripts/sanitize.sh CHECK`, see docs/testing.md.
#
#   memcheck   Rust tests of the parts with `unsafe`, under valgrind: what CI runs
#   python     a session of calls, buffers and channels in Python, under valgrind, its workers included
#   address    Rust tests with AddressSanitizer, by a nightly compiler
#   thread     Rust tests of rust/node with ThreadSanitizer, the standard library included, by a nightly compiler
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
flags=() rustflags=
sanitized() {
    local name=$1
    shift
    RUSTFLAGS="-Zsanitizer=$name -Cunsafe-allow-abi-mismatch=sanitizer$rustflags" CARGO_TARGET_DIR=target/$name \
        cargo +nightly test "${flags[@]}" --target "$target" "$@"
}

# use_instrumented_std: has `sanitized` build the standard library too: a race that it prevents is reported where its
# locks are not seen. Its source is that of the nightly compiler (`rust-src`), else Debian's, with the compiler to it:
# the packages rustc-web and rust-web-src, whose compiler DEBIAN_RUSTC names where it lies elsewhere.
use_instrumented_std() {
    local nightly run_time
    nightly=$(rustc +nightly --print sysroot)
    flags=(-Zbuild-std)
    [ ! -e "$nightly/lib/rustlib/src/rust/library/Cargo.lock" ] || return 0
    export RUSTC=${DEBIAN_RUSTC:-/usr/bin/rustc} RUSTC_BOOTSTRAP=1
    [ -e "$("$RUSTC" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/Cargo.lock" ] ||
        apt_install rustc-web rust-web-src ||
        fail "the source of the standard library is needed: rustup component add rust-src --toolchain nightly"
    # Debian's compiler comes without the sanitizer's run time.
    run_time=$nightly/lib/rustlib/$target/lib/librustc-nightly_rt.tsan.a
    rustflags=" -Zexternal-clangrt -Zpre-link-args=-Wl,--whole-archive,$run_time,--no-whole-archive"
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
thread)
    use_instrumented_std
    sanitized thread -p pydist-node --lib --tests
    ;;
*)
    fail "usage: scripts/sanitize.sh [memcheck|python|address|thread]"
    ;;
esac
