#!/usr/bin/env bash
# Installs the Debian packages that the slow tests need: Slurm, OpenStack Swift (for its S3 API), Chromium, ffmpeg. Only root installs them;
# for other users the script prints what is missing.
set -euo pipefail
missing=()
for package in ffmpeg slurm-wlm munge chromium swift-proxy swift-account swift-container swift-object memcached; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
((${#missing[@]})) || exit 0
if [[ $(id -u) == 0 ]]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
else
    echo "missing: ${missing[*]}. On Debian: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 2
fi
