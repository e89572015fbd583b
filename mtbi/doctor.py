"""`mtbi doctor`: checks of the machine and of a recipe before any GPU hour is spent. Each failed check names its remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from mtbi import mds
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.versions import installed

if TYPE_CHECKING:
    from mtbi.engine.trained import CheckpointSize

PACKAGES = ("torch", "torchaudio", "transformers", "deepspeed", "peft", "mosaicml-streaming", "tensorboard")
LOW_DISK_GB = 20
PROBE_BYTES = 8 << 20
OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One row of the table. The names of the fields are keys of `mtbi doctor --json`."""

    status: str  #: ok, warn or fail
    what: str  #: the thing that was checked
    found: str  #: its state, or the error message
    remedy: str = ""


def machine() -> Iterator[Finding]:
    """Checks of packages, devices, compilers and disk."""
    import torch

    from mtbi.llm import kernels

    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    for package in PACKAGES:
        version = installed(package)
        command = mds.INSTALL if package == "mosaicml-streaming" else "pip install -c constraints.txt -e ."
        remedy = "" if version else f"make setup, or {command}"
        yield Finding(OK if version else FAIL, package, version or "missing", remedy)
    yield from matching_builds()
    for number in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(number)
        yield Finding(OK, f"GPU {number}", f"{device.name}, {device.total_memory / 1e9:.0f} GB")
    if not torch.cuda.is_available():
        yield Finding(WARN, "GPU", "none: CPU, float32, attention `dense`", "train on a machine with CUDA GPUs")
    else:
        yield guarded("flash attention", lambda: kernels.choose_kernels(torch.device("cuda")))
    yield from peers(torch.cuda.device_count())
    compiler = shutil.which("g++")
    yield Finding(OK if compiler else FAIL, "g++", compiler or "missing", "" if compiler else "apt-get install g++ python3-dev")
    for title, available, remedy in (
        ("flash-attn 2", kernels.has_flash_attn_2(), "PyTorch's own kernel serves; pip install '.[flash]' for theirs"),
        ("vllm", is_importable("vllm"), "leave behaviour.backend at transformers"),
        ("espeak-ng", is_importable("espeakng_loader"), "make demo needs SPEECH=FOLDER"),
    ):
        yield Finding(OK, title, "found" if available else "not installed", "" if available else remedy)
    yield disk(Path.cwd())


def is_importable(module: str) -> bool:
    """Whether a module of that name is installed."""
    return importlib.util.find_spec(module) is not None


def matching_builds() -> Iterator[Finding]:
    """Whether torch and torchaudio are of one release. Other pairs fail at import with obscure errors."""
    torch_version, audio_version = ((installed(name) or "").split("+")[0] for name in ("torch", "torchaudio"))
    if not (torch_version and audio_version):
        return
    matching = torch_version.split(".")[:2] == audio_version.split(".")[:2]
    remedy = "" if matching else "install the versions of constraints.txt"
    yield Finding(OK if matching else FAIL, "torch pair", f"torch {torch_version}, torchaudio {audio_version}", remedy)


def peers(gpus: int) -> Iterator[Finding]:
    """Whether the GPUs of this machine can access each other's memory."""
    import torch

    pairs = list(permutations(range(gpus), 2))
    without = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if pairs:
        remedy = "check NVLink, PCIe ACS and the container's options; collectives go through the host otherwise"
        reachable = f"{len(pairs) - len(without)} of {len(pairs)} pairs"
        yield Finding(WARN if without else OK, "peer access", reachable, remedy if without else "")


def disk(folder: Path) -> Finding:
    """Free space on the disk of a folder that exists or will be made."""
    existing = nearest_existing(folder)
    free_gb = shutil.disk_usage(existing).free / 1e9
    low = free_gb < LOW_DISK_GB
    remedy = "make room, or choose another run_dir" if low else ""
    return Finding(WARN if low else OK, "disk", f"{free_gb:.0f} GB free at {existing}", remedy)


def checkpoints(run_dir: Path, size: CheckpointSize) -> Finding:
    """What the run's checkpoints hold, and whether the disk has room for them."""
    free = shutil.disk_usage(nearest_existing(run_dir)).free
    remedy = "make room, choose another run_dir, lower train.keep_last, or train fewer parts"
    status = OK if free > size.folder_bytes else WARN if free > size.bytes else FAIL
    return Finding(status, "checkpoints", str(size), "" if status == OK else f"{free / 1e9:.1f} GB are free: {remedy}")


def nearest_existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def guarded(what: str, check: Callable[[], str]) -> Finding:
    """The finding of a check that returns a description, or raises UserError or OSError if it fails."""
    try:
        return Finding(OK, what, check())
    except (UserError, OSError) as error:
        return Finding(FAIL, what, str(error))


def of_recipe(recipe: Recipe, gpus: int, gpu_gb: float) -> Iterator[Finding]:
    """Checks of a recipe: run folder, memory, models and shards."""
    from mtbi.engine import memory

    yield guarded("run_dir", lambda: writable(Path(recipe.run_dir)))
    yield disk(Path(recipe.run_dir))
    try:
        sizes = memory.sizes_of(recipe)
        estimates, best = memory.survey(recipe, sizes, gpus, gpu_gb or inf)
        least = min(estimates, key=lambda estimate: estimate.total)
        need = f"{best.name} needs about {best.total:.1f} GB" if best else f"at least {least.total:.1f} GB are needed"
        need += f" on each of {gpus} GPUs" + (f" of {gpu_gb:.0f} GB" if gpu_gb else "")
        need += ", activations recomputed" * estimates[0].recomputed
        yield Finding(OK if best else FAIL, "memory", need, "" if best else f"see mtbi plan {recipe.name} --gpus {gpus}")
        yield checkpoints(Path(recipe.run_dir), memory.checkpoint_of(recipe, sizes))
    except UserError as error:
        yield Finding(FAIL, "models", str(error))
    yield guarded("packed rows", lambda: packed_rows(recipe))
    yield guarded("tokenizer", lambda: tokenizer(recipe))
    for field, addresses in (("data.shards", recipe.data.shards), ("data.eval_shards", recipe.data.eval_shards)):
        if not addresses and field == "data.shards":
            yield Finding(WARN, field, "empty", "name the folders or addresses made by `mtbi data shard`")
        for address in addresses:
            yield guarded(address, partial(shards, address, recipe))


def writable(folder: Path) -> str:
    """Create a temporary file in a folder, or in the nearest one that exists. Raises OSError if that fails."""
    existing = nearest_existing(folder)
    with tempfile.TemporaryFile(dir=existing) as file:
        file.write(b"x")
    return f"{existing} can be written"


def packed_rows(recipe: Recipe) -> str:
    """Choose the LLM's attention back end, and run a packed row through two layers of the LLM's kind with random weights."""
    import torch

    from mtbi.llm import back_end, kernels, precision
    from mtbi.model.miniature import try_packed_row

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = back_end.read_config(recipe.model)
    shape = back_end.checked_shape(config)
    dtype = precision.of(recipe.precision, device)
    chosen, why = back_end.choose(recipe.model.attention, device, dtype, shape, recipe.plan.row_tokens)
    if chosen == "flash" and device.type == "cuda":
        why = f"kernels: {kernels.choose_kernels(device, shape.heads, shape.key_heads, shape.size)}"
    return f"attention {chosen} ({why}); {try_packed_row(config, chosen, recipe.model.llm)}"


def tokenizer(recipe: Recipe) -> str:
    """Read the LLM's tokenizer and apply its chat template."""
    from mtbi.llm.chat_format import read_chat

    chat = read_chat(recipe)
    return f"{recipe.model.llm}: {len(chat.tokenizer)} tokens, fingerprint {chat.fingerprint[:12]}"


def shards(address: str, recipe: Recipe) -> str:
    """Check an index against the recipe's LLM, and read the first and the last utterance. For a remote address, time it."""
    from mtbi.engine.inputs import open_training_shards
    from mtbi.llm.chat_format import read_chat
    from mtbi.object_store import is_remote

    with tempfile.TemporaryDirectory(prefix="mtbi-doctor-") as cache:
        local = replace(recipe, data=replace(recipe.data, cache_dir=cache))
        began = time.perf_counter()
        opened = open_training_shards([address], local, read_chat(recipe))
        for number in {0, len(opened) - 1}:
            _ = opened[number]
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    hours = opened.index.utterances["samples"].sum(dtype="u8") / 16000 / 3600
    speed = f", {size / 1e6 / seconds:.0f} MB/s" if is_remote(address) else ""
    return f"{len(opened)} utterances, {hours:.1f} h, {len(opened.index.tasks)} tasks{speed}"


def store_rights(address: str) -> str:
    """Write, read, compare and delete one object below an address. Returns the throughput."""
    from mtbi import object_store

    name, payload = f"mtbi-doctor-{uuid.uuid4().hex}", os.urandom(PROBE_BYTES)
    with tempfile.TemporaryDirectory(prefix="mtbi-doctor-") as folder:
        (Path(folder) / name).write_bytes(payload)
        began = time.perf_counter()
        object_store.upload(Path(folder), [name], address)
        written = time.perf_counter()
        object_store.fetch(f"{address.rstrip('/')}/{name}", Path(folder) / "back", retries=2)
        read = time.perf_counter()
        object_store.delete(f"{address.rstrip('/')}/{name}")
        if (Path(folder) / "back").read_bytes() != payload:
            raise UserError(f"{address}: what was read is not what was written; look at the store and the proxies before it.")
    return f"writes {PROBE_BYTES / 1e6 / (written - began):.0f} MB/s, reads {PROBE_BYTES / 1e6 / (read - written):.0f} MB/s"


def render(findings: list[Finding]) -> str:
    """The findings as a table, with a last line of counts."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:4s}  {finding.what:{width}s}  {finding.found}")
        lines += [f"{'':{width + 6}s}  → {finding.remedy}"] * bool(finding.remedy)
    count = {status: sum(finding.status == status for finding in findings) for status in (FAIL, WARN)}
    return "\n".join([*lines, f"{count[FAIL]} failed, {count[WARN]} warnings"])
