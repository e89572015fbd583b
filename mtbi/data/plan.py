"""The plan: which utterances and tasks go into which packed row of which step.

A pure function of (index, seed, epoch). The number of processes is not an argument: whoever computes rows r, r+W, … of
every step, the global steps are the same. Shards are shuffled and taken in windows; inside a window utterances are
shuffled, tasks and interleaving are drawn, and groups are packed into rows of a fixed token budget by best fit, longest
first (Johnson 1974). A window ends with a step that may hold fewer rows.
"""

from __future__ import annotations

import bisect
import fnmatch
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from mtbi.data import interleave
from mtbi.data.audio import SAMPLE_RATE
from mtbi.data.interleave import Segment
from mtbi.data.shards import Index
from mtbi.errors import UserError
from mtbi.recipe import Recipe


class Geometry(Protocol):
    """How many LLM positions a stretch of sound takes."""

    @property
    def max_samples(self) -> int | None:
        """Longest clip that the encoder takes; None = any."""
        ...

    @property
    def samples_per_frame(self) -> float:
        """Distance between two adapter frames."""
        ...

    def frames(self, samples: Any) -> Any:
        """Adapter frames of that many samples."""
        ...


@dataclass(frozen=True)
class Position:
    """Where in the data a run is: what a checkpoint keeps. The window is kept too, so that a resume plans only that one."""

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
class Group:
    """One utterance with the dialogues about it that share its prefix."""

    utterance: int
    branches: tuple[int, ...]  #: places in the utterance's list of stored dialogues
    segments: tuple[Segment, ...] | None  #: None = all sound
    tokens: int  #: LLM positions taken


@dataclass(frozen=True)
class Row:
    """Groups that fill one row."""

    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Step:
    """One global step."""

    position: Position
    next_position: Position
    rows: list[Row]  #: `rows_per_step` of them or fewer
    weight_total: float  #: sum of the weights of all targets: the denominator of the loss
    target_tokens: int
    tokens: int  #: slots used
    audio_seconds: float  #: of the utterances
    used_share: float  #: of rows_per_step * row_tokens slots


@dataclass
class LeftOut:
    """Utterances that no row can take."""

    too_long: int = 0  #: more than `max_audio_seconds`, or than the encoder takes
    too_big: int = 0  #: more than a row's tokens even with one task
    unanswered: int = 0  #: without a stored dialogue


def best_fit(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items into rows: longest first, each into the fullest row that still takes it. Returns the items of each row."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (free slots, row), sorted
    for item in np.argsort(-sizes, kind="stable"):
        size = int(sizes[item])
        place = bisect.bisect_left(free, (size, -1))
        if place == len(free):
            rows.append([int(item)])
            slots, row = capacity - size, len(rows) - 1
        else:
            slots, row = free.pop(place)
            rows[row].append(int(item))
            slots -= size
        bisect.insort(free, (slots, row))
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


def take_hours(index: Index, hours: float, seed: int) -> np.ndarray | None:
    """`(utterances,)` true for those that make up the first `hours` of speech in an order drawn from the seed; None = all.

    Fewer hours take a part of what more hours take. At least one utterance is taken.
    """
    if not hours:
        return None
    order = np.random.default_rng([seed, len(index.utterances)]).permutation(len(index.utterances))
    heard = np.cumsum(index.utterances["samples"][order], dtype=np.int64)
    taken = np.zeros(len(order), bool)
    taken[order[: max(1, int(np.searchsorted(heard, hours * 3600 * SAMPLE_RATE, side="right")))]] = True
    return taken


class Plan:
    """Steps of packed rows over an index. Raises UserError where the recipe's numbers make no sense or nothing fits."""

    def __init__(self, index: Index, recipe: Recipe, geometry: Geometry) -> None:
        interleave.check(recipe.interleave)
        self.index, self.config, self.interleave, self.seed, self.geometry = (
            index,
            recipe.plan,
            recipe.interleave,
            recipe.seed,
            geometry,
        )
        unknown = set(recipe.loss.task_weights) - set(index.tasks)
        if unknown:
            raise UserError(
                f"loss.task_weights: no task {sorted(unknown)[0]!r} in the shards, which hold {', '.join(index.tasks)}"
            )
        #: weight of each answer token, by number of the task
        self.task_weights = np.array([recipe.loss.task_weights.get(task, 1.0) for task in index.tasks])
        if bad := [task for task, weight in recipe.loss.task_weights.items() if not 0 < weight < float("inf")]:
            raise UserError(f"loss.task_weights.{bad[0]} must be above 0; a task is left out by `behaviour.tasks`.")
        self._chosen_tasks = chosen_tasks(recipe.plan.tasks, index.tasks)
        self._taken = take_hours(index, recipe.plan.hours, self.seed)
        self.max_samples = min(recipe.plan.max_audio_seconds * SAMPLE_RATE, geometry.max_samples or float("inf"))
        self.left_out = LeftOut()  #: of the epoch so far
        self._windows: tuple[int, list[np.ndarray]] | None = None

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The shards of each window of an epoch, in order; shards of which no utterance is taken are in none."""
        if self._windows is None or self._windows[0] != epoch:
            sizes = np.array(self.index.shard_sizes)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(sizes))
            if self._taken is not None:
                sizes = np.add.reduceat(self._taken, np.cumsum(sizes) - sizes)
                order = order[sizes[order] > 0]
            filled = np.cumsum(sizes[order])
            window = (filled - sizes[order]) // self.config.window_samples
            self._windows = epoch, np.split(order, np.flatnonzero(np.diff(window)) + 1)
        return self._windows[1]

    def draw_group(self, utterance: int, rng: np.random.Generator) -> Group | None:
        """Tasks and interleaving of one utterance; None where no row can take it."""
        row = self.index.utterances[utterance]
        samples, words, first = int(row["samples"]), int(row["words"]), int(row["first_branch"])
        stored = self.index.branches[first : first + int(row["branches"])]
        places = np.arange(len(stored))
        if self._chosen_tasks is not None:
            places = places[self._chosen_tasks[stored["task"]]]
        chosen = rng.permutation(places)[: self.config.tasks_per_utterance or None]
        segments = interleave.draw(words, rng, self.interleave)
        if len(chosen) == 0 or samples > self.max_samples:
            self.left_out.unanswered += len(chosen) == 0
            self.left_out.too_long += len(chosen) > 0
            return None
        branches = stored[chosen]
        # The last answer token is predicted, never read: it takes no slot.
        lengths = branches["prompt_tokens"].astype(int) + branches["answer_tokens"] - 1
        first_word = int(row["first_word"])
        speech = self.sound_and_words(samples, segments, self.index.words[first_word : first_word + words])
        prefix = len(self.index.prefix_ids)
        if self.index.prompt_first:  # the speech comes after each prompt anew
            lengths += branches["lead_tokens"].astype(int) + speech
        else:
            prefix += speech
        fitting = int((prefix + np.cumsum(lengths) <= self.config.row_tokens).sum())
        if not fitting:
            self.left_out.too_big += 1
            return None
        kept = tuple(int(place) for place in chosen[:fitting])
        return Group(utterance, kept, segments, prefix + int(lengths[:fitting].sum()))

    def sound_and_words(self, samples: int, segments: tuple[Segment, ...] | None, words: np.ndarray) -> int:
        """LLM positions of an utterance: adapter frames, and text tokens where it is interleaved."""
        frames = int(self.geometry.frames(samples))
        if segments is None:
            return frames
        total = 0
        for segment in segments:
            if segment.is_text:
                total += int(words["tokens"][segment.first : segment.stop].sum())
            elif self.interleave.cut == "slice":
                first, stop = interleave.sliced_frames(
                    segment, words["start"], samples, frames, self.geometry.samples_per_frame
                )
                total += stop - first
            else:
                begin, end = interleave.sound_bounds(segment, words["start"], samples)
                total += int(self.geometry.frames(end - begin)) if end > begin else 0
        return total

    def window_rows(self, epoch: int, window: int) -> list[Row]:
        """The packed rows of a window, shuffled."""
        rng = np.random.default_rng([self.seed, epoch, window])
        ends = np.cumsum(self.index.shard_sizes)
        shards = self.windows(epoch)[window]
        utterances = np.concatenate([np.arange(ends[shard] - self.index.shard_sizes[shard], ends[shard]) for shard in shards])
        if self._taken is not None:
            utterances = utterances[self._taken[utterances]]
        passes = self.config.passes_per_epoch or max(1, self.config.window_samples // len(utterances))
        drawn = [self.draw_group(int(one), rng) for _ in range(passes) for one in rng.permutation(utterances)]
        groups = [group for group in drawn if group is not None]
        sizes = np.array([group.tokens for group in groups], int)
        if self.config.utterances_per_row:
            packed = next_fit(sizes, self.config.row_tokens, self.config.utterances_per_row)
        else:
            packed = best_fit(sizes, self.config.row_tokens)
        return [Row(tuple(groups[item] for item in packed[row])) for row in rng.permutation(len(packed))]

    def targets(self, row: Row) -> tuple[int, float]:
        """Answer tokens of a row and the sum of their weights."""
        count, weight = 0, 0.0
        for group in row.groups:
            first = int(self.index.utterances[group.utterance]["first_branch"])
            branches = self.index.branches[first + np.array(group.branches)]
            answers = branches["answer_tokens"].astype(int)
            count += int(answers.sum())
            weight += float((answers * self.task_weights[branches["task"]]).sum())
        return count, weight

    def window_steps(self, epoch: int, window: int, window_step: int) -> Iterator[Step]:
        """The steps of a window, the first of which has the number `window_step` in its epoch."""
        rows = self.window_rows(epoch, window)
        size = self.config.rows_per_step
        for start in range(0, len(rows), size):
            mine = rows[start : start + size]
            step = window_step + start // size
            if start + size < len(rows):
                following = Position(epoch, step + 1, window, window_step)
            elif window + 1 < len(self.windows(epoch)):
                following = Position(epoch, step + 1, window + 1, step + 1)
            else:
                following = Position(epoch + 1)
            counts = [self.targets(row) for row in mine]
            tokens = sum(group.tokens for row in mine for group in row.groups)
            samples = sum(int(self.index.utterances[group.utterance]["samples"]) for row in mine for group in row.groups)
            yield Step(
                Position(epoch, step, window, window_step),
                following,
                mine,
                weight_total=sum(weight for _, weight in counts),
                target_tokens=sum(count for count, _ in counts),
                tokens=tokens,
                audio_seconds=samples / SAMPLE_RATE,
                used_share=tokens / (size * self.config.row_tokens),
            )

    def steps(self, position: Position | None = None) -> Iterator[Step]:
        """All steps from a position on, epoch after epoch, without end. Raises UserError where an epoch holds no step."""
        position = position or Position()
        epoch, window, step = position.epoch, position.window, position.window_step
        skip = position.step
        while True:
            found = False
            self.left_out = LeftOut()
            for number in range(window, len(self.windows(epoch))):
                for one in self.window_steps(epoch, number, step):
                    found = True
                    step = one.position.step + 1
                    if one.position.epoch > position.epoch or one.position.step >= skip:
                        yield one
            if not found and window == 0:
                raise UserError(
                    f"no utterance fits plan.row_tokens={self.config.row_tokens}: {self.left_out.too_big} need more tokens, "
                    f"{self.left_out.too_long} are longer than {self.max_samples / SAMPLE_RATE:g} s (plan.max_audio_seconds, "
                    "or what the encoder takes)."
                )
            epoch, window, step = epoch + 1, 0, 0
