#!/usr/bin/env bash
# Install a wheel for each other minor version of Python that this machine has, and run the fast part of the tests there.
# bash scripts/other_pythons.sh dist/pydist-*.whl            NEWEST=1: for the newest one alone
# Pythons are looked for on PATH, and among those of pyenv; that of VENV is left out, as it runs all tests.
set -euo pipefail
[ "$#" = 1 ] && [ -f "$1" ] || {
    echo "usage: bash scripts/other_pythons.sh WHEEL" >&2
    exit 2
}
wheel=$(realpath "$1")
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

minor_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])'; }

tests=(
    tests/unit tests/lifecycle/test_exit.py tests/cluster/test_asyncio.py tests/cluster/test_calls.py tests/cluster/test_futures.py
    tests/ecosystem tests/notebook
)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shopt -s nullglob
known=" $(minor_of "$VENV/bin/python") "
pythons=()
for python in python3.{11..19} "${PYENV_ROOT:-${HOME:-/root}/.pyenv}"/versions/3.*/bin/python; do
    is_new_enough "$python" || continue
    minor=$(minor_of "$python")
    case $known in *" $minor "*) continue ;; esac
    known+="$minor "
    pythons+=("$minor:$python")
done
mapfile -t pythons < <(printf '%s\n' "${pythons[@]}" | sort -V)
[ "${NEWEST:-0}" = 0 ] || pythons=("${pythons[@]: -1}")
status=0
for found in "${pythons[@]}"; do
    [ -n "$found" ] || continue
    minor=${found%%:*} python=${found#*:}
    PYTHON=$python make_venv "$work/$minor"
    "$work/$minor/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
    "$work/$minor/bin/python" -m pip install --quiet --group dev "$wheel"
    "$work/$minor/bin/python" -m pytest -p no:cacheprovider "${tests[@]}" || status=$?
done
say "Pythons:$(printf ' %s' "${pythons[@]%%:*}")"
exit "$status"
