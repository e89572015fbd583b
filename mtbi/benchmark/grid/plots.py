"""Pictures of a grid's results, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mtbi.benchmark.intervals import MeanOverSeeds
from mtbi.pictures import figure, finish

Curve = list[tuple[float, MeanOverSeeds]]  #: (minutes of speech, accuracy)


def accuracy_by_speech(curves: dict[str, Curve], references: dict[str, float], title: str, path: Path) -> None:
    """Accuracy by minutes of speech: a line and the points of single seeds for each arm, a horizontal line a reference."""
    picture, axes = figure(7.5, 4.8)
    for label, curve in curves.items():
        minutes = [point for point, _ in curve]
        line = axes.plot(minutes, [100 * mean.value for _, mean in curve], marker="o", label=label)[0]
        seeds = [(point, 100 * value) for point, mean in curve for value in mean.values]
        axes.scatter(*zip(*seeds, strict=True), color=line.get_color(), alpha=0.5, s=14)
    for (label, value), dashes in zip(references.items(), ("--", ":", "-."), strict=False):
        axes.axhline(100 * value, color="0.35", linestyle=dashes, linewidth=1, label=label)
    axes.set_xscale("log")
    ticks = sorted({point for curve in curves.values() for point, _ in curve})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="minutes of speech in the training corpus", ylabel="right answers, %", title=title, ylim=(0, 105))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    finish(picture, path)


def accuracy_by_task(values: dict[str, dict[str, float]], trained: set[str], title: str, path: Path) -> None:
    """A bar for each task and arm, from `values[arm][task]`. A line separates trained tasks from never-trained ones."""
    tasks = sorted({task for shares in values.values() for task in shares}, key=lambda task: (task not in trained, task))
    picture, axes = figure(max(8.0, 0.6 * len(tasks)), 4.6)
    width = 0.8 / max(len(values), 1)
    for number, (label, shares) in enumerate(values.items()):
        positions = np.arange(len(tasks)) - 0.4 + width * (number + 0.5)
        axes.bar(positions, [100 * shares.get(task, float("nan")) for task in tasks], width, label=label)
    border = sum(task in trained for task in tasks) - 0.5
    axes.axvline(border, color="0.4", linewidth=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=60, ha="right", fontsize=8)
    axes.set(ylabel="right answers, %", title=f"{title}   (left: trained from speech, right: never trained from speech)")
    axes.set_ylim(0, 105)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=3, frameon=False)
    finish(picture, path)
