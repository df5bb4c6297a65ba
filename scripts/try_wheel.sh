#!/usr/bin/env bash
# Install a wheel where nothing else is installed, and make a call to a worker.
# bash scripts/try_wheel.sh dist/pydist-*.whl
set -euo pipefail
[ "$#" = 1 ] && [ -f "$1" ] || {
    echo "usage: bash scripts/try_wheel.sh WHEEL" >&2
    exit 2
}
wheel=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
make_venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet "$wheel"
"$work/venv/bin/python" -m pip check
cd "$work"
venv/bin/python -c '
import pydist

(worker,) = pydist.addprocs(1)
assert pydist.remotecall_fetch(pow, worker, 2, 10) == 1024
pydist.rmprocs(worker)
print("the wheel works:", pydist.__file__)
'
