"""From the answers of many runs to the findings: means over seeds, differences between arms, and their intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mtbi.benchmark import cells
from mtbi.benchmark.cells import RESAMPLES, Estimate
from mtbi.benchmark.dialogues import SPEECH, TEXT_LLM
from mtbi.benchmark.grid import Grid, Job, job_recipe, jobs, reference, report_folder
from mtbi.data.audio import SAMPLE_RATE
from mtbi.data.plan import taken_tasks
from mtbi.data.shards import Shards
from mtbi.engine import checkpoint
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.tasks import scoring

#: What is reported of each group of speakers: name → (part of the tasks, only held-out wordings, prompt before the speech).
AXES = {
    "trained tasks, held-out wordings": (cells.TRAINED, True, False),
    "never-trained tasks": (cells.NEW, False, False),
    "trained tasks, other format": (cells.FORMATS, False, False),
    "trained tasks, prompt first": (cells.TRAINED, False, True),
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


def worth(one: dict[str, Any], who: str) -> float:
    """What an answer counts: 1 or 0 where the right one is known; else its nearness to the text LLM's, or the transcript."""
    answer = one["answers"][who]
    if one["gold"] is not None and one["scorer"] in ("exact", "wer"):
        return float(scoring.exact_match(answer, one["gold"]))
    reference = one["gold"] or (one["transcript"] if one["scorer"].startswith("wer") else one["answers"][TEXT_LLM])
    return scoring.nearness(one["scorer"], answer, reference)


Question = tuple[str, str, str, int, bool]


def question(one: dict[str, Any]) -> Question:
    """What tells a saved dialogue from the others of a run."""
    return one["group"], one["utterance"], one["task"], one["wording"], one["prompt_first"]


def read_cascade(grid: Grid, out: Path) -> dict[Question, float]:
    """What the cascade's answers count, from the run that asked it; empty while that run is not finished."""
    folder = report_folder(grid, reference(grid), out)
    if folder is None:
        return {}
    with (folder / "answers.jsonl").open(encoding="utf-8") as lines:
        saved = [json.loads(line) for line in lines]
    return {question(one): worth(one, cells.CASCADE) for one in saved if cells.CASCADE in one["answers"]}


def read_run(grid: Grid, job: Job, out: Path, trained: set[str], cascade: dict[Question, float]) -> RunResult | None:
    """The result of a run; None while it is not finished."""
    folder = report_folder(grid, job, out)
    if folder is None:
        return None
    sums: dict[tuple[str, str], Sums] = defaultdict(lambda: defaultdict(lambda: np.zeros(4)))
    tasks: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    with (folder / "answers.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            heard = worth(one, SPEECH)
            row = np.array([heard, worth(one, TEXT_LLM), cascade.get(question(one), 0.0), 1.0])
            for axis, (part, heldout, first) in AXES.items():
                if cells.part_of(one["task"], trained) == part and one["prompt_first"] == first and one["heldout"] >= heldout:
                    sums[one["group"], axis][one["utterance"]] += row
            if not one["prompt_first"]:
                counted = tasks[one["group"], one["task"]]
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


def resample(runs: list[RunResult], key: tuple[str, str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The totals `(4,)` of several seeds and of their bootstrap samples `(RESAMPLES, 4)`; None where nothing was measured.

    Both seeds and utterances are drawn, the same ones for every arm, so that differences between arms are paired.
    """
    tables = [run.sums[key] for run in runs if key in run.sums]
    if not tables:
        return None
    utterances = sorted({name for one in tables for name in one})
    stacked = np.stack([[one.get(name, np.zeros(4)) for name in utterances] for one in tables])
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(utterances), np.full(len(utterances), 1 / len(utterances)), RESAMPLES)
    seeds = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), RESAMPLES)
    drawn = np.einsum("bs,sbc->bc", seeds, np.stack([weights @ one for one in stacked]))
    return stacked.sum((0, 1)), drawn


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


def interval(value: float, samples: np.ndarray) -> Estimate:
    """A value with the middle 95% of its bootstrap samples."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high))


def measure(runs: list[RunResult], key: tuple[str, str], what: Measure) -> Estimate | None:
    """A measure over the seeds of one arm."""
    found = resample(runs, key)
    return interval(what(found[0]), what(found[1])) if found else None


def difference(ours: list[RunResult], theirs: list[RunResult], key: tuple[str, str]) -> Estimate | None:
    """How much more accurate the first arm is than the second, over the seeds that both have."""
    shared = {run.job.seed for run in ours} & {run.job.seed for run in theirs}
    pair = [resample([run for run in runs if run.job.seed in shared], key) for runs in (ours, theirs)]
    if not shared or pair[0] is None or pair[1] is None:
        return None
    total, drawn = pair[0]
    other_total, other_drawn = pair[1]
    return interval(accuracy(total) - accuracy(other_total), accuracy(drawn) - accuracy(other_drawn))


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
