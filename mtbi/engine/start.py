"""What a run needs before its model: shards that fit the recipe, and the checkpoint to go on from."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from launcher.ranks import Ranks
from mtbi import recipe as recipes
from mtbi.data import features
from mtbi.data.longest import longest_tokens
from mtbi.data.plan import Plan
from mtbi.data.shards import Shards
from mtbi.engine import checkpoint, remote
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.evaluation import Evaluation
from mtbi.errors import UserError
from mtbi.model.geometry import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.tasks.chat import ChatFormat, read_chat
from mtbi.versions import commit, installed

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "mosaicml-streaming", "flash-attn")


@dataclass
class Inputs:
    """What is trained on."""

    chat: ChatFormat
    shards: Shards
    geometry: FrameGeometry
    plan: Plan


def open_inputs(recipe: Recipe) -> Inputs:
    """The training shards and their plan. Raises UserError for whatever is wrong with them, an empty plan included."""
    chat = read_chat(recipe)
    shards = open_shards(recipe.data.shards, recipe, chat)
    if recipe.interleave.share and not len(shards.index.words):
        raise UserError(
            f"interleave.share is {recipe.interleave.share:g}, but no utterance of data.shards has word times: run "
            "`mtbi data align` and make the shards again, or set interleave.share=0."
        )
    geometry = FrameGeometry.from_config(recipe.model)
    plan = Plan(shards.index, recipe, geometry)
    next(plan.steps())
    return Inputs(chat, shards, geometry, plan)


def open_evaluation(recipe: Recipe, inputs: Inputs, ranks: Ranks) -> Evaluation | None:
    """The evaluation inside the run, where the recipe asks for one."""
    if not (recipe.data.eval_shards and recipe.train.eval_every_steps):
        return None
    shards = open_shards(recipe.data.eval_shards, recipe, inputs.chat)
    return Evaluation(recipe, inputs.geometry, inputs.chat, shards, ranks.rank, ranks.world)


def longest_dialogue(inputs: Inputs, evaluation: Evaluation | None) -> int:
    """LLM positions of the longest dialogue that is trained on or evaluated."""
    return max(longest_tokens(one.plan) for one in (inputs, evaluation) if one is not None)


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


def open_snapshot(recipe: Recipe, ranks: Ranks) -> tuple[Path | None, Snapshot | None]:
    """The newest whole checkpoint, fetched from its copy where the run's folder holds none; and a note of this start.

    Raises UserError where it was made with another plan.
    """
    run_dir = Path(recipe.run_dir)
    if ranks.rank == 0 and recipe.train.copy_to and (fetched := remote.pull(recipe.train.copy_to, run_dir)):
        print(f"{fetched.name} comes from {recipe.train.copy_to}", flush=True)
    torch.distributed.barrier()
    newest = checkpoint.latest_valid(run_dir)
    snapshot = checkpoint.load(newest) if newest else None
    if snapshot:
        check_same_plan(recipe, snapshot.state["recipe"])
    if ranks.rank == 0:
        note_start(recipe, ranks, newest)
    return newest, snapshot


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


def note_start(recipe: Recipe, ranks: Ranks, newest: Path | None) -> None:
    """Keep the resolved recipe in the run's folder, and a line of `starts.jsonl` for each time the run was started."""
    run_dir = Path(recipe.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    recipes.save(recipe, run_dir / "recipe.yaml")
    record = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "processes": ranks.world,
        "job": os.environ.get("SLURM_JOB_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT"),
        "from": newest.name if newest else None,
        "code": commit(),
        "versions": {package: installed(package) for package in PACKAGES},
        "command": sys.argv,
    }
    with (run_dir / "starts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
