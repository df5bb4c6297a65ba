#!/usr/bin/env bash
# Install what the tests of other machines need: a server for ssh, another shell, network namespaces.
# The tests start and stop the servers themselves, by scripts in the folder that PYDIST_TESTING_SCRIPTS names,
# or in shared/testing beside this repository; they are skipped, with the reason, where something is not there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

missing=()
for package in openssh-server openssh-client tcsh iproute2; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ] && ! apt_install --no-install-recommends "${missing[@]}"; then
    say "not installed: ${missing[*]}; tests that need them are skipped"
fi
scripts=${PYDIST_TESTING_SCRIPTS:-../shared/testing}
if [ -x "$scripts/sshd_up.sh" ]; then
    # One start shows here, not in each test, where a server cannot run.
    folder=$(mktemp -d)/sshd
    "$scripts/sshd_up.sh" --dir "$folder" && "$scripts/sshd_down.sh" --dir "$folder"
else
    say "no scripts that start servers in $scripts; tests that need them are skipped"
fi
