"""What a run needs before its model: shards that fit the recipe, and the checkpoint to go on from."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher.ranks import Ranks
from mtbi import recipe as recipes
from mtbi.batches.interleave import Coverage
from mtbi.batches.longest import longest_tokens
from mtbi.batches.plan import Plan, Position, Step
from mtbi.engine import checkpoint, digest, remote
from mtbi.engine.agreement import Attempt, Facts, Report, attempt, compare, gather, name_of, settle, share
from mtbi.engine.checkpoint import Snapshot
from mtbi.engine.engine import read_config
from mtbi.engine.lease import Lease
from mtbi.engine.progress import Progress
from mtbi.engine.validation import Evaluation
from mtbi.errors import UserError
from mtbi.llm import identity, precision
from mtbi.llm.chat_format import ChatFormat, read_chat, resolve_llm
from mtbi.model.frame_counts import FrameGeometry
from mtbi.recipe import Recipe
from mtbi.shards import features
from mtbi.shards.read import Shards
from mtbi.versions import commit, installed

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "mosaicml-streaming", "flash-attn")
COMPARED = ("mtbi", "torch", "numpy", "transformers", "deepspeed", "peft")  #: whose versions all processes must share
#: Fields of the recipe that may differ between processes: names of folders, and how a process reads.
OWN_FIELDS = (
    "name", "run_dir", "data.shards", "data.eval_shards", "data.weights", "data.cache", "data.workers", "data.prefetch",
    "data.retries",
)  # fmt: skip
NOT_PLANNED = ("encoded", "feature_width", "top_k")  #: facts of the data that may change between two starts
CAUSES = {
    "geometry": "the encoder or adapter gives another number of positions",
    "tokenizer": "the LLM's tokenizer, chat template or system prompt is another one",
    "tasks": "the shards hold other tasks",
    "weights": "data.weights gives the shards other weights",
    "plan": "this version plans other steps from the same shards",
}
NEW_EPOCH = "keep the weights and begin a new epoch of the data with train.new_data=new_epoch"
log = logging.getLogger(__name__)


@dataclass
class Inputs:
    """What is trained on."""

    chat: ChatFormat
    shards: Shards
    geometry: FrameGeometry
    plan: Plan
    first_step: Step  #: of the first epoch

    @property
    def coverage(self) -> Coverage:
        """Which of the utterances can be interleaved."""
        return Coverage.of(self.shards.index.spoken_words)


@dataclass
class Start:
    """Where a run begins, the same on all processes."""

    inputs: Inputs
    evaluation: Evaluation | None
    newest: Path | None  #: the checkpoint that it goes on from
    snapshot: Snapshot | None  #: what that holds
    progress: Progress
    lease: Lease | None  #: of the first process: the right to write into the run's folder


def open_inputs(recipe: Recipe) -> Inputs:
    """The training shards and their plan. Raises UserError for whatever is wrong with them, an empty plan included."""
    chat = read_chat(recipe)
    shards = open_shards(recipe.data.shards, recipe, chat)
    check_interleaving(recipe, Coverage.of(shards.index.spoken_words))
    geometry = FrameGeometry.from_config(recipe.model)
    plan = Plan(shards.index, recipe, geometry)
    return Inputs(chat, shards, geometry, plan, next(plan.steps()))


def check_interleaving(recipe: Recipe, coverage: Coverage) -> None:
    """Raises UserError where the recipe interleaves and no utterance can be."""
    if not recipe.interleave.share or coverage.possible:
        return
    asked = f"interleave.share is {recipe.interleave.share:g}, but no utterance of data.shards"
    if coverage.single:
        raise UserError(
            f"{asked} can be interleaved: {coverage.single} of {coverage.utterances} have one word only, the others no word "
            "times. Align transcripts of whole sentences with `mtbi data align`, or set interleave.share=0."
        )
    raise UserError(f"{asked} has word times: run `mtbi data align` and make the shards again, or set interleave.share=0.")


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
    other = recipe.behaviour.allow_other_teacher
    shards = Shards(places, data.cache_dir or f"{recipe.run_dir}/cache", data.cache_limit_gb, data.retries, other)
    for folder in shards.folders:
        if reason := identity.difference(folder.index.facts(), chat, other):
            raise UserError(
                f"{folder.address}: made with {folder.index.llm}, {reason} than the recipe's ({recipe.model.llm}); run "
                "`mtbi behave` and `mtbi data shard` with this recipe."
            )
    if shards.index.prompt_first != recipe.behaviour.prompt_first:
        raise UserError(
            f"{places[0]}: its prompts stand {'before' if shards.index.prompt_first else 'after'} the speech, the recipe's "
            f"{'before' if recipe.behaviour.prompt_first else 'after'} it: set "
            f"behaviour.prompt_first={str(shards.index.prompt_first).lower()}, or make the shards again with this recipe."
        )
    features.check(shards.index, recipe)
    return shards


def agree(recipe: Recipe, ds_config: str, ranks: Ranks, device: torch.device, opened: Attempt[Inputs]) -> Start:
    """All that the processes must have in common before a model is read, and where the run begins.

    Raises UserError on all processes where one of them could not read something, they differ, or the checkpoint does not fit.
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
            note_changes(recipe, snapshot.state, progress)
        settle(ranks, attempt(lambda: note_start(recipe, ranks, newest) if ranks.rank == 0 else None))
    except UserError:
        if lease:
            lease.release()
        raise
    return Start(inputs, evaluation, newest, snapshot, progress, lease)


def facts_of(
    recipe: Recipe, ds_config: str, ranks: Ranks, device: torch.device, inputs: Inputs, evaluation: Evaluation | None
) -> Facts:
    """What must be the same on all processes: each of them computes its own part of what follows from it."""
    config = read_config(ds_config, recipe, ranks.world, precision.of(recipe.precision, device))
    fields = {note.path: attrgetter(note.path)(recipe) for note in recipes.reference() if not note.path.startswith(OWN_FIELDS)}
    index = inputs.shards.index
    data = digest.of_shards(inputs.shards)
    data |= {"weights": digest.of_json(inputs.plan.weights)}
    data |= {"geometry": digest.of_geometry(inputs.geometry), "plan": digest.of_step(inputs.first_step)}
    features_of = {"encoded": index.encoded, "feature_width": index.feature_width, "top_k": index.top_k}
    measured = digest.of_shards(evaluation.shards) if evaluation else {}
    return {
        "recipe": fields | {"--deepspeed": config},
        "data": data | features_of,
        "evaluation": measured,
        "models": {"the configuration of model.llm": llm_configuration(recipe)},
        "software": {package: installed(package) for package in COMPARED},
    }


def llm_configuration(recipe: Recipe) -> str:
    """The LLM's configuration as text, without the name of its folder. Raises UserError where it cannot be read."""
    from transformers import AutoConfig

    model = recipe.model
    try:
        config = AutoConfig.from_pretrained(resolve_llm(model.llm), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.llm: cannot read the configuration of {model.llm!r}: {error}") from error
    config._name_or_path = ""
    return config.to_json_string(use_diff=False)


def choose_checkpoint(recipe: Recipe) -> tuple[Path, Snapshot] | None:
    """The newest whole checkpoint of the run's folder or of its copy, whichever is further; the first process calls this.

    Raises UserError where there are checkpoints but none that can be used.
    """
    run_dir = Path(recipe.run_dir)
    if recipe.train.copy_to and (fetched := remote.pull(recipe.train.copy_to, run_dir)):
        print(f"{fetched.name} comes from {recipe.train.copy_to}", flush=True)
    newest = checkpoint.newest(run_dir)
    return (newest, checkpoint.load(newest)) if newest else None


def refuse_later(recipe: Recipe, ranks: Ranks) -> None:
    """Raises UserError on all processes where some node's folder of the run holds a later checkpoint than the first process's.

    The folder lies on each node's own disk then, and the job started again with its nodes in another order, say.
    """
    newest = max((folder.name for folder in checkpoint.all_of(recipe.run_dir)), default="no checkpoint")
    reports = gather(ranks, Report(ranks.rank, socket.gethostname(), facts={"checkpoint": {"newest": newest}}))
    seen = [(report.facts or {})["checkpoint"]["newest"] for report in reports]
    if later := [report for report, name in zip(reports, seen, strict=True) if name > seen[0]]:
        raise UserError(
            f"{recipe.run_dir}: {max(seen)} is there for {name_of(later)}, {seen[0]} for {name_of(reports[:1])}, which writes "
            "them: this is not one folder. Put run_dir on a file system that all nodes share, or set train.copy_to."
        )


def progress_of(recipe: Recipe, snapshot: Snapshot | None, facts: Facts) -> Progress:
    """Where the run goes on. Raises UserError where the checkpoint's place in the data would mean something else now.

    With `train.new_data=new_epoch` the run then goes on with a new epoch instead.
    """
    progress = Progress.of(snapshot)
    if snapshot:
        before = snapshot.state
        wrong = other_plan(recipe, before["recipe"]) or other_data(recipe, before.get("data") or {}, facts["data"])
        if wrong and recipe.train.new_data == "refuse":
            raise UserError(wrong)
        if wrong:
            progress.position = Position(progress.position.epoch + 1)
    progress.data = {name: facts["data"][name] for name in facts["data"] if name not in NOT_PLANNED}
    progress.evaluation = digest.of_json([facts["evaluation"], recipe.train.eval_utterances]) if facts["evaluation"] else ""
    return progress


def check_same_plan(recipe: Recipe, before: dict[str, Any]) -> None:
    """Raises UserError where a checkpoint of the recipe `before` was made with another plan."""
    if wrong := other_plan(recipe, before):
        raise UserError(wrong)


def other_plan(recipe: Recipe, before: dict[str, Any]) -> str | None:
    """What in the recipe that a checkpoint was made with gives another order of the data; None where nothing does.

    The number of rows that a process computes at once may change, as may everything that the plan does not depend on. A field
    that the checkpoint's version did not have counts as its default; one that this version does not have any more is ignored.
    """
    now, default = recipes.to_dict(recipe), recipes.to_dict(Recipe())
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
    """Which data differ from a checkpoint's; None where they are the same, wherever they lie now.

    Only what both know is compared: checkpoints of earlier versions know less.
    """
    other = [name for name in now if name in before and before[name] != now[name]]
    if not other:
        return None
    what = CAUSES.get(other[0], "data.shards are other shards, or the same in another order")
    return (
        f"{recipe.run_dir}: its checkpoints were made with other data: {what} ({', '.join(other[:4])} differ). Put it back "
        f"to go on, choose another run_dir to start afresh, or {NEW_EPOCH}."
    )


def changed_fields(recipe: Recipe, before: dict[str, Any]) -> list[str]:
    """Fields that are not as in the recipe that a checkpoint was made with, each with both values.

    A field that the checkpoint's version did not have counts as its default.
    """
    changed = []
    for note in recipes.reference():
        was: Any = before
        for name in note.path.split("."):
            was = was.get(name, note.default) if isinstance(was, dict) else note.default
        now = attrgetter(note.path)(recipe)
        if was != now and not note.path.startswith(OWN_FIELDS):
            changed.append(f"{note.path} from {was!r} to {now!r}")
    return changed


def note_changes(recipe: Recipe, before: dict[str, Any], progress: Progress) -> None:
    """Say what is not as when the checkpoint was made and still goes on. Scores of another evaluation are not compared."""
    for change in changed_fields(recipe, before["recipe"]):
        print(f"changed since the checkpoint: {change}", flush=True)
    position = Position.from_json(before["position"])
    if position != progress.position:
        print(f"other data than the checkpoint's: going on with epoch {progress.position.epoch} of them", flush=True)
    if before.get("numpy", np.__version__) != np.__version__:
        log.warning(
            "the checkpoint was made with numpy %s, this is %s: random draws may differ, and so may the order of the data",
            before["numpy"],
            np.__version__,
        )
    measured = before.get("evaluation", progress.evaluation)
    if measured != progress.evaluation and progress.evaluation and checkpoint.read_best(recipe.run_dir):
        (Path(recipe.run_dir) / checkpoint.FOLDER / checkpoint.BEST).unlink()
        print("another evaluation (data.eval_shards, train.eval_utterances): the best checkpoint is chosen anew", flush=True)


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
