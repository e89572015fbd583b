"""What a machine offers for training, in a few lines."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version


def findings() -> Iterator[str]:
    """One line for each thing that runs depend on."""
    import torch

    yield f"python        {platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores"
    for package in ("torch", "torchaudio", "transformers", "deepspeed", "peft", "mosaicml-streaming"):
        try:
            yield f"{package:13s} {version(package)}"
        except PackageNotFoundError:
            yield f"{package:13s} MISSING: run `make setup`"
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield f"GPU {number}         {device.name}, {device.total_memory / 2**30:.0f} GiB"
    if not torch.cuda.is_available():
        yield "GPU           none: training runs on the CPU in fp32, attention `dense`"
    for title, found, otherwise in (
        ("g++", shutil.which("g++"), "MISSING: DeepSpeed compiles with it; Debian: apt-get install g++ python3-dev"),
        ("flash-attn", has_module("flash_attn"), "not installed: PyTorch's own kernel serves"),
        ("vllm", has_module("vllm"), "not installed: leave behaviour.backend at transformers"),
        ("espeak-ng", has_module("espeakng_loader"), "not installed: make demo needs SPEECH=FOLDER"),
    ):
        yield f"{title:13s} {'found' if found else otherwise}"
    free = shutil.disk_usage(".").free / 2**30
    yield f"disk          {free:.0f} GiB free here{'' if free > 10 else ': LOW'}"
    yield f"S3 endpoint   {os.environ.get('S3_ENDPOINT_URL') or 'AWS (S3_ENDPOINT_URL is not set)'}"


def has_module(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None
