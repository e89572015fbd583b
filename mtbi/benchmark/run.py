"""The benchmark of one trained run, and its report in RUN/evaluation/CHECKPOINT."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

from tqdm import tqdm

from mtbi import files
from mtbi.answers import task_library
from mtbi.benchmark import dialogues, scores
from mtbi.benchmark.answers import CONTROLS, Answerer, Transcriber, in_batches
from mtbi.benchmark.dialogues import Dialogue, Turn
from mtbi.benchmark.judge import Judge
from mtbi.benchmark.scores import Cell
from mtbi.errors import UserError
from mtbi.llm import identity
from mtbi.shards.read import Shards
from mtbi.use.open_run import TrainedRun

TURNED_EVERY = 2  #: every so many utterances are also asked with the prompt in the other place


@dataclass
class Settings:
    """What to measure."""

    places: dict[str, str] = field(default_factory=dict)  #: shard folders or .jsonl files by group; empty = data.eval_shards
    dialogues: int = 2000  #: about so many of each group; 0 = all
    batch_size: int = 64
    controls: tuple[str, ...] = CONTROLS
    prompt_first: bool = True  #: ask some dialogues with the prompt on the other side of the speech too
    transcribe: Transcriber | None = None  #: a recogniser, for the cascade
    judge: Judge | None = None


@dataclass
class Report:
    """The outcome, as saved."""

    folder: Path
    cells: list[Cell]
    dialogues: list[Dialogue]

    @property
    def summary(self) -> list[Cell]:
        """The parts of the tasks, in all their wordings; single tasks and kinds of wording are in `table.md`."""
        return [c for c in self.cells if c.tasks in (scores.TRAINED, scores.NEW, scores.FORMATS) and c.wording == "all"]

    def __str__(self) -> str:
        """The summary as a table."""
        return f"{scores.render(self.summary)}\n\n{scores.notes(self.summary)}"


def group_name(place: str) -> str:
    """`runs/demo/data/test_known/shards` → `test_known`."""
    parts = [part for part in place.rstrip("/").removesuffix(".jsonl").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "shards" else parts[-1]


def evaluate(run: TrainedRun, settings: Settings) -> Report:
    """Answer the dialogues of every place and save answers, numbers and the table beside the run.

    Raises UserError where there is no place, or shards were made for another LLM.
    """
    recipe = run.recipe
    places = settings.places or {group_name(place): place for place in recipe.data.eval_shards}
    if not places:
        raise UserError("no evaluation shards: name them with --shards NAME=FOLDER, or set data.eval_shards in the recipe")
    tasks = task_library.load(recipe.behaviour.library)
    groups = {name: list_turns(name, place, run, tasks, settings) for name, place in places.items()}
    answerer = Answerer(run, settings.transcribe, settings.controls)
    answered: list[Dialogue] = []
    for name, turns in groups.items():
        with tqdm(desc=name, unit="dialogue", disable=None) as bar:
            for batch in in_batches(turns, settings.batch_size):
                answerer.ask(batch, first=len(answered))
                answered += [turn.dialogue for turn in batch]
                bar.update(len(batch))
    if settings.judge:
        settings.judge.judge(answered)
    report = Report(run.folder / "evaluation" / run.checkpoint.name, scores.table(answered, trained_tasks(run)), answered)
    save(report, run)
    return report


def list_turns(
    name: str, place: str, run: TrainedRun, tasks: dict[str, task_library.Task], settings: Settings
) -> Iterator[Turn]:
    """The dialogues of a place; some are asked a second time with the prompt on the other side of the speech."""
    if place.endswith(".jsonl"):
        return dialogues.from_jsonl(name, Path(place), run.recipe.behaviour.prompt_first)
    turns = dialogues.from_shards(name, open_shards(place, run), tasks, settings.dialogues)
    return with_turned(turns) if settings.prompt_first else turns


def with_turned(turns: Iterator[Turn]) -> Iterator[Turn]:
    """Each utterance's dialogues, and after those of every second utterance the same with the prompt moved."""
    for number, (_, group) in enumerate(groupby(turns, key=lambda turn: turn.dialogue.utterance)):
        asked = list(group)
        yield from asked
        if number % TURNED_EVERY == 0:
            yield from (dialogues.turned(turn) for turn in asked if "/" not in turn.dialogue.task)


def trained_tasks(run: TrainedRun) -> set[str]:
    """The tasks that speech training used."""
    from mtbi.batches.plan import taken_tasks

    places = run.recipe.data.shards
    return set().union(*(taken_tasks(run.recipe.plan.tasks, open_shards(place, run).index.tasks) for place in places))


def open_shards(place: str, run: TrainedRun) -> Shards:
    """Shards of a folder, refused when they were made for another LLM or chat template."""
    data = run.recipe.data
    shards = Shards(place, data.cache_dir or str(run.folder / "cache"))
    if reason := identity.difference(shards.index.facts(), run.chat, run.recipe.behaviour.allow_other_teacher):
        raise UserError(
            f"{place}: made for {reason} than the recipe's ({run.recipe.model.llm}); make the shards again with its recipe"
        )
    return shards


def save(report: Report, run: TrainedRun) -> None:
    """`report.json` (every number), `table.md`, `notes.md` (on the intervals) and `answers.jsonl` (every dialogue).

    The first one comes last.
    """
    report.folder.mkdir(parents=True, exist_ok=True)
    answers = (json.dumps(asdict(dialogue), ensure_ascii=False) + "\n" for dialogue in report.dialogues)
    (report.folder / "answers.jsonl").write_text("".join(answers), encoding="utf-8")
    (report.folder / "table.md").write_text(scores.render(report.cells) + "\n", encoding="utf-8")
    (report.folder / "notes.md").write_text(scores.notes(report.cells) + "\n", encoding="utf-8")
    numbers = {"checkpoint": str(run.checkpoint), "recipe": run.recipe.name, "cells": list(map(scores.to_json, report.cells))}
    files.write_text(report.folder / "report.json", json.dumps(numbers, indent=1) + "\n")


def load(run: TrainedRun) -> Report | None:
    """What `evaluate` saved about this checkpoint; None where there is nothing, or the checkpoint was made anew since."""
    folder = run.folder / "evaluation" / run.checkpoint.name
    numbers, weights = folder / "report.json", run.checkpoint / "trainable.safetensors"
    if not numbers.is_file() or numbers.stat().st_mtime < weights.stat().st_mtime:
        return None
    lines = (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return Report(folder, load_cells(folder), [Dialogue.from_record(json.loads(line)) for line in lines])


def load_cells(folder: Path) -> list[Cell]:
    """The cells of a saved report."""
    record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return [scores.from_json(cell) for cell in record["cells"]]
