"""What may go wrong before any GPU hour is spent: a table of findings, each with what to do about it."""

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
from math import inf
from pathlib import Path

from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.versions import installed

PACKAGES = ("torch", "torchaudio", "transformers", "deepspeed", "peft", "mosaicml-streaming", "tensorboard")
LOW_DISK_GB = 20
PROBE_BYTES = 8 << 20
OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    status: str  #: ok, warn or fail
    what: str
    found: str
    remedy: str = ""


def machine() -> Iterator[Finding]:
    """Packages, devices, compilers, disk."""
    import torch

    from mtbi.llm import kernels

    yield Finding(OK, "python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    for package in PACKAGES:
        version = installed(package)
        remedy = "" if version else "make setup, or pip install -c constraints.txt -e ."
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
    for title, there, otherwise in (
        ("flash-attn 2", kernels.has_flash_attn_2(), "PyTorch's own kernel serves; pip install '.[flash]' for theirs"),
        ("vllm", is_importable("vllm"), "leave behaviour.backend at transformers"),
        ("espeak-ng", is_importable("espeakng_loader"), "make demo needs SPEECH=FOLDER"),
    ):
        yield Finding(OK, title, "found" if there else "not installed", "" if there else otherwise)
    yield disk(Path.cwd())


def is_importable(module: str) -> bool:
    """Whether a module of that name is installed."""
    return importlib.util.find_spec(module) is not None


def matching_builds() -> Iterator[Finding]:
    """torch and torchaudio come in pairs; other pairs fail at import in ways that are hard to read."""
    torch_version, audio_version = ((installed(name) or "").split("+")[0] for name in ("torch", "torchaudio"))
    if not (torch_version and audio_version):
        return
    same = torch_version.split(".")[:2] == audio_version.split(".")[:2]
    remedy = "" if same else "install the versions of constraints.txt"
    yield Finding(OK if same else FAIL, "torch pair", f"torch {torch_version}, torchaudio {audio_version}", remedy)


def peers(gpus: int) -> Iterator[Finding]:
    """Whether the GPUs of this machine reach each other's memory."""
    import torch

    pairs = [(one, other) for one in range(gpus) for other in range(gpus) if one != other]
    without = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if pairs:
        remedy = "check NVLink, PCIe ACS and the container's options; collectives go through the host otherwise"
        found = f"{len(pairs) - len(without)} of {len(pairs)} pairs"
        yield Finding(WARN if without else OK, "peer access", found, remedy if without else "")


def disk(folder: Path) -> Finding:
    """Free space where a folder is or will be."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 1e9
    low = free < LOW_DISK_GB
    return Finding(
        WARN if low else OK, "disk", f"{free:.0f} GB free at {place}", "make room, or choose another run_dir" if low else ""
    )


def guarded(what: str, check: Callable[[], str]) -> Finding:
    """A check that says what it found, or raises what is wrong."""
    try:
        return Finding(OK, what, check())
    except (UserError, OSError) as error:
        return Finding(FAIL, what, str(error))


def of_recipe(recipe: Recipe, gpus: int, gpu_gb: float) -> Iterator[Finding]:
    """Models, memory, run folder and shards of a recipe."""
    from mtbi.engine import memory

    yield guarded("run_dir", lambda: writable(Path(recipe.run_dir)))
    yield disk(Path(recipe.run_dir))
    try:
        sizes = memory.sizes_of(recipe)
        found, best = memory.survey(recipe, sizes, gpus, gpu_gb or inf)
        least = min(found, key=lambda one: one.total)
        told = f"{best.name} needs about {best.total:.1f} GB" if best else f"at least {least.total:.1f} GB are needed"
        told += f" on each of {gpus} GPUs" + (f" of {gpu_gb:.0f} GB" if gpu_gb else "")
        told += ", activations recomputed" * found[0].recomputed
        yield Finding(OK if best else FAIL, "memory", told, "" if best else f"see mtbi plan {recipe.name} --gpus {gpus}")
    except UserError as error:
        yield Finding(FAIL, "models", str(error))
    yield guarded("packed rows", lambda: packed_rows(recipe))
    yield guarded("tokenizer", lambda: tokenizer(recipe))
    for field, places in (("data.shards", recipe.data.shards), ("data.eval_shards", recipe.data.eval_shards)):
        if not places and field == "data.shards":
            yield Finding(WARN, field, "empty", "name the folders or addresses made by `mtbi data shard`")
        for place in places:
            yield guarded(place, lambda place=place: shards(place, recipe))  # type: ignore[misc]


def writable(folder: Path) -> str:
    """A file can be made there."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"x")
    return f"{place} can be written"


def packed_rows(recipe: Recipe) -> str:
    """The attention back end of the LLM, and a packed row through two layers of its kind, of random weights."""
    import torch

    from mtbi.llm import back_end, kernels, precision
    from mtbi.model.miniature import try_packed_row

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = back_end.read_config(recipe.model)
    shape = back_end.LLMShape.of(config)
    back_end.check_config(shape)
    dtype = precision.of(recipe.precision, device)
    chosen, why = back_end.choose(recipe.model.attention, device, dtype, shape, recipe.plan.row_tokens)
    if chosen == "flash" and device.type == "cuda":
        why = f"kernels: {kernels.choose_kernels(device, shape.heads, shape.key_heads, shape.size)}"
    found = try_packed_row(config, chosen, recipe.model.llm)
    return f"attention {chosen} ({why}); {found}"


def tokenizer(recipe: Recipe) -> str:
    """The LLM's tokenizer and chat template work."""
    from mtbi.llm.chat_format import read_chat

    chat = read_chat(recipe)
    return f"{recipe.model.llm}: {len(chat.tokenizer)} tokens, fingerprint {chat.fingerprint[:12]}"


def shards(place: str, recipe: Recipe) -> str:
    """The index is whole, fits the recipe's LLM, and first and last utterances can be read; how fast, if remote."""
    from mtbi.llm.chat_format import read_chat
    from mtbi.object_store import is_remote
    from mtbi.shards.open_shards import open_training_shards

    with tempfile.TemporaryDirectory(prefix="mtbi-doctor-") as cache:
        local = replace(recipe, data=replace(recipe.data, cache_dir=cache))
        began = time.perf_counter()
        opened = open_training_shards([place], local, read_chat(recipe))
        for number in {0, len(opened) - 1}:
            _ = opened[number]
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    hours = opened.index.utterances["samples"].sum(dtype="u8") / 16000 / 3600
    speed = f", {size / 1e6 / seconds:.0f} MB/s" if is_remote(place) else ""
    return f"{len(opened)} utterances, {hours:.1f} h, {len(opened.index.tasks)} tasks{speed}"


def store_rights(place: str) -> str:
    """Write, read and compare one object below an address; its throughput."""
    from mtbi import object_store

    name, payload = f"mtbi-doctor-{uuid.uuid4().hex}", os.urandom(PROBE_BYTES)
    with tempfile.TemporaryDirectory(prefix="mtbi-doctor-") as folder:
        (Path(folder) / name).write_bytes(payload)
        began = time.perf_counter()
        object_store.upload(Path(folder), [name], place)
        written = time.perf_counter()
        object_store.fetch(f"{place.rstrip('/')}/{name}", Path(folder) / "back", retries=2)
        read = time.perf_counter()
        object_store.delete(f"{place.rstrip('/')}/{name}")
        if (Path(folder) / "back").read_bytes() != payload:
            raise UserError(f"{place}: what was read is not what was written; look at the store and the proxies before it.")
    return f"writes {PROBE_BYTES / 1e6 / (written - began):.0f} MB/s, reads {PROBE_BYTES / 1e6 / (read - written):.0f} MB/s"


def render(found: list[Finding]) -> str:
    """The table."""
    width = max(len(one.what) for one in found)
    lines = [
        f"{one.status:4s}  {one.what:{width}s}  {one.found}" + (f"\n{'':{width + 6}s}  → {one.remedy}" if one.remedy else "")
        for one in found
    ]
    bad = {status: sum(one.status == status for one in found) for status in (FAIL, WARN)}
    return "\n".join([*lines, f"{bad[FAIL]} failed, {bad[WARN]} warnings"])
