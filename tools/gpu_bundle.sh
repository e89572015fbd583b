#!/usr/bin/env bash
# Makes a folder of wheels for a machine that can install nothing from outside, but has PyTorch, transformers, peft and what they need
# (a CUDA image, for example). The folder holds this package, DeepSpeed, mosaicml-streaming, and the other packages that such images lack.
#     tools/gpu_bundle.sh [OUT]            (default: gpu_wheels)
#     python -m pip install --no-index --no-deps --target site OUT/*.whl && PYTHONPATH=site python -m mtbi.cli doctor     (on that machine)
# TARGET_PYTHON=3.12 chooses the Python of that machine.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_wheels}
target=${TARGET_PYTHON:-3.12}
tools/setup.sh
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
rm -rf "$out"
mkdir -p "$out"
"${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$out" .
# Built without kernels, so the wheel fits every Python. Its build imports torch, so it takes this environment's.
DS_BUILD_OPS=0 "${pip[@]}" wheel --no-deps --no-build-isolation --no-binary deepspeed --constraint constraints.txt --wheel-dir "$out" deepspeed
download=("${pip[@]}" download --no-deps --only-binary=:all: --dest "$out" --python-version "$target" --implementation cp)
for glibc in _2_28 _2_27 _2_17 2014 1; do download+=(--platform "manylinux${glibc}_x86_64"); done
"${download[@]}" --constraint constraints.txt mosaicml-streaming boto3 botocore s3transfer jmespath \
    soundfile cffi pycparser jiwer rapidfuzz hjson brotli catalogue python-snappy cramjam
"${download[@]}" zstd # the newest with a wheel for that Python
du -sh "$out"
