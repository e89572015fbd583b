"""Load an export of the layout `trained`: frozen weights come from the original models, trained ones from the export."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from mtbi.hf.configuration import MtbiConfig
from mtbi.model.speech_llm import SpeechLLMModule, build_speech_llm
from mtbi.recipe import LossConfig, in_use

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
#: Arguments of `from_pretrained` that change nothing here: internal ones of transformers, and ways to save memory.
WITHOUT_EFFECT = ("_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "adapter_kwargs", "low_cpu_mem_usage",
                  "offload_state_dict", "resume_download", "weights_only")  # fmt: skip
#: Arguments that need all weights in the export.
COMPLETE_ONLY = ("adapter_name", "device_mesh", "distributed_config", "from_flax", "from_tf", "gguf_file",
                 "ignore_mismatched_sizes", "key_mapping", "load_in_4bit", "load_in_8bit", "max_memory", "offload_buffers",
                 "offload_folder", "quantization_config", "state_dict", "tp_plan", "tp_size", "use_kernels",
                 "variant")  # fmt: skip


def load(cls: Any, path: Any, config: MtbiConfig, arguments: dict[str, Any]) -> Any:
    """A model of the class `cls`, as its `from_pretrained` returns it with these arguments.

    `device_map` may name one device. `attn_implementation` is the LLM's. Raises UserError if the frozen weights cannot be
    loaded, ValueError if the weights do not fit or an argument needs an export of all weights, TypeError for an unknown one.
    """
    options = {name: value for name, value in arguments.items() if name not in WITHOUT_EFFECT}
    hub = {name: options.pop(name) for name in HUB if name in options}
    hub = {name: value for name, value in hub.items() if value is not None}
    dtype, device = options.pop("dtype", "auto"), one_device(options.pop("device_map", None))
    attention = options.pop("attn_implementation", None) or config._attn_implementation
    trust, info = bool(options.pop("trust_remote_code", False)), bool(options.pop("output_loading_info", False))
    generation = options.pop("generation_config", None)
    if options.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors=False: an export's weights are safetensors")
    refused = [name for name in COMPLETE_ONLY if options.pop(name, None) not in (None, False)]
    if refused:
        raise ValueError(
            f"{', '.join(refused)}: {path} holds trained weights only, and loads the frozen ones unchanged; "
            "for this, export with `mtbi export --layout merged`"
        )
    if options:
        raise TypeError(f"from_pretrained knows no argument {', '.join(sorted(options))}")
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    built = build_speech_llm(replace(in_use(config.model), trust_remote_code=trust), LossConfig(), dtype, device)
    put_weights(built, path, hub)
    usual = "sdpa" if built.llm._supports_sdpa else "eager"
    built.llm.set_attn_implementation(attention or usual)
    model = cls(config, built)
    model.generation_config = generation or GenerationConfig.from_pretrained(path, **hub)
    loaded: dict[str, list] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    return (model.eval(), loaded) if info else model.eval()


def put_weights(model: SpeechLLMModule, path: Any, hub: dict[str, Any]) -> None:
    """Load the weights of an export. Raises ValueError if a trained weight is missing, or if one is not in the model."""
    absent, unexpected = model.load_state_dict(read_weights(path, hub), strict=False)
    missing = sorted(set(absent) & set(model.trainable_parameters()))
    if missing or unexpected:
        raise ValueError(f"{path}: the weights do not fit config.json; missing {missing}, unexpected {unexpected}")


def read_weights(path: Any, hub: dict[str, Any]) -> dict[str, Tensor]:
    """The weights by name, from one file or from several. Raises ValueError if there is neither, or both."""
    missing_ok: Any = {"_raise_exceptions_for_missing_entries": False}
    whole, index = (cached_file(path, name, **missing_ok, **hub) for name in (WEIGHTS, INDEX))
    if whole and index:
        raise ValueError(f"{path}: has both {WEIGHTS} and {INDEX}; delete the older one")
    if index:
        shards, _ = get_checkpoint_shard_files(path, index, **hub)
        return {name: value for shard in shards for name, value in load_file(shard).items()}
    if not whole:
        raise ValueError(f"{path}: has no {WEIGHTS} and no {INDEX}; other formats of weights are not loaded")
    return load_file(whole)


def modified_ns(folder: Any) -> dict[str, int]:
    """Modification times, in nanoseconds, of the weight file and of the index of several, if they exist."""
    paths = {name: os.path.join(folder, name) for name in (WEIGHTS, INDEX)}
    return {name: os.stat(path).st_mtime_ns for name, path in paths.items() if os.path.isfile(path)}


def one_device(device_map: Any) -> torch.device:
    """The device of a `device_map` that names a single one. Raises ValueError for other maps."""
    if isinstance(device_map, dict) and len(device_map) == 1:
        [device_map] = device_map.values()
    if device_map is None or device_map == "auto":
        return torch.device("cuda" if device_map and torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device_map)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device_map={device_map!r}: an export of trained weights only loads on one device; for more, "
            "`mtbi export --layout merged`"
        ) from error
