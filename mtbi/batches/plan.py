"""The plan: which utterances and tasks are in which packed row of which step.

The plan is a pure function of (index, seed, epoch). It does not depend on the number of processes. Rank r of W takes rows r,
r+W, … of each step, so every W trains on the same global steps.

An epoch shuffles the shards and takes them in windows. Each window shuffles its utterances and draws their tasks and
interleaving (`draw.py`). It packs the groups into rows of a fixed token budget by best fit, longest first (Johnson 1974). The
last step of a window may have fewer rows.
"""

from __future__ import annotations

import bisect
import fnmatch
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches import interleave, mixture
from mtbi.batches.draw import Geometry, Group, GroupDrawer, LeftOut
from mtbi.errors import UserError
from mtbi.recipe import LossConfig, Recipe
from mtbi.shards.index import Index

MIXTURE = 1  # distinguishes the draws of a mixture from the others of a window


@dataclass(frozen=True)
class Position:
    """Where in the data a run is. A checkpoint keeps it, with the window, so that a resume plans only that window."""

    epoch: int = 0
    step: int = 0  #: within the epoch
    window: int = 0
    window_step: int = 0  #: the step at which the window begins

    def to_json(self) -> dict[str, int]:
        """For the run state."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, int]) -> Position:
        """The inverse of `to_json`."""
        return cls(**record)


@dataclass(frozen=True)
class Row:
    """Groups that fill one row."""

    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Step:
    """One global step."""

    position: Position
    next_position: Position
    rows: list[Row]  #: at most `rows_per_step`, those with most speech first
    weight_total: float  #: sum of the weights of all targets: the denominator of the loss
    target_tokens: int
    tokens: int  #: LLM positions used
    audio_seconds: float  #: of the utterances
    used_share: float  #: of rows_per_step * row_tokens positions


def best_fit(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items `(items,)` into rows: longest first, each into the fullest row that still takes it.

    Returns the items of each row.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free positions, row), sorted
    for item in np.argsort(-sizes, kind="stable"):
        size = int(sizes[item])
        fullest = bisect.bisect_left(free, (size, -1))
        if fullest == len(free):
            rows.append([int(item)])
            left, row = capacity - size, len(rows) - 1
        else:
            left, row = free.pop(fullest)
            rows[row].append(int(item))
            left -= size
        bisect.insort(free, (left, row))
    return rows


def next_fit(sizes: np.ndarray, capacity: int, most: int) -> list[list[int]]:
    """Fill rows with at most `most` items each in the given order, one row after the other."""
    rows: list[list[int]] = []
    free = 0
    for item, size in enumerate(sizes.tolist()):
        if not rows or size > free or len(rows[-1]) == most:
            rows.append([])
            free = capacity
        rows[-1].append(item)
        free -= size
    return rows


def chosen_tasks(names: list[str], tasks: list[str]) -> np.ndarray | None:
    """`(tasks,)` true for the tasks that names or patterns choose; None = all. Raises UserError for unknown ones."""
    if unknown := [name for name in names if not fnmatch.filter(tasks, name)]:
        raise UserError(f"plan.tasks: no task {unknown[0]!r} in the shards, which hold {', '.join(tasks)}")
    return np.array([any(fnmatch.fnmatch(task, name) for name in names) for task in tasks]) if names else None


def taken_tasks(names: list[str], tasks: list[str]) -> set[str]:
    """The names of the tasks that `chosen_tasks` chooses."""
    chosen = chosen_tasks(names, tasks)
    return {task for number, task in enumerate(tasks) if chosen is None or chosen[number]}


def take_hours(index: Index, hours: float, seed: int) -> np.ndarray | None:
    """`(utterances,)` true for the first `hours` of speech in an order drawn from the seed; None = all.

    Fewer hours take a part of what more hours take. At least one utterance is taken.
    """
    if not hours:
        return None
    order = np.random.default_rng([seed, len(index.utterances)]).permutation(len(index.utterances))
    samples = np.cumsum(index.utterances["samples"][order], dtype=np.int64)
    taken = np.zeros(len(order), bool)
    taken[order[: max(1, int(np.searchsorted(samples, hours * 3600 * SAMPLE_RATE, side="right")))]] = True
    return taken


def task_weights(weights: dict[str, float], tasks: list[str]) -> np.ndarray:
    """`(tasks,)` weight of an answer token of each task. Raises UserError for an unknown task or a weight of 0 or less."""
    if unknown := sorted(set(weights) - set(tasks)):
        raise UserError(f"loss.task_weights: no task {unknown[0]!r} in the shards, which hold {', '.join(tasks)}")
    if bad := [task for task, weight in weights.items() if not 0 < weight < float("inf")]:
        raise UserError(f"loss.task_weights.{bad[0]} must be above 0; a task is left out by `behaviour.tasks`.")
    return np.array([weights.get(task, 1.0) for task in tasks])


def check_teacher(index: Index, loss: LossConfig) -> None:
    """Raises UserError where some answers have a teacher and the loss teaches nothing from the others."""
    if index.top_k and index.without_teacher and not (loss.ce or loss.gold_ce):
        raise UserError(
            "data.shards: some answers are gold answers, without probabilities of the text LLM, and loss.ce is 0, so nothing "
            "would be learnt from them; give their cross-entropy a weight with loss.gold_ce."
        )


class Plan:
    """Steps of packed rows over an index. Raises UserError where the recipe's numbers make no sense or nothing fits."""

    def __init__(self, index: Index, recipe: Recipe, geometry: Geometry) -> None:
        interleave.check(recipe.interleave, geometry.follows_time)
        check_teacher(index, recipe.loss)
        self.index, self.config, self.interleave = index, recipe.plan, recipe.interleave
        self.seed, self.geometry = recipe.seed, geometry
        self.task_weights = task_weights(recipe.loss.task_weights, index.tasks)  #: (tasks,) of each answer token
        self.max_samples = min(recipe.plan.max_audio_seconds * SAMPLE_RATE, geometry.max_samples or float("inf"))
        self.left_out = LeftOut()  #: of the epoch so far
        self._drawer = GroupDrawer(
            index,
            self.config,
            self.interleave,
            geometry,
            self.task_weights,
            chosen_tasks(recipe.plan.tasks, index.tasks),
            self.max_samples,
        )
        self._taken = take_hours(index, recipe.plan.hours, self.seed)
        self._weights = mixture.shard_weights(index, recipe.data.weights)
        self._windows: tuple[int, list[np.ndarray]] | None = None

    @property
    def weights(self) -> list[float]:
        """The weight of each shard in the mixture; empty where all are 1."""
        return [] if self._weights is None else self._weights.tolist()

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The shards of each window of an epoch, in order. A shard without a taken utterance is in no window."""
        if self._windows is None or self._windows[0] != epoch:
            sizes = np.array(self.index.shard_sizes)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(sizes))
            if self._taken is not None:
                sizes = np.add.reduceat(self._taken, interleave.starts_of(sizes))
            if self._weights is not None:
                sizes = np.ceil(sizes * self._weights).astype(np.int64)
            order = order[sizes[order] > 0]
            before = interleave.starts_of(sizes[order])
            window = before // self.config.window_utterances
            self._windows = epoch, np.split(order, np.flatnonzero(np.diff(window)) + 1)
        return self._windows[1]

    def window_utterances(self, epoch: int, window: int) -> np.ndarray:
        """The utterances of a window `(utterances,)`, in the order of their shards, each as often as its weight says."""
        ends = np.cumsum(self.index.shard_sizes)
        shards = self.windows(epoch)[window]
        utterances = np.concatenate([np.arange(ends[shard] - self.index.shard_sizes[shard], ends[shard]) for shard in shards])
        if self._taken is not None:
            utterances = utterances[self._taken[utterances]]
        if self._weights is not None:
            weights = self._weights[np.searchsorted(ends, utterances, side="right")]
            utterances = mixture.repeat(utterances, weights, np.random.default_rng([self.seed, epoch, window, MIXTURE]))
        return utterances

    def window_rows(self, epoch: int, window: int) -> list[Row]:
        """The packed rows of a window, shuffled."""
        rng = np.random.default_rng([self.seed, epoch, window])
        if not len(utterances := self.window_utterances(epoch, window)):
            return []
        passes = self.config.passes_per_epoch or max(1, self.config.window_utterances // len(utterances))
        shuffled = np.concatenate([rng.permutation(utterances) for _ in range(passes)])
        groups, left_out = self._drawer.draw(shuffled, rng, epoch)
        self.left_out.add(left_out)
        sizes = np.array([group.tokens for group in groups], int)
        if self.config.utterances_per_row:
            packed = next_fit(sizes, self.config.row_tokens, self.config.utterances_per_row)
        else:
            packed = best_fit(sizes, self.config.row_tokens)
        return [Row(tuple(groups[item] for item in packed[row])) for row in rng.permutation(len(packed))]

    def window_steps(self, epoch: int, window: int, window_step: int) -> Iterator[Step]:
        """The steps of a window. The first of them is step `window_step` of its epoch."""
        rows = self.window_rows(epoch, window)
        size = self.config.rows_per_step
        for start in range(0, len(rows), size):
            step = window_step + start // size
            if start + size < len(rows):
                following = Position(epoch, step + 1, window, window_step)
            elif window + 1 < len(self.windows(epoch)):
                following = Position(epoch, step + 1, window + 1, step + 1)
            else:
                following = Position(epoch + 1)
            yield self.make_step(Position(epoch, step, window, window_step), following, rows[start : start + size])

    def make_step(self, position: Position, following: Position, rows: list[Row]) -> Step:
        """A step of `rows`. Rows with most speech come first: then rows that are computed together cost about the same."""
        rows = sorted(rows, key=lambda row: -sum(group.samples for group in row.groups))
        groups = [group for row in rows for group in row.groups]
        tokens = sum(group.tokens for group in groups)
        return Step(
            position,
            following,
            rows,
            weight_total=sum(group.weight for group in groups),
            target_tokens=sum(group.targets for group in groups),
            tokens=tokens,
            audio_seconds=sum(group.samples for group in groups) / SAMPLE_RATE,
            used_share=tokens / (self.config.rows_per_step * self.config.row_tokens),
        )

    def steps(self, position: Position | None = None) -> Iterator[Step]:
        """All steps from a position on, epoch after epoch, without end. Raises UserError where an epoch holds no step."""
        position = position or Position()
        epoch, window, window_step = position.epoch, position.window, position.window_step
        while True:
            self.left_out = LeftOut()
            empty = window == 0
            for number in range(window, len(self.windows(epoch))):
                for step in self.window_steps(epoch, number, window_step):
                    empty = False
                    window_step = step.position.step + 1
                    if step.position.epoch > position.epoch or step.position.step >= position.step:
                        yield step
            if empty:
                raise self.nothing_fits()
            epoch, window, window_step = epoch + 1, 0, 0

    def nothing_fits(self) -> UserError:
        """The error for an epoch without a step."""
        if self._weights is not None and self.left_out == LeftOut():
            return UserError("data.weights: an epoch draws no utterance; give a source of data.shards a larger weight.")
        return UserError(
            f"no utterance fits plan.row_tokens={self.config.row_tokens}: {self.left_out.too_big} need more tokens, "
            f"{self.left_out.too_long} are longer than {self.max_samples / SAMPLE_RATE:g} s (plan.max_audio_seconds, or what "
            "the encoder takes)."
        )
