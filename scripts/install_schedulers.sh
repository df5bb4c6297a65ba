#!/usr/bin/env bash
# Install the Slurm and the Open MPI that tests/schedulers start; without them those tests are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

packages=(munge slurmctld slurmd slurm-client openmpi-bin)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ "${#missing[@]}" = 0 ]; then
    echo "installed: ${packages[*]}"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt_install --no-install-recommends "${missing[@]}"
else
    echo "not installed: ${missing[*]} (Debian, Ubuntu: apt-get install --no-install-recommends ${missing[*]})"
fi
