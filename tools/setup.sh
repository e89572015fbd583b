#!/usr/bin/env bash
# Makes .venv with everything that `make demo` and `make test` need. It returns at once when nothing has changed.
# PYTHON=… chooses the interpreter (default python3). As root on Debian it installs missing system packages; otherwise it lists them.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
stamp=$venv/.mtbi-setup
wanted=$(cat setup.cfg constraints.txt tools/setup.sh | sha256sum | cut -d' ' -f1)
[[ -f $stamp && $(<"$stamp") == "$wanted" ]] && exit 0

python=${PYTHON:-python3}
missing=()
command -v "$python" >/dev/null || missing+=(python3)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# DeepSpeed and Triton compile C++ code at their first use. They need a compiler and Python's headers.
"$python" -c 'import os, sysconfig; exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null || missing+=(python3-dev)
command -v g++ >/dev/null || missing+=(g++)
command -v git >/dev/null || missing+=(git)
if ((${#missing[@]})); then
    if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
        echo "setup: installing the Debian packages ${missing[*]}"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq </dev/null
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
    else
        echo "setup: missing: ${missing[*]}. On Debian or Ubuntu: sudo apt-get install ${missing[*]}" >&2
        exit 2
    fi
fi
if ! "$python" -c 'import sys; exit(sys.version_info < (3, 11))'; then
    echo "setup: $("$python" --version) is too old, 3.11 or newer is needed. Name another one: PYTHON=python3.11 make …" >&2
    exit 2
fi

echo "setup: installing into $venv (about 6 GB; a few minutes the first time)"
rm -f "$stamp"
[[ -x $venv/bin/python ]] && "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear "$venv"
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@" </dev/null; }
install --no-warn-conflicts --editable '.[demo,dev]'
# By itself, since its metadata forbid transformers 5 and numpy 2.2, which its code accepts (docs/dependencies.md).
install --no-deps mosaicml-streaming
echo "$wanted" >"$stamp"
echo "setup: done"
