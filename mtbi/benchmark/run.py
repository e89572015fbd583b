"""The benchmark of one trained run, and its report in RUN/evaluation/CHECKPOINT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from mtbi import files
from mtbi.answers import task_library
from mtbi.benchmark import dialogues, saved_answers, scores
from mtbi.benchmark.answers import CONTROL_EVERY, CONTROLS, ConditionAsker, in_batches
from mtbi.benchmark.dialogues import UNKNOWN_ANSWER_TOKENS, Dialogue, Turn
from mtbi.benchmark.judge import Judge
from mtbi.benchmark.progress import EvaluationProgress
from mtbi.benchmark.saved_answers import FINISHED, REPORT, SavedAnswers
from mtbi.benchmark.scores import Cell
from mtbi.errors import UserError
from mtbi.model.recogniser import open_recogniser
from mtbi.shards.index import further_turns
from mtbi.shards.open_shards import open_shards as open_as_recipe
from mtbi.shards.read import Shards
from mtbi.use.open_run import TrainedRun

BATCH_SIZES = (16, 64)  #: dialogues asked together on a CPU and on a GPU
MOVED_PROMPT_EVERY = 2  #: one utterance of so many is also asked with the prompt on the other side of the speech


@dataclass
class Settings:
    """What to measure."""

    #: Addresses of shards or .jsonl files by group; empty = data.eval_shards.
    places: dict[str, str] = field(default_factory=dict)
    dialogues: int = 2000  #: about so many in each group; 0 = all
    batch_size: int = 0  #: dialogues asked together; 0 = `BATCH_SIZES`
    controls: tuple[str, ...] = CONTROLS
    prompt_first: bool = True  #: ask some dialogues with the prompt on the other side of the speech too
    max_new_tokens: int = UNKNOWN_ANSWER_TOKENS  #: the longest answer to an item of a .jsonl file without a limit of its own
    recogniser: str = ""  #: a recogniser by name (`mtbi.model.recogniser`), for the cascade
    reuse: bool = False  #: keep the answers of the last report of the checkpoint, and ask only what it lacks
    judge: Judge | None = None


@dataclass
class DialogueGroup:
    """Dialogues of one place."""

    name: str
    turns: Iterator[Turn]
    dialogues: int  #: about how many


@dataclass
class EvaluationReport:
    """The cells and dialogues of an evaluation, as saved in `folder`."""

    folder: Path
    cells: list[Cell]
    dialogues: list[Dialogue]

    @property
    def summary(self) -> list[Cell]:
        """The cells of the parts of the tasks, in all wordings. Single tasks and kinds of wording are in `table.md`."""
        return [c for c in self.cells if c.tasks in (scores.TRAINED, scores.NEW, scores.FORMATS) and c.wording == "all"]

    def __str__(self) -> str:
        """The summary as a table."""
        return f"{scores.render(self.summary)}\n\n{scores.notes(self.summary)}"


def group_name(address: str) -> str:
    """`runs/demo/data/test_known/shards` → `test_known`."""
    parts = [part for part in address.rstrip("/").removesuffix(".jsonl").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "shards" else parts[-1]


def evaluate(run: TrainedRun, settings: Settings) -> EvaluationReport:
    """Ask the run every dialogue of every group, and save answers, numbers and the table in the run's folder.

    Raises UserError if no shards are named, or shards were made for another LLM.
    """
    recipe = run.recipe
    addresses = settings.places or {group_name(address): address for address in recipe.data.eval_shards}
    if not addresses:
        raise UserError("no evaluation shards: name them with --shards NAME=FOLDER, or set data.eval_shards in the recipe")
    tasks = task_library.load(recipe.behaviour.library)
    groups = [list_turns(name, address, run, tasks, settings) for name, address in addresses.items()]
    folder = run.folder / "evaluation" / run.checkpoint.name
    asked_of = saved_answers.identity(run)
    saved = SavedAnswers(folder, asked_of, settings.recogniser, settings.reuse)
    answered = ask(run, groups, settings, saved)
    if settings.judge:
        settings.judge.judge(answered)
    report = EvaluationReport(folder, scores.table(answered, trained_tasks(run)), answered)
    save(report, run, {"asked_of": asked_of, "recogniser": settings.recogniser})
    saved.remove()
    return report


def ask(run: TrainedRun, groups: list[DialogueGroup], settings: Settings, saved: SavedAnswers) -> list[Dialogue]:
    """Ask every dialogue of every group. Each batch is saved when it is answered."""
    transcribe = open_recogniser(settings.recogniser, run.device) if settings.recogniser else None
    size = settings.batch_size or BATCH_SIZES[run.device.type == "cuda"]
    answered: list[Dialogue] = []
    for group in groups:
        with EvaluationProgress(group.name, group.dialogues) as progress:
            asker = ConditionAsker(run, transcribe, settings.controls, progress.answered)
            for batch in in_batches(group.turns, size):
                for index, turn in enumerate(batch, start=len(answered)):
                    block, offset = divmod(index, CONTROL_EVERY)
                    turn.controlled = offset == 3 * block % CONTROL_EVERY  # another task each time
                saved.restore(batch)
                asker.ask(batch)
                saved.add(turn.dialogue for turn in batch)
                answered += [turn.dialogue for turn in batch]
                progress.finished(len(batch))
    return answered


def list_turns(
    name: str, address: str, run: TrainedRun, tasks: dict[str, task_library.Task], settings: Settings
) -> DialogueGroup:
    """The dialogues of a group. Some are repeated with the prompt on the other side of the speech."""
    behaviour = run.recipe.behaviour
    if address.endswith(".jsonl"):
        items = dialogues.read_items(name, Path(address), behaviour.prompt_first, settings.max_new_tokens)
        return DialogueGroup(name, dialogues.from_items(items), len(items))
    shards = open_shards(address, run)
    turns = dialogues.from_shards(name, shards, tasks, settings.dialogues, behaviour.max_new_tokens)
    stored = len(shards.index.branches) + further_turns(shards.index.branches)
    about = min(stored, settings.dialogues or stored)
    if not settings.prompt_first:
        return DialogueGroup(name, turns, about)
    return DialogueGroup(name, add_moved_prompts(turns), about + about // MOVED_PROMPT_EVERY)


def add_moved_prompts(turns: Iterator[Turn]) -> Iterator[Turn]:
    """Each utterance's dialogues. Those of every second utterance are followed by the same with the prompt moved."""
    for index, (_, group) in enumerate(groupby(turns, key=lambda turn: turn.dialogue.utterance)):
        asked = list(group)
        yield from asked
        if index % MOVED_PROMPT_EVERY == 0:
            yield from (
                dialogues.with_prompt_moved(turn) for turn in asked if turn.dialogue.turn == 1 and "/" not in turn.dialogue.task
            )


def trained_tasks(run: TrainedRun) -> set[str]:
    """The tasks that speech training used."""
    from mtbi.batches.plan import taken_tasks

    shards = [open_shards(address, run) for address in run.recipe.data.shards]
    return set().union(*(taken_tasks(run.recipe.plan.tasks, opened.index.tasks) for opened in shards))


def open_shards(address: str, run: TrainedRun) -> Shards:
    """Shards to measure on. Raises UserError if they were made for another LLM or chat template."""
    return open_as_recipe(address, replace(run.recipe, run_dir=str(run.folder)), run.chat)


def save(report: EvaluationReport, run: TrainedRun, asked: dict[str, Any]) -> None:
    """Write `answers.jsonl` (every dialogue), `table.md`, `notes.md` (on the intervals) and `report.json` (every number).

    `asked` says what the answers depend on (`mtbi.benchmark.saved_answers`).
    `report.json` is written last, so that it stands for a complete report.
    """
    report.folder.mkdir(parents=True, exist_ok=True)
    answers = (json.dumps(asdict(dialogue), ensure_ascii=False) + "\n" for dialogue in report.dialogues)
    files.write_text(report.folder / FINISHED, "".join(answers))
    files.write_text(report.folder / "table.md", scores.render(report.cells) + "\n")
    files.write_text(report.folder / "notes.md", scores.notes(report.cells) + "\n")
    cells = list(map(scores.to_json, report.cells))
    numbers = {"checkpoint": str(run.checkpoint), "recipe": run.recipe.name, **asked, "cells": cells}
    files.write_text(report.folder / REPORT, json.dumps(numbers, indent=1) + "\n")


def load(run: TrainedRun) -> EvaluationReport | None:
    """The report that `evaluate` saved for this checkpoint; None if there is none, or the checkpoint is newer."""
    folder = run.folder / "evaluation" / run.checkpoint.name
    numbers, weights = folder / REPORT, run.checkpoint / "trainable.safetensors"
    if not numbers.is_file() or numbers.stat().st_mtime < weights.stat().st_mtime:
        return None
    lines = (folder / FINISHED).read_text(encoding="utf-8").splitlines()
    return EvaluationReport(folder, load_cells(folder), [Dialogue.from_record(json.loads(line)) for line in lines])


def load_cells(folder: Path) -> list[Cell]:
    """The cells of a saved report."""
    record = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return [scores.from_json(cell) for cell in record["cells"]]
