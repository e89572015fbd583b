"""From the answers of many runs to the findings: means over seeds, differences between arms, and their intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches.plan import taken_tasks
from mtbi.benchmark import scores
from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM, Dialogue
from mtbi.benchmark.grading import worth
from mtbi.benchmark.grid.grid import Grid, Job, job_recipe, jobs, reference, report_folder
from mtbi.benchmark.intervals import OverSeeds
from mtbi.engine import checkpoint
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards

#: What is reported of each group of speakers: name → (part of the tasks, only held-out wordings, prompt before the speech).
AXES = {
    "trained tasks, held-out wordings": (scores.TRAINED, True, False),
    "never-trained tasks": (scores.NEW, False, False),
    "trained tasks, other format": (scores.FORMATS, False, False),
    "trained tasks, prompt first": (scores.TRAINED, False, True),
}
Sums = dict[str, np.ndarray]  #: utterance → (right, of the text LLM, of the cascade, dialogues)


@dataclass
class RunResult:
    """One finished run."""

    job: Job
    audio_hours: float  #: heard in training, repetitions included
    corpus_minutes: float  #: of speech in its corpus
    sums: dict[tuple[str, str], Sums]  #: by group of speakers and axis
    tasks: dict[tuple[str, str], tuple[float, float]]  #: by group and task: right answers, dialogues


Question = tuple[str, str, str, int, bool]


def question(one: Dialogue) -> Question:
    """What tells a dialogue from the others of a run."""
    return one.group, one.utterance, one.task, one.wording, one.prompt_first


def read_answers(folder: Path) -> Iterator[Dialogue]:
    """The dialogues of a saved report."""
    with (folder / "answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Dialogue.from_record(json.loads(line))


def read_cascade(grid: Grid, out: Path) -> dict[Question, float]:
    """What the cascade's answers count, from the run that asked it; empty while that run is not finished."""
    folder = report_folder(grid, reference(grid), out)
    if folder is None:
        return {}
    return {question(one): worth(one, scores.CASCADE) for one in read_answers(folder) if scores.CASCADE in one.answers}


def read_run(grid: Grid, job: Job, out: Path, trained: set[str], cascade: dict[Question, float]) -> RunResult | None:
    """The result of a run; None while it is not finished."""
    folder = report_folder(grid, job, out)
    if folder is None:
        return None
    sums: dict[tuple[str, str], Sums] = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
    tasks: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for one in read_answers(folder):
        heard = worth(one, SPEECH)
        row = np.array([heard, worth(one, TEXT_LLM), cascade.get(question(one), 0.0), 1.0])
        for axis, (part, heldout, first) in AXES.items():
            if scores.part_of(one.task, trained) == part and one.prompt_first == first and one.heldout >= heldout:
                sums[one.group, axis][one.cluster] += row
        if not one.prompt_first:
            counted = tasks[one.group, one.task]
            counted[0], counted[1] = counted[0] + heard, counted[1] + 1
    run_dir = out / "runs" / job.name
    newest = checkpoint.latest_valid(run_dir)
    if newest is None:
        raise UserError(f"{run_dir}: evaluated, but its checkpoint is gone; delete its evaluation to run it again")
    return RunResult(
        job,
        checkpoint.load_state(newest)["audio_seconds"] / 3600,
        job.minutes or corpus_minutes(job_recipe(grid, job, out)),
        dict(sums),
        {key: (right, count) for key, (right, count) in tasks.items()},
    )


@cache
def minutes_in(place: str, cache_dir: str) -> float:
    """Minutes of speech in shards."""
    return float(Shards(place, cache_dir).index.utterances["samples"].sum(dtype="u8")) / SAMPLE_RATE / 60


def corpus_minutes(recipe: Recipe) -> float:
    """Minutes of speech in a recipe's shards."""
    return sum(minutes_in(place, recipe.data.cache_dir) for place in recipe.data.shards)


def trained_in_grid(grid: Grid, out: Path) -> set[str]:
    """The tasks that the compared arm (or the first one) was trained on: the same split of tasks is used for all arms."""
    recipe = job_recipe(grid, Job(grid.compare.arm or next(iter(grid.arms)), grid.seeds[0]), out)
    shards = [Shards(place, recipe.data.cache_dir) for place in recipe.data.shards]
    return set().union(*(taken_tasks(recipe.plan.tasks, one.index.tasks) for one in shards))


def read_all(grid: Grid, out: Path) -> list[RunResult]:
    """Every finished run."""
    trained = trained_in_grid(grid, out)
    cascade = read_cascade(grid, out)
    return [result for job in jobs(grid) if (result := read_run(grid, job, out, trained, cascade))]


def totals(run: RunResult, key: tuple[str, str]) -> np.ndarray | None:
    """`(4,)` the sums over all utterances of a run; None where nothing was measured."""
    return np.sum(list(run.sums[key].values()), axis=0) if run.sums.get(key) else None


Measure = Callable[[np.ndarray], Any]  #: of the totals in the last axis


def accuracy(totals: np.ndarray) -> Any:
    """Right answers of all."""
    return totals[..., 0] / totals[..., 3]


def kept(totals: np.ndarray) -> Any:
    """Right answers as a share of the text LLM's."""
    return totals[..., 0] / np.maximum(totals[..., 1], 1)


def of_cascade(totals: np.ndarray) -> Any:
    """Right answers as a share of the cascade's."""
    return totals[..., 0] / np.maximum(totals[..., 2], 1)


def cascade_accuracy(totals: np.ndarray) -> Any:
    """The cascade's right answers of all."""
    return totals[..., 2] / totals[..., 3]


def text_accuracy(totals: np.ndarray) -> Any:
    """The text LLM's right answers of all."""
    return totals[..., 1] / totals[..., 3]


def measure(runs: list[RunResult], key: tuple[str, str], what: Measure) -> OverSeeds | None:
    """A measure over the seeds of one arm."""
    found = [what(sums) for run in runs if (sums := totals(run, key)) is not None]
    return OverSeeds.of([float(one) for one in found]) if found else None


def difference(ours: list[RunResult], theirs: list[RunResult], key: tuple[str, str]) -> OverSeeds | None:
    """How much more accurate the first arm is than the second, seed by seed, over the seeds that both have."""
    first, second = (
        {run.job.seed: float(accuracy(sums)) for run in runs if (sums := totals(run, key)) is not None}
        for runs in (ours, theirs)
    )
    shared = sorted(first.keys() & second.keys())
    return OverSeeds.of([first[seed] - second[seed] for seed in shared]) if shared else None


def minutes_to_reach(curve: list[tuple[float, float]], goal: float) -> float | None:
    """Where a curve of (minutes, accuracy) first reaches `goal`, straight between points over log minutes; None if never."""
    for place, (minutes, value) in enumerate(curve):
        if value >= goal:
            if place == 0:
                return minutes
            before, low = curve[place - 1]
            share = (goal - low) / (value - low)
            return float(np.exp(np.log(before) + share * (np.log(minutes) - np.log(before))))
    return None
