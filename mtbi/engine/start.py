"""What a run needs before its model: the processes joined, and shards that fit the recipe."""

from __future__ import annotations

import os

import torch

from launcher.ranks import Ranks
from mtbi.data.shards import Shards
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.tasks.chat import ChatFormat


def open_shards(places: list[str], recipe: Recipe, chat: ChatFormat) -> Shards:
    """Shards of the recipe's LLM. Raises UserError where there are none or they are another's."""
    if not places:
        raise UserError("data.shards is empty: name the folders or addresses made by `mtbi data shard`.")
    data = recipe.data
    shards = Shards(places, data.cache_dir or f"{recipe.run_dir}/cache", data.cache_limit_gb, data.retries)
    if shards.index.fingerprint != chat.fingerprint:
        raise UserError(
            f"{places[0]}: made with {shards.index.llm}, another LLM, chat template or system prompt than the recipe's "
            f"({recipe.model.llm}); run `mtbi behave` and `mtbi data shard` with this recipe."
        )
    return shards


def start_distributed(ranks: Ranks) -> torch.device:
    """Join the processes, on GPUs by NCCL and otherwise on CPUs by gloo; returns this process's device."""
    import deepspeed

    if torch.cuda.is_available():
        device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        backend = "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world))
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    return device
