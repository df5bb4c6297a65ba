#!/usr/bin/env bash
# Install the browser in which the tests look at the dashboard; they are skipped, with the reason, where there is none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for browser in chromium chromium-browser google-chrome google-chrome-stable; do
    if command -v "$browser" >/dev/null; then
        say "$("$browser" --version)"
        exit
    fi
done
apt_install --no-install-recommends chromium fonts-dejavu-core ||
    say "chromium is not installed; tests of the dashboard's page are skipped"
