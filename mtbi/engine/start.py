"""What a run needs before its model: the processes joined, and shards that fit the recipe."""

from __future__ import annotations

import os
from typing import Any

import torch

from launcher.ranks import Ranks
from mtbi import recipe as recipes
from mtbi.data import features
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
    features.check(shards.index, recipe)
    return shards


def check_same_plan(recipe: Recipe, before: dict[str, Any]) -> None:
    """Refuse to go on with another plan than the checkpoint's: its place in the data would mean something else.

    The number of rows that a process computes at once may change, as may everything that the plan does not depend on.
    """
    now = recipes.to_dict(recipe)
    for part in ("seed", "plan", "interleave"):
        old, new = (value[part] if isinstance(value[part], dict) else {part: value[part]} for value in (before, now))
        for name in new:
            if name != "rows_per_micro_batch" and old.get(name) != new[name]:
                path = name if name == part else f"{part}.{name}"
                raise UserError(
                    f"{recipe.run_dir}: its checkpoints were made with {path}={old.get(name)}, the recipe says {new[name]}. "
                    f"Put it back to go on, or choose another run_dir to start afresh."
                )


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
