#!/usr/bin/env bash
# Build pydist, install it into a virtual environment and run the first example.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

need_rust
make_venv "$VENV"

say "building and installing pydist"
"$VENV/bin/python" -m pip install --quiet --upgrade pip
"$VENV/bin/python" -m pip install .

say "examples/quickstart.py"
"$VENV/bin/python" examples/quickstart.py "$@"
