"""From the answers of many runs to the findings: means over seeds and differences between arms, with their intervals."""

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
from mtbi.benchmark.dialogues import Dialogue
from mtbi.benchmark.grid.grid import Grid, Job, cascade_job, job_recipe, jobs, report_folder
from mtbi.benchmark.intervals import MeanOverSeeds
from mtbi.engine import checkpoint
from mtbi.errors import UserError
from mtbi.metrics import CASCADE, SPEECH, TEXT_LLM, score
from mtbi.recipe import Recipe
from mtbi.shards.read import Shards

#: The columns of each group of speakers: name → (part of the tasks, only held-out wordings, prompt before the speech).
AXES = {
    "trained tasks, held-out wordings": (scores.TRAINED, True, False),
    "never-trained tasks": (scores.NEW, False, False),
    "trained tasks, other format": (scores.FORMATS, False, False),
    "trained tasks, prompt first": (scores.TRAINED, False, True),
}
#: Recording → `(4,)` sums of scores: speech LLM, text LLM, cascade, and the number of dialogues.
Sums = dict[str, np.ndarray]


@dataclass
class RunResult:
    """One finished run."""

    job: Job
    audio_hours: float  #: speech in the training steps, with repetitions
    corpus_minutes: float  #: speech in the training corpus
    sums: dict[tuple[str, str], Sums]  #: by group of speakers and axis
    tasks: dict[tuple[str, str], tuple[float, float]]  #: by group and task: sum of scores, number of dialogues


Question = tuple[str, str, str, int, bool]


def question(dialogue: Dialogue) -> Question:
    """The key of a dialogue: the same in every run of a grid, different for each dialogue of a run."""
    return dialogue.group, dialogue.utterance, dialogue.task, dialogue.wording, dialogue.prompt_first


def read_answers(folder: Path) -> Iterator[Dialogue]:
    """The dialogues of a saved report."""
    with (folder / "answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield Dialogue.from_record(json.loads(line))


def read_cascade(grid: Grid, out: Path) -> dict[Question, float]:
    """The scores of the cascade's answers, from the run that asked it. Empty while that run is not finished."""
    folder = report_folder(grid, cascade_job(grid), out)
    if folder is None:
        return {}
    asked = (dialogue for dialogue in read_answers(folder) if CASCADE in dialogue.answers)
    return {question(dialogue): score(dialogue, CASCADE) for dialogue in asked}


def read_run(grid: Grid, job: Job, out: Path, trained: set[str], cascade: dict[Question, float]) -> RunResult | None:
    """The result of a run; None while it is not finished."""
    folder = report_folder(grid, job, out)
    if folder is None:
        return None
    sums: dict[tuple[str, str], Sums] = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
    tasks: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for dialogue in read_answers(folder):
        speech_score = score(dialogue, SPEECH)
        row = np.array([speech_score, score(dialogue, TEXT_LLM), cascade.get(question(dialogue), 0.0), 1.0])
        for axis, (part, heldout, first) in AXES.items():
            in_part = scores.part_of(dialogue.task, trained) == part
            if in_part and dialogue.prompt_first == first and dialogue.heldout >= heldout:
                sums[dialogue.group, axis][dialogue.cluster] += row
        if not dialogue.prompt_first:
            task = tasks[dialogue.group, dialogue.task]
            task[0], task[1] = task[0] + speech_score, task[1] + 1
    run_dir = out / "runs" / job.name
    newest = checkpoint.latest_valid(run_dir)
    if newest is None:
        raise UserError(f"{run_dir}: evaluated, but its checkpoint is gone; delete its evaluation to run it again")
    return RunResult(
        job,
        checkpoint.load_state(newest)["audio_seconds"] / 3600,
        job.minutes or corpus_minutes(job_recipe(grid, job, out)),
        dict(sums),
        {key: (total, count) for key, (total, count) in tasks.items()},
    )


@cache
def minutes_in(address: str, cache_dir: str) -> float:
    """Minutes of speech in shards."""
    return float(Shards(address, cache_dir).index.utterances["samples"].sum(dtype="u8")) / SAMPLE_RATE / 60


def corpus_minutes(recipe: Recipe) -> float:
    """Minutes of speech in a recipe's shards."""
    return sum(minutes_in(address, recipe.data.cache_dir) for address in recipe.data.shards)


def trained_in_grid(grid: Grid, out: Path) -> set[str]:
    """The tasks that the compared arm, or else the first one, was trained on. All arms are reported by this split of tasks."""
    recipe = job_recipe(grid, Job(grid.compare.arm or next(iter(grid.arms)), grid.seeds[0]), out)
    shards = [Shards(address, recipe.data.cache_dir) for address in recipe.data.shards]
    return set().union(*(taken_tasks(recipe.plan.tasks, opened.index.tasks) for opened in shards))


def read_all(grid: Grid, out: Path) -> list[RunResult]:
    """The results of every finished run."""
    trained = trained_in_grid(grid, out)
    cascade = read_cascade(grid, out)
    return [result for job in jobs(grid) if (result := read_run(grid, job, out, trained, cascade))]


def totals(run: RunResult, key: tuple[str, str]) -> np.ndarray | None:
    """`(4,)`: the sums over all recordings of a run; None where nothing was measured."""
    return np.sum(list(run.sums[key].values()), axis=0) if run.sums.get(key) else None


Measure = Callable[[np.ndarray], Any]  #: from totals `(…, 4)` to one number for each


def accuracy(totals: np.ndarray) -> Any:
    """The mean score of the speech LLM: its share of right answers."""
    return totals[..., 0] / totals[..., 3]


def kept(totals: np.ndarray) -> Any:
    """The score of the speech LLM as a share of the text LLM's."""
    return totals[..., 0] / np.maximum(totals[..., 1], 1)


def of_cascade(totals: np.ndarray) -> Any:
    """The score of the speech LLM as a share of the cascade's."""
    return totals[..., 0] / np.maximum(totals[..., 2], 1)


def cascade_accuracy(totals: np.ndarray) -> Any:
    """The mean score of the cascade."""
    return totals[..., 2] / totals[..., 3]


def text_accuracy(totals: np.ndarray) -> Any:
    """The mean score of the text LLM."""
    return totals[..., 1] / totals[..., 3]


def over_seeds(runs: list[RunResult], key: tuple[str, str], measure: Measure) -> MeanOverSeeds | None:
    """A measure over the seeds of one arm; None where nothing was measured."""
    values = [float(measure(sums)) for run in runs if (sums := totals(run, key)) is not None]
    return MeanOverSeeds.of(values) if values else None


def difference(ours: list[RunResult], theirs: list[RunResult], key: tuple[str, str]) -> MeanOverSeeds | None:
    """The difference of accuracy between two arms, paired by seed, over the seeds that both have."""
    first, second = (
        {run.job.seed: float(accuracy(sums)) for run in runs if (sums := totals(run, key)) is not None}
        for runs in (ours, theirs)
    )
    shared = sorted(first.keys() & second.keys())
    return MeanOverSeeds.of([first[seed] - second[seed] for seed in shared]) if shared else None


def minutes_to_reach(curve: list[tuple[float, float]], goal: float) -> float | None:
    """The minutes at which a curve of (minutes, accuracy) first reaches `goal`; None if it never does.

    Between two points the curve is linear in the logarithm of the minutes.
    """
    for index, (minutes, value) in enumerate(curve):
        if value >= goal:
            if index == 0:
                return minutes
            before, low = curve[index - 1]
            share = (goal - low) / (value - low)
            return float(np.exp(np.log(before) + share * (np.log(minutes) - np.log(before))))
    return None
