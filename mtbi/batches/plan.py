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

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.batches import interleave
from mtbi.batches.interleave import Segment
from mtbi.errors import UserError
from mtbi.recipe import Recipe
from mtbi.shards.index import Index


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
    text_words: bytes  #: for each word 1 where it is given as text, else 0; empty = all sound
    tokens: int  #: LLM positions taken
    samples: int  #: of the utterance
    targets: int  #: answer tokens
    weight: float  #: sum of the weights of the answer tokens

    @property
    def segments(self) -> tuple[Segment, ...] | None:
        """The utterance's words in stretches of sound and text; None = all sound."""
        return interleave.segments_of(np.frombuffer(self.text_words, bool)) if self.text_words else None


@dataclass(frozen=True)
class Row:
    """Groups that fill one row."""

    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Step:
    """One global step."""

    position: Position
    next_position: Position
    rows: list[Row]  #: `rows_per_step` of them or fewer, those with most speech first
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


def taken_tasks(names: list[str], tasks: list[str]) -> set[str]:
    """The names of the tasks that `chosen_tasks` chooses."""
    chosen = chosen_tasks(names, tasks)
    return {task for number, task in enumerate(tasks) if chosen is None or chosen[number]}


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

    def draw_groups(self, utterances: np.ndarray, rng: np.random.Generator) -> list[Group]:
        """Tasks and interleaving of each utterance; those that no row can take are left out, and counted."""
        rows = self.index.utterances[utterances]
        samples, words = rows["samples"].astype(np.int64), rows["words"].astype(np.int64)
        is_text = interleave.draw_many(words, rng, self.interleave)
        speech = self.speech_tokens(rows, samples, words, is_text)
        owner, places, branches = self.draw_branches(rows, rng)
        # The last answer token is predicted, never read: it takes no slot.
        lengths = branches["prompt_tokens"].astype(np.int64) + branches["answer_tokens"] - 1
        prefix = np.full(len(rows), len(self.index.prefix_ids), np.int64)
        if self.index.prompt_first:  # the speech comes after each prompt anew
            lengths += branches["lead_tokens"] + speech[owner]
        else:
            prefix += speech
        drawn = np.bincount(owner, minlength=len(rows))
        first = interleave.starts_of(drawn)
        before = interleave.starts_of(lengths)
        ends = prefix[owner] + before + lengths - before[first[owner]]
        fits = ends <= self.config.row_tokens
        fitting = np.bincount(owner[fits], minlength=len(rows))
        too_long = samples > self.max_samples
        self.left_out.unanswered += int((drawn == 0).sum())
        self.left_out.too_long += int((too_long & (drawn > 0)).sum())
        self.left_out.too_big += int((~too_long & (drawn > 0) & (fitting == 0)).sum())
        taken = np.flatnonzero(~too_long & (fitting > 0))
        last = first[taken] + fitting[taken]
        answers = branches["answer_tokens"].astype(np.int64)
        targets = np.concatenate([[0], np.cumsum(answers)])
        weights = np.concatenate([[0.0], np.cumsum(answers * self.task_weights[branches["task"]])])
        numbers = zip(
            utterances[taken].tolist(), first[taken].tolist(), last.tolist(), ends[last - 1].tolist(),
            samples[taken].tolist(), (targets[last] - targets[first[taken]]).tolist(),
            np.round(weights[last] - weights[first[taken]], 9).tolist(), strict=True,
        )  # fmt: skip
        mixed = np.logical_or.reduceat(np.append(is_text, False), interleave.starts_of(words)) & (words > 0)
        starts, stops = interleave.starts_of(words), np.where(mixed, np.cumsum(words), interleave.starts_of(words))
        spans = zip(starts[taken].tolist(), stops[taken].tolist(), strict=True)
        chosen, text = places.tolist(), is_text.tobytes()
        return [
            Group(utterance, tuple(chosen[start:stop]), text[first_word:last_word], *sizes)
            for (utterance, start, stop, *sizes), (first_word, last_word) in zip(numbers, spans, strict=True)
        ]

    def draw_branches(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each utterance up to `tasks_per_utterance` of its dialogues in random order.

        Returns three arrays of one entry a dialogue: the utterance's place in `rows`, the dialogue's place in the
        utterance's list, and its entry in the index.
        """
        counts = rows["branches"].astype(np.int64)
        owner = np.repeat(np.arange(len(rows)), counts)
        places = np.arange(len(owner)) - interleave.starts_of(counts)[owner]
        branches = self.index.branches[rows["first_branch"].astype(np.int64)[owner] + places]
        order = np.lexsort((rng.random(len(owner)), owner))
        if self._chosen_tasks is not None:
            order = order[self._chosen_tasks[branches["task"][order]]]
        owner = owner[order]
        rank = np.arange(len(owner)) - interleave.starts_of(np.bincount(owner, minlength=len(rows)))[owner]
        kept = rank < (self.config.tasks_per_utterance or len(owner))
        return owner[kept], places[order][kept], branches[order][kept]

    def speech_tokens(self, rows: np.ndarray, samples: np.ndarray, words: np.ndarray, is_text: np.ndarray) -> np.ndarray:
        """LLM positions of each utterance's speech: adapter frames, and text tokens where it is interleaved.

        `rows` are the utterances' entries in the index, `is_text` `(sum of words,)` their words one after another.
        """
        frames = np.asarray(self.geometry.frames(samples), np.int64)
        first = interleave.starts_of(words)
        owner = np.repeat(np.arange(len(rows)), words)
        if not is_text.any():
            return frames
        table = self.index.words[rows["first_word"].astype(np.int64)[owner] + np.arange(len(owner)) - first[owner]]
        # Segments: neighbouring words of an utterance that are given in the same way.
        opens = np.ones(len(owner), bool)
        opens[1:] = (owner[1:] != owner[:-1]) | (is_text[1:] != is_text[:-1])
        start = np.flatnonzero(opens)
        stop = np.append(start[1:], len(owner))
        whose = owner[start]
        closes = stop == (first + words)[whose]  # the last segment of its utterance
        length = samples[whose]
        starts = table["start"].astype(np.int64)
        begin = np.minimum(np.where(start == first[whose], 0, starts[start]), length)
        following = starts[np.minimum(stop, len(starts) - 1)]
        end = np.where(closes, length, np.minimum(np.maximum(begin, following), length))
        if self.interleave.cut == "slice":
            spacing, most = self.geometry.samples_per_frame, frames[whose]
            from_frame = np.minimum(most, np.round(begin / spacing).astype(np.int64))
            to_frame = np.maximum(from_frame, np.minimum(most, np.round(end / spacing).astype(np.int64)))
            sound = np.where(closes, most, to_frame) - from_frame
        else:
            sound = np.where(end > begin, self.geometry.frames(np.maximum(end - begin, 1)), 0)
        text = np.add.reduceat(table["tokens"].astype(np.int64), start)
        total = np.bincount(whose, np.where(is_text[start], text, sound), minlength=len(rows)).astype(np.int64)
        mixed = np.bincount(owner, is_text, minlength=len(rows)) > 0
        return np.where(mixed, total, frames)

    def window_rows(self, epoch: int, window: int) -> list[Row]:
        """The packed rows of a window, shuffled."""
        rng = np.random.default_rng([self.seed, epoch, window])
        ends = np.cumsum(self.index.shard_sizes)
        shards = self.windows(epoch)[window]
        utterances = np.concatenate([np.arange(ends[shard] - self.index.shard_sizes[shard], ends[shard]) for shard in shards])
        if self._taken is not None:
            utterances = utterances[self._taken[utterances]]
        passes = self.config.passes_per_epoch or max(1, self.config.window_samples // len(utterances))
        groups = self.draw_groups(np.concatenate([rng.permutation(utterances) for _ in range(passes)]), rng)
        sizes = np.array([group.tokens for group in groups], int)
        if self.config.utterances_per_row:
            packed = next_fit(sizes, self.config.row_tokens, self.config.utterances_per_row)
        else:
            packed = best_fit(sizes, self.config.row_tokens)
        return [Row(tuple(groups[item] for item in packed[row])) for row in rng.permutation(len(packed))]

    def window_steps(self, epoch: int, window: int, window_step: int) -> Iterator[Step]:
        """The steps of a window, the first of which has the number `window_step` in its epoch."""
        rows = self.window_rows(epoch, window)
        size = self.config.rows_per_step
        for start in range(0, len(rows), size):
            # Most speech first: rows that processes work on at the same time cost about the same (docs/speed.md).
            mine = sorted(rows[start : start + size], key=lambda row: -sum(group.samples for group in row.groups))
            step = window_step + start // size
            if start + size < len(rows):
                following = Position(epoch, step + 1, window, window_step)
            elif window + 1 < len(self.windows(epoch)):
                following = Position(epoch, step + 1, window + 1, step + 1)
            else:
                following = Position(epoch + 1)
            groups = [group for row in mine for group in row.groups]
            tokens = sum(group.tokens for group in groups)
            yield Step(
                Position(epoch, step, window, window_step),
                following,
                mine,
                weight_total=sum(group.weight for group in groups),
                target_tokens=sum(group.targets for group in groups),
                tokens=tokens,
                audio_seconds=sum(group.samples for group in groups) / SAMPLE_RATE,
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
