"""Prepares a run before its model is built: shards that fit the recipe, and the checkpoint to go on from."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.ranks import Ranks
from mtbi import recipe as recipes
from mtbi.batches.augment import Augmentation
from mtbi.batches.interleave import Coverage
from mtbi.batches.longest import longest_tokens
from mtbi.batches.plan import Plan, Position, Step
from mtbi.engine import checkpoint, digest, loggers, needs, remote
from mtbi.engine.agreement import Attempt, Facts, Report, attempt, compare, describe_processes, gather, settle, share
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.checkpointing import Progress
from mtbi.engine.ds_config import read_ds_config
from mtbi.engine.lease import Lease
from mtbi.engine.validation import Evaluation
from mtbi.errors import UserError
from mtbi.llm import back_end, precision, trained_layers
from mtbi.llm.chat_format import ChatFormat, read_chat
from mtbi.model.encoders.build import encoder_facts
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards import features
from mtbi.shards.open_shards import open_shards
from mtbi.shards.read import Shards
from mtbi.versions import commit, installed

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "mosaicml-streaming", "flash-attn")
COMPARED = ("mtbi", "torch", "numpy", "transformers", "deepspeed", "peft")  #: must have the same version on all processes
#: Fields of the recipe that may differ between processes: folders, and how a process reads.
OWN_FIELDS = (
    "name", "run_dir", "data.shards", "data.eval_shards", "data.weights", "data.cache", "data.workers", "data.prefetch",
    "data.retries",
)  # fmt: skip
NOT_PLANNED = ("encoded", "feature_width", "top_k")  #: facts of the data that may change between two starts of a run
#: Messages for digests that differ from a checkpoint's.
CAUSES = {
    "geometry": "the encoder or adapter gives another number of LLM positions",
    "tokenizer": "the LLM's tokenizer, chat template or system prompt has changed",
    "tasks": "the shards have other tasks",
    "weights": "data.weights gives the shards other weights",
    "plan": "this version of mtbi plans other steps from the same shards",
}
NEW_EPOCH = "keep the weights and begin a new epoch of the data with train.new_data=new_epoch"
log = logging.getLogger(__name__)


@dataclass
class Inputs:
    """The training data, and its plan."""

    chat: ChatFormat
    shards: Shards
    geometry: FrameGeometry
    plan: Plan
    first_step: Step  #: of the first epoch
    augmentation: Augmentation | None  #: of the training steps; None = none

    @property
    def coverage(self) -> Coverage:
        """How many of the utterances can be interleaved."""
        return Coverage.of(self.shards.index.spoken_words)


@dataclass
class Start:
    """The point at which a run begins, the same on all processes."""

    inputs: Inputs
    evaluation: Evaluation | None
    newest: Path | None  #: the checkpoint to go on from
    snapshot: Snapshot | None  #: its content
    progress: Progress
    lease: Lease | None  #: the right to write into the run's folder; the first process has it


def open_inputs(recipe: Recipe) -> Inputs:
    """Open the training shards and plan the first step.

    Raises UserError for every mistake in them, for an empty plan, and for a logger that does not exist.
    """
    loggers.find(recipe.train.loggers)
    trained_layers.check(recipe.model)
    chat = read_chat(recipe)
    shards = open_training_shards(recipe.data.shards, recipe, chat)
    needs.check(recipe, shards.index)
    geometry = FrameGeometry.from_config(recipe.model)
    plan = Plan(shards.index, recipe, geometry)
    return Inputs(chat, shards, geometry, plan, next(plan.steps()), Augmentation.of(recipe, geometry, shards))


def open_evaluation(recipe: Recipe, inputs: Inputs, ranks: Ranks) -> Evaluation | None:
    """The evaluation during training; None if the recipe has none."""
    if not (recipe.data.eval_shards and recipe.train.eval_every_steps):
        return None
    shards = open_training_shards(recipe.data.eval_shards, recipe, inputs.chat)
    return Evaluation(recipe, inputs.geometry, inputs.chat, shards, ranks)


def open_training_shards(addresses: list[str], recipe: Recipe, chat: ChatFormat) -> Shards:
    """Open shards to train on, or to evaluate on during training. Raises UserError if they do not fit the recipe.

    Beyond `open_shards`, the prompts must be on the recipe's side of the speech, and stored features must be the encoder's.
    """
    if not addresses:
        raise UserError("data.shards is empty: name the folders or addresses made by `mtbi data shard`.")
    shards = open_shards(addresses, recipe, chat)
    prompt_first = shards.index.prompt_first
    if prompt_first != recipe.behaviour.prompt_first:
        sides = {True: "before", False: "after"}
        raise UserError(
            f"{addresses[0]}: its prompts stand {sides[prompt_first]} the speech, the recipe's {sides[not prompt_first]} it: "
            f"set behaviour.prompt_first={str(prompt_first).lower()}, or make the shards again with this recipe."
        )
    encoder = encoder_facts(recipe.model.encoder, recipe.model.trust_remote_code)
    features.check(shards.index, recipe, encoder.output_name, encoder.trainable)
    return shards


def longest_dialogue(inputs: Inputs, evaluation: Evaluation | None) -> int:
    """LLM positions of the longest dialogue in training or evaluation."""
    plans = [inputs.plan] if evaluation is None else [inputs.plan, evaluation.plan]
    return max(longest_tokens(plan) for plan in plans)


def agree(recipe: Recipe, ds_config: str, ranks: Ranks, device: torch.device, opened: Attempt[Inputs]) -> Start:
    """Compare all that must be the same on all processes, and find the point at which the run begins.

    `opened` is the attempt to open the inputs. Raises UserError on all processes if one of them failed to read something, if
    they differ, or if the checkpoint does not fit.
    """
    inputs = settle(ranks, opened)
    evaluation = settle(ranks, attempt(lambda: open_evaluation(recipe, inputs, ranks)))
    facts = settle(ranks, attempt(lambda: facts_of(recipe, ds_config, ranks, device, inputs, evaluation)))
    compare(ranks, facts)
    lease = settle(ranks, attempt(lambda: Lease.take(recipe.run_dir) if ranks.rank == 0 else None))
    try:
        newest, snapshot = share(ranks, device, lambda: choose_checkpoint(recipe)) or (None, None)
        refuse_later(recipe, ranks)
        progress = progress_of(recipe, snapshot, facts)
        if ranks.rank == 0 and snapshot:
            report_changes(recipe, snapshot.state, progress)
        settle(ranks, attempt(lambda: record_start(recipe, ranks, newest) if ranks.rank == 0 else None))
    except UserError:
        if lease:
            lease.release()
        raise
    return Start(inputs, evaluation, newest, snapshot, progress, lease)


def facts_of(
    recipe: Recipe, ds_config: str, ranks: Ranks, device: torch.device, inputs: Inputs, evaluation: Evaluation | None
) -> Facts:
    """All that must be the same on all processes, by topic and name."""
    config = read_ds_config(ds_config, recipe, ranks.world, precision.of(recipe.precision, device))
    fields = {
        note.path: recipes.value_of(recipe, note.path) for note in recipes.reference() if not note.path.startswith(OWN_FIELDS)
    }
    index = inputs.shards.index
    data = digest.of_shards(inputs.shards)
    data |= {"weights": digest.of_json(inputs.plan.weights)}
    data |= {"geometry": digest.of_geometry(inputs.geometry), "plan": digest.of_step(inputs.first_step)}
    stored = {"encoded": index.encoded, "feature_width": index.feature_width, "top_k": index.top_k}
    distortions = inputs.augmentation and inputs.augmentation.distortions
    return {
        "recipe": fields | {"--deepspeed": config},
        "data": data | stored,
        "evaluation": digest.of_shards(evaluation.shards) if evaluation else {},
        "augmentation": {name: digest.of_json(names) for name, names in distortions.names.items()} if distortions else {},
        "models": {"the configuration of model.llm": llm_configuration(recipe)},
        "software": {package: installed(package) for package in COMPARED},
    }


def llm_configuration(recipe: Recipe) -> str:
    """The LLM's configuration as JSON text, without its path. Raises UserError if it cannot be read."""
    config = back_end.read_config(recipe.model)
    config._name_or_path = ""
    return config.to_json_string(use_diff=False)


def choose_checkpoint(recipe: Recipe) -> tuple[Path, Snapshot] | None:
    """The newest whole checkpoint of the run's folder or of its remote copy. Only the first process calls this.

    Raises UserError if there are checkpoints but none can be used.
    """
    run_dir = Path(recipe.run_dir)
    if recipe.train.copy_to and (fetched := remote.pull(recipe.train.copy_to, run_dir)):
        print(f"{fetched.name} was downloaded from {recipe.train.copy_to}", flush=True)
    newest = checkpoint.newest(run_dir)
    return (newest, checkpoint.load(newest)) if newest else None


def refuse_later(recipe: Recipe, ranks: Ranks) -> None:
    """Raises UserError on all processes if one of them sees a later checkpoint than the first process does.

    Then `run_dir` is on each node's own disk, and the job was started again with its nodes in another order.
    """
    newest = max((folder.name for folder in checkpoint.all_of(recipe.run_dir)), default="no checkpoint")
    reports = gather(ranks, Report(ranks.rank, socket.gethostname(), facts={"checkpoint": {"newest": newest}}))
    names = [(report.facts or {})["checkpoint"]["newest"] for report in reports]
    if later := [report for report, name in zip(reports, names, strict=True) if name > names[0]]:
        others, first = describe_processes(later), describe_processes(reports[:1])
        raise UserError(
            f"{recipe.run_dir}: {others} sees {max(names)} there, but {first} sees {names[0]}: this is not one folder. Put "
            "run_dir on a file system that all nodes share, or set train.copy_to."
        )


def progress_of(recipe: Recipe, snapshot: Snapshot | None, facts: Facts) -> Progress:
    """The run's progress, with digests of today's data.

    A checkpoint's position refers to the data and plan of its time. If they have changed, raises UserError, or begins a new
    epoch with `train.new_data=new_epoch`.
    """
    progress = Progress.of(snapshot)
    if snapshot:
        before = snapshot.state
        change = other_plan(recipe, before["recipe"]) or other_data(recipe, before.get("data") or {}, facts["data"])
        if change and recipe.train.new_data == "refuse":
            raise UserError(change)
        if change:
            progress.position = Position(progress.position.epoch + 1)
    progress.data = {name: facts["data"][name] for name in facts["data"] if name not in NOT_PLANNED}
    progress.evaluation = digest.of_json([facts["evaluation"], recipe.train.eval_utterances]) if facts["evaluation"] else ""
    return progress


def check_same_plan(recipe: Recipe, before: dict[str, Any]) -> None:
    """Raises UserError if a checkpoint of the recipe `before` was made with another plan."""
    if change := other_plan(recipe, before):
        raise UserError(change)


def other_plan(recipe: Recipe, before: dict[str, Any]) -> str | None:
    """A message if the checkpoint's recipe `before` gives another order of the data than `recipe`; else None.

    Compared are the seed and the sections `plan` and `interleave`, without `plan.rows_per_micro_batch`. A field that is missing
    in `before` counts as its default. A field that this version does not know is ignored.
    """
    now, default, before = recipes.to_dict(recipe), recipes.to_dict(Recipe()), recipes.with_new_names(before)
    for part in ("seed", "plan", "interleave"):
        unset = default[part]
        old, new, unset = (
            value if isinstance(value, dict) else {part: value} for value in (before.get(part, unset), now[part], unset)
        )
        for name in new:
            was = old.get(name, unset[name])
            if name != "rows_per_micro_batch" and was != new[name]:
                path = name if name == part else f"{part}.{name}"
                return (
                    f"{recipe.run_dir}: its checkpoints were made with {path}={was}, the recipe says {new[name]}. "
                    f"Put it back to go on, choose another run_dir to start afresh, or {NEW_EPOCH}."
                )
    return None


def other_data(recipe: Recipe, before: dict[str, str], now: dict[str, Any]) -> str | None:
    """A message if the data's digests `now` differ from a checkpoint's, `before`; else None.

    Only digests that both have are compared, because earlier versions wrote fewer.
    """
    other = [name for name in now if name in before and before[name] != now[name]]
    if not other:
        return None
    cause = CAUSES.get(other[0], "data.shards are other shards, or the same in another order")
    return (
        f"{recipe.run_dir}: its checkpoints were made with other data: {cause} ({', '.join(other[:4])} differ). Put it back "
        f"to go on, choose another run_dir to start afresh, or {NEW_EPOCH}."
    )


def changed_fields(recipe: Recipe, before: dict[str, Any]) -> list[str]:
    """The fields that differ from a checkpoint's recipe `before`, each with both values.

    A field that is missing in `before` counts as its default.
    """
    changed, before = [], recipes.with_new_names(before)
    for note in recipes.reference():
        was: Any = before
        for name in note.path.split("."):
            was = was.get(name, note.default) if isinstance(was, dict) else note.default
        now = recipes.value_of(recipe, note.path)
        if was != now and not note.path.startswith(OWN_FIELDS):
            changed.append(f"{note.path} from {was!r} to {now!r}")
    return changed


def report_changes(recipe: Recipe, before: dict[str, Any], progress: Progress) -> None:
    """Print the differences from the checkpoint's state `before` that training accepts.

    If the evaluation has changed, the record of the best checkpoint is deleted, because its score cannot be compared.
    """
    for change in changed_fields(recipe, before["recipe"]):
        print(f"changed since the checkpoint: {change}", flush=True)
    position = Position.from_json(before["position"])
    if position != progress.position:
        print(f"the data have changed since the checkpoint: going on with epoch {progress.position.epoch}", flush=True)
    if before.get("numpy", np.__version__) != np.__version__:
        log.warning(
            "the checkpoint was made with numpy %s, this is %s: random draws may differ, and so may the order of the data",
            before["numpy"],
            np.__version__,
        )
    evaluation = before.get("evaluation", progress.evaluation)
    if evaluation != progress.evaluation and progress.evaluation and checkpoint.read_best(recipe.run_dir):
        (Path(recipe.run_dir) / checkpoint.FOLDER / checkpoint.BEST).unlink()
        print(
            "the evaluation has changed (data.eval_shards, train.eval_utterances): the best checkpoint is chosen anew",
            flush=True,
        )


def record_start(recipe: Recipe, ranks: Ranks, newest: Path | None) -> None:
    """Write the resolved recipe into the run's folder, and append a line about this start to `starts.jsonl`."""
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
