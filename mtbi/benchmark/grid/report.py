"""The report of a grid: tables, pictures, commands, and HParams for TensorBoard."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mtbi import files, pictures
from mtbi import recipe as recipes
from mtbi.audio.codec import SAMPLE_RATE
from mtbi.benchmark.grid import findings, plots
from mtbi.benchmark.grid.findings import AXES, RunResult
from mtbi.benchmark.grid.grid import DATA, Grid, Job, arm_fields, commands, job_recipe, jobs
from mtbi.benchmark.intervals import MeanOverSeeds, holm
from mtbi.benchmark.scores import markdown, percent
from mtbi.engine.validation import similarity
from mtbi.shards.read import Shards
from mtbi.use.open_run import open_run

METHOD = """Numbers are right answers in per cent. Intervals are 95% t-intervals over the seeds, for these test recordings; few
seeds make them wide, and they may reach beyond 0 or 100. One seed has none. Where a corpus knows no right answers the numbers
are the nearness to the text LLM's (by each task's scorer). *Cascade*: a CTC recogniser's transcript, read by the text LLM.
*Text LLM*: the same LLM reading the true transcript."""
GAINS = """Paired by seed: the mean difference, its t-interval, and in how many seeds the arm is ahead. Bold: it holds at 5%
after Holm's correction for all comparisons of this table."""
GOAL = 0.8  #: of never-trained tasks, for "how much speech does each arm need"
NEW_AXIS = "never-trained tasks"


def write(grid: Grid, out: Path) -> Path:
    """`report.md`, `results.json`, PNG pictures and TensorBoard files in OUT; returns the report's path.

    Runs that are not finished are left out; the report says how many are finished.
    """
    results = findings.read_all(grid, out)
    full = {name: [r for r in results if r.job.arm == name and not r.job.minutes] for name in grid.arms}
    full = {name: runs for name, runs in full.items() if runs}
    total = sum(1 for _ in jobs(grid))
    parts = [f"# Generalisation benchmark\n\n{len(results)} of {total} runs are finished."]
    if not full:
        parts[0] += " Nothing to report yet."
    parts.append(METHOD)
    groups = list(grid.evaluate)
    for group in groups:
        parts.append(f"## {group}\n\n{main_table(grid, full, group)}")
        if grid.compare.arm in full:
            parts.append(f"### What `{grid.compare.arm}` gains, in points of accuracy\n\n{gains(grid, full, group)}")
    parts.append(f"## Less speech\n\n{less_speech(grid, results, groups[0], out)}")
    parts.append("## Arms\n\n" + arm_table(grid, full))
    parts += draw_pictures(grid, full, groups, out)
    parts.append("## Commands\n\n```\n" + "\n".join(shown_commands(grid, out)) + "\n```")
    files.write_text(out / "report.md", "\n\n".join(parts) + "\n")
    save_numbers(grid, full, results, out)
    hparams(grid, full, groups, out)
    return out / "report.md"


def main_table(grid: Grid, full: dict[str, list[RunResult]], group: str) -> str:
    """Accuracy of every arm on every axis, and the two references below."""
    rows = []
    for name, runs in full.items():
        means = [findings.over_seeds(runs, (group, axis), findings.accuracy) for axis in AXES]
        shares = [findings.over_seeds(runs, (group, axis), findings.kept) for axis in list(AXES)[:2]]
        single = [findings.over_seeds([run], (group, NEW_AXIS), findings.accuracy) for run in runs]
        each = " ".join(percent(mean and mean.value) for mean in single)
        rows.append([name, grid.arms[name].label, str(len(runs)), *map(percent, means), each, *map(percent, shares)])
    everything = [run for runs in full.values() for run in runs]
    for label, measure in (("cascade", findings.cascade_accuracy), ("text LLM", findings.text_accuracy)):
        means = [findings.over_seeds(everything, (group, axis), measure) for axis in AXES]
        rows.append([f"*{label}*", "", "", *(percent(mean and mean.value) for mean in means), "", "", ""])
    header = [
        "arm",
        "what it is",
        "seeds",
        *AXES,
        f"{NEW_AXIS}, each seed",
        "kept: trained, held-out wordings",
        "kept: never trained",
    ]
    return markdown(header, rows, left=2)


def gains(grid: Grid, full: dict[str, list[RunResult]], group: str) -> str:
    """The differences of accuracy with their 95% intervals. Bold ones are significant after Holm's correction for the table."""
    others = [other for other in grid.compare.with_ if other in full]
    gained = [findings.difference(full[grid.compare.arm], full[other], (group, axis)) for other in others for axis in AXES]
    significant = holm([difference.p if difference else None for difference in gained])
    texts = [signed(difference, bold) for difference, bold in zip(gained, significant, strict=True)]
    rows = [[f"over {other}", *texts[index * len(AXES) :][: len(AXES)]] for index, other in enumerate(others)]
    return f"{markdown(['', *AXES], rows, left=1)}\n\n{GAINS}"


def signed(mean: MeanOverSeeds | None, bold: bool) -> str:
    """`+3.2 (+1.0 to +5.1), 3 of 3`: the mean, its interval, and how many of the seeds are above zero."""
    if mean is None:
        return "–"
    if mean.low is None or mean.high is None:
        return f"{100 * mean.value:+.1f}, one seed"
    text = f"{100 * mean.value:+.1f} ({100 * mean.low:+.1f} to {100 * mean.high:+.1f}), {mean.above} of {mean.seeds}"
    return f"**{text}**" if bold else text


def curves(grid: Grid, results: list[RunResult], key: tuple[str, str]) -> dict[str, plots.Curve]:
    """Accuracy by minutes of speech, for the arms of `less_speech` and the compared ones, by label."""
    by_label: dict[str, plots.Curve] = {}
    for name in dict.fromkeys([*grid.less_speech.arms, *filter(None, [grid.compare.arm]), *grid.compare.with_]):
        by_minutes: dict[float, list[RunResult]] = {}
        for result in results:
            if result.job.arm == name:
                by_minutes.setdefault(round(result.corpus_minutes, 1), []).append(result)
        means = {minutes: findings.over_seeds(runs, key, findings.accuracy) for minutes, runs in sorted(by_minutes.items())}
        curve = [(minutes, mean) for minutes, mean in means.items() if mean]
        if curve:
            by_label[grid.arms[name].label] = curve
    return by_label


def less_speech(grid: Grid, results: list[RunResult], group: str, out: Path) -> str:
    """A table and a picture: accuracy on never-trained tasks by minutes of speech, and the minutes needed for the goal."""
    drawn = curves(grid, results, (group, NEW_AXIS))
    if all(len(curve) < 2 for curve in drawn.values()):
        return "No run on a part of the speech is finished."
    cascade = findings.over_seeds(results, (group, NEW_AXIS), findings.cascade_accuracy)
    lines = {"cascade (recogniser + text LLM)": cascade.value} if cascade else {}
    title = f"{NEW_AXIS}, {group}"
    plots.accuracy_by_speech(drawn, lines, title, out / "plots" / "accuracy_by_speech.png")
    minutes = sorted({point for curve in drawn.values() for point, _ in curve})
    rows = []
    for label, curve in drawn.items():
        values = dict(curve)
        needed = findings.minutes_to_reach([(point, mean.value) for point, mean in curve], GOAL)
        first = needed is not None and needed == curve[0][0]
        text = "not reached" if needed is None else f"{'at most ' if first else ''}{needed:.3g} min"
        rows.append([label, *(percent(values.get(point)) for point in minutes), text])
    header = ["arm", *(f"{point:.3g} min" for point in minutes), f"speech for {GOAL:.0%}"]
    text = "Accuracy on never-trained tasks by the speech in the corpus. An arm has the same number of steps on any of it."
    return f"{text}\n\n{markdown(header, rows, left=1)}\n\n![accuracy by speech](plots/accuracy_by_speech.png)"


def arm_table(grid: Grid, full: dict[str, list[RunResult]]) -> str:
    """What each arm changes, and how much speech it was trained on."""
    rows = []
    for name, runs in full.items():
        arm = grid.arms[name]
        hours = [run.audio_hours for run in runs]
        changes = " ".join(f"`{text}`" for text in arm.fields) or "–"
        rows.append([name, arm.like or "the recipe", changes, f"{sum(hours) / len(hours):.2f} h"])
    return markdown(["arm", "like", "but", "speech heard in training"], rows, left=3)


def draw_pictures(grid: Grid, full: dict[str, list[RunResult]], groups: list[str], out: Path) -> list[str]:
    """The pictures of accuracy by task and of similarities, as Markdown. Both are empty without compared arms."""
    chosen = [name for name in (grid.compare.arm, *grid.compare.with_) if name in full]
    if not chosen:
        return []
    values = {grid.arms[name].label: task_accuracy(full[name], groups[0]) for name in chosen}
    trained = findings.trained_in_grid(grid, out)
    plain = {label: {task: share for task, share in tasks.items() if "/" not in task} for label, tasks in values.items()}
    plots.accuracy_by_task(plain, trained, groups[0], out / "plots" / "accuracy_by_task.png")
    maps, words, seconds, transcript = heat_maps(grid, {name: full[name][0].job for name in chosen}, groups[0], out)
    pictures.similarity(
        maps, words, seconds, f"adapter frames against token embeddings: “{transcript}”", out / "plots" / "similarity.png"
    )
    return [
        "## Pictures\n\n![accuracy by task](plots/accuracy_by_task.png)",
        "![similarity of adapter frames and token embeddings](plots/similarity.png)",
    ]


def task_accuracy(runs: list[RunResult], group: str) -> dict[str, float]:
    """The share of right answers by task, over all seeds."""
    names = {task for run in runs for measured, task in run.tasks if measured == group}
    sums = {task: np.sum([run.tasks.get((group, task), (0, 0)) for run in runs], axis=0) for task in names}
    return {task: float(total / count) for task, (total, count) in sums.items() if count}


def heat_maps(grid: Grid, chosen: dict[str, Job], group: str, out: Path) -> tuple[dict[str, np.ndarray], list[str], float, str]:
    """For the held-out utterance with most words: similarities `(frames, words)` by arm, words, seconds a frame, transcript."""
    shards = Shards(grid.evaluate[group].replace(DATA, str(out / "data")))
    table = shards.index.utterances
    sample = shards[int(np.argmax(table["words"]))]
    maps: dict[str, np.ndarray] = {}
    seconds = 0.0
    for name, job in chosen.items():
        run = open_run(out / "runs" / job.name, "latest")
        cosines = similarity(run.model, sample.waveform, [ids.tolist() for ids in sample.word_ids])
        maps[grid.arms[name].label] = cosines
        seconds = len(sample.waveform) / SAMPLE_RATE / len(cosines)
    words = [run.chat.tokenizer.decode(ids.tolist()).strip() for ids in sample.word_ids]
    return maps, words, seconds, sample.text


def shown_commands(grid: Grid, out: Path) -> list[str]:
    """The commands of the first run. The others differ in seed and in the fields of their arms."""
    first = next(iter(jobs(grid)))
    return [shlex.join(command) for command in commands(grid, first, out, processes=1)]


def save_numbers(grid: Grid, full: dict[str, list[RunResult]], results: list[RunResult], out: Path) -> None:
    """`results.json`: every number of the tables."""

    def numbers(runs: list[RunResult], group: str, axis: str) -> dict[str, Any]:
        measures = {"accuracy": findings.accuracy, "kept": findings.kept, "of_cascade": findings.of_cascade}
        means = {name: findings.over_seeds(runs, (group, axis), measure) for name, measure in measures.items()}
        # The values of single seeds can be computed from `runs` in the same file.
        return {name: {k: v for k, v in asdict(mean).items() if k != "values"} for name, mean in means.items() if mean}

    record = {
        "arms": {
            name: {group: {axis: numbers(runs, group, axis) for axis in AXES} for group in grid.evaluate}
            for name, runs in full.items()
        },
        "runs": [
            {
                "run": result.job.name,
                "audio_hours": round(result.audio_hours, 4),
                "corpus_minutes": round(result.corpus_minutes, 2),
                "right": {
                    f"{group}: {axis}": round(float(sum(row[0] for row in sums.values())), 3)
                    for (group, axis), sums in result.sums.items()
                },
                "dialogues": {
                    f"{group}: {axis}": int(sum(row[3] for row in sums.values())) for (group, axis), sums in result.sums.items()
                },
            }
            for result in results
        ],
    }
    files.write_text(out / "results.json", json.dumps(record, indent=1) + "\n")


def hparams(grid: Grid, full: dict[str, list[RunResult]], groups: list[str], out: Path) -> None:
    """One TensorBoard run for each arm and seed, with the fields in which arms differ and the accuracies."""
    from torch.utils.tensorboard import SummaryWriter

    keys = sorted({text.partition("=")[0] for name in grid.arms for text in arm_fields(grid, name)})
    for name, runs in full.items():
        for run in runs:
            recipe = job_recipe(grid, run.job, out)
            values: dict[str, Any] = {"arm": name, "seed": run.job.seed}
            for key in keys:
                value = recipes.value_of(recipe, key)
                values[key] = str(value) if isinstance(value, list) else value
            means = {(g, axis): findings.over_seeds([run], (g, axis), findings.accuracy) for g in groups for axis in AXES}
            scores = {f"hparam/{group}/{axis}": mean.value for (group, axis), mean in means.items() if mean}
            with SummaryWriter(str(out / "tensorboard" / run.job.name.replace("/", "_"))) as writer:
                writer.add_hparams(values, scores, run_name=".")
