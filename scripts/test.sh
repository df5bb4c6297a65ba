#!/usr/bin/env bash
# Install what the tests need, build pydist and run all tests, Rust's first.
# Arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_rust
make_venv "$VENV"

say "installing the development tools"
"$VENV/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
"$VENV/bin/python" -m pip install --quiet --group dev --group frameworks

say "building pydist"
env -u CONDA_PREFIX VIRTUAL_ENV="$VENV" "$VENV/bin/maturin" develop --release

status=0
say "cargo test"
cargo test --workspace --exclude pydist-py --no-fail-fast || status=$?
say "cargo test of the schedules"
cargo test -p pydist-node --features shuttle --lib || status=$?
say "pytest"
"$VENV/bin/python" -m pytest "$@" || status=$?
exit "$status"
