# Shared by the scripts beside it: finds the tools and makes the virtual environment.
# PYTHON names the interpreter to use, VENV the environment (default .venv).

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV=${VENV:-$PWD/.venv}
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
export PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# apt_install PACKAGE...: install Debian packages where this user may; false where not.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "apt-get install $*"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@"
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# find_python: print an interpreter of 3.11 or newer.
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is no Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed (Debian, Ubuntu: apt-get install python3 python3-venv); PYTHON=/path/to/python names one"
}

# make_venv DIRECTORY: make a virtual environment unless a working one is there.
make_venv() {
    local python
    is_new_enough "$1/bin/python" && "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
    python=$(find_python)
    say "virtual environment $1 ($("$python" --version))"
    if [ -e "$1/pyvenv.cfg" ]; then
        rm -rf "$1"
    fi
    "$python" -m venv "$1" && return
    apt_install python3-venv || fail "$python has no venv module (Debian, Ubuntu: apt-get install python3-venv)"
    "$python" -m venv "$1"
}

# need_rust: stop, saying what to install, unless there are a linker and a new enough toolchain.
need_rust() {
    local needed found
    command -v cc >/dev/null || apt_install gcc libc6-dev ||
        fail "a C compiler is needed for linking (Debian, Ubuntu: apt-get install gcc libc6-dev)"
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(command -v cargo >/dev/null && rustc --version 2>/dev/null | cut -d' ' -f2) || found=none
    if [ "$(printf '%s\n' "$needed" "$found" | sort -V | head -n1)" != "$needed" ] || [ "$found" = none ]; then
        fail "Rust $needed or newer is needed, found: $found. The rustc of a distribution is often too old; install the current one with
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal
and run this script again."
    fi
}
