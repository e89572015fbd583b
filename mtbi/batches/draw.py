"""Drawing for many utterances at once: which dialogues are asked about each, and which of its words are given as text.

Everything here is numpy arrays over a whole window, because a window has thousands of utterances. Arrays over utterances,
dialogues, words or spans are flat: all items of the first utterance, then all of the second. `owner` names the utterance of
each item, as an index into the utterances that are drawn for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from mtbi.batches import interleave
from mtbi.batches.interleave import Segment, starts_of
from mtbi.recipe import InterleaveConfig, PlanConfig
from mtbi.shards.index import Index, around_tokens


class Geometry(Protocol):
    """How many LLM positions a stretch of sound takes."""

    @property
    def max_samples(self) -> int | None:
        """Longest clip that the encoder takes; None = any."""
        ...

    @property
    def follows_time(self) -> bool:
        """Whether adapter frames stand for stretches of a clip. If not, each clip has the same number of them."""
        ...

    @property
    def samples_per_frame(self) -> float:
        """Distance between two adapter frames, where they follow time."""
        ...

    @property
    def samples_per_encoder_frame(self) -> float:
        """Distance between two encoder frames."""
        ...

    def encoder_frames(self, samples: Any) -> Any:
        """Encoder frames of that many samples."""
        ...

    def frames(self, samples: Any) -> Any:
        """Adapter frames of that many samples."""
        ...


@dataclass(frozen=True)
class Group:
    """One utterance with the dialogues about it that share its prefix."""

    utterance: int
    branches: tuple[int, ...]  #: indexes into the utterance's list of stored dialogues
    text_words: bytes  #: for each word 1 where it is given as text, else 0; empty = all sound
    tokens: int  #: LLM positions taken
    samples: int  #: of the utterance
    targets: int  #: answer tokens
    weight: float  #: sum of the weights of the answer tokens
    occurrence: int = 0  #: how often the epoch has given this utterance before
    epoch: int = 0

    @property
    def segments(self) -> tuple[Segment, ...] | None:
        """The utterance's words in stretches of sound and text; None = all sound."""
        return interleave.segments_of(np.frombuffer(self.text_words, bool)) if self.text_words else None


@dataclass
class LeftOut:
    """Utterances of an epoch that are in no row, by reason."""

    too_long: int = 0  #: longer than `plan.max_audio_seconds` or than the encoder takes
    too_big: int = 0  #: more than a row's tokens even with one task
    unanswered: int = 0  #: without a stored dialogue

    def add(self, other: LeftOut) -> None:
        """Count those of another window too."""
        self.too_long += other.too_long
        self.too_big += other.too_big
        self.unanswered += other.unanswered


@dataclass(frozen=True)
class Dialogues:
    """Dialogues drawn for several utterances, flat; those of one utterance are in random order."""

    owner: np.ndarray  #: (dialogues,) the utterance
    number: np.ndarray  #: (dialogues,) index into the utterance's list of stored dialogues
    entries: np.ndarray  #: (dialogues,) BRANCH entries of the index


@dataclass(frozen=True)
class Spans:
    """Neighbouring words of an utterance that are given in the same way, all as text or all as sound."""

    owner: np.ndarray  #: (spans,) the utterance
    first: np.ndarray  #: (spans,) first word
    is_text: np.ndarray  #: (spans,) bool
    is_last: np.ndarray  #: (spans,) bool, the last span of its utterance
    begin: np.ndarray  #: (spans,) first sample
    end: np.ndarray  #: (spans,) one past the last sample


def word_entries(index: Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For UTTERANCE entries `rows`: the owner of each word, and its WORD entry, both `(words,)`."""
    counts = rows["words"].astype(np.int64)
    owner = np.repeat(np.arange(len(rows)), counts)
    number = np.arange(len(owner)) - starts_of(counts)[owner]
    return owner, index.words[rows["first_word"].astype(np.int64)[owner] + number]


def branch_entries(index: Index, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For UTTERANCE entries `rows`: owner, number and BRANCH entry of each stored dialogue, all `(dialogues,)`."""
    counts = rows["branches"].astype(np.int64)
    owner = np.repeat(np.arange(len(rows)), counts)
    number = np.arange(len(owner)) - starts_of(counts)[owner]
    return owner, number, index.branches[rows["first_branch"].astype(np.int64)[owner] + number]


def dialogue_tokens(index: Index, entries: np.ndarray) -> np.ndarray:
    """LLM positions `(dialogues,)` of each dialogue without prefix and speech.

    The last answer token is predicted and never an input, so it takes no position.
    """
    tokens = entries["prompt_tokens"].astype(np.int64) + entries["answer_tokens"] - 1
    return tokens + entries["lead_tokens"] if index.prompt_first else tokens


@dataclass
class GroupDrawer:
    """Draws groups from an index, by the settings of a plan."""

    index: Index
    config: PlanConfig
    interleave: InterleaveConfig
    geometry: Geometry
    task_weights: np.ndarray  #: (tasks,) weight of each answer token
    chosen_tasks: np.ndarray | None  #: (tasks,) bool; None = all
    max_samples: float  #: longer utterances are left out

    def draw(self, utterances: np.ndarray, rng: np.random.Generator, epoch: int) -> tuple[list[Group], LeftOut]:
        """A group for each of `utterances` `(utterances,)`, except those that fit no row, which are counted.

        All occurrences of an utterance in an epoch are drawn together.
        """
        rows = self.index.utterances[utterances]
        is_text = interleave.draw_many(rows["words"].astype(np.int64), rng, self.interleave)
        is_text |= np.repeat(rows["samples"] == 0, rows["words"])  # an utterance without sound is all text
        speech = self.speech_tokens(rows, is_text)
        dialogues = self.draw_dialogues(rows, rng)
        owner, drawn = dialogues.owner, np.bincount(dialogues.owner, minlength=len(rows))
        ends = self.group_tokens(dialogues, drawn, speech)
        # Dialogues are taken in their drawn order, as long as the group fits into a row.
        fitting = np.bincount(owner[ends <= self.config.row_tokens], minlength=len(rows))
        too_long, answered = rows["samples"] > self.max_samples, drawn > 0
        left_out = LeftOut(
            too_long=int((too_long & answered).sum()),
            too_big=int((~too_long & answered & (fitting == 0)).sum()),
            unanswered=int((~answered).sum()),
        )
        taken = np.flatnonzero(~too_long & (fitting > 0))
        first = starts_of(drawn)[taken]
        stop = first + fitting[taken]
        return self.make_groups(utterances, rows, is_text, dialogues, ends, taken, first, stop, epoch), left_out

    def draw_dialogues(self, rows: np.ndarray, rng: np.random.Generator) -> Dialogues:
        """For each utterance, up to `tasks_per_utterance` of its dialogues in random order."""
        owner, number, entries = branch_entries(self.index, rows)
        order = np.lexsort((rng.random(len(owner)), owner))
        if self.chosen_tasks is not None:
            order = order[self.chosen_tasks[entries["task"][order]]]
        owner = owner[order]
        rank = np.arange(len(owner)) - starts_of(np.bincount(owner, minlength=len(rows)))[owner]
        kept = rank < (self.config.tasks_per_utterance or len(owner))
        return Dialogues(owner[kept], number[order][kept], entries[order][kept])

    def group_tokens(self, dialogues: Dialogues, drawn: np.ndarray, speech: np.ndarray) -> np.ndarray:
        """LLM positions `(dialogues,)` of a group that ends with this dialogue: the prefix and its dialogues so far.

        `drawn` and `speech`, both `(utterances,)`, are the dialogues of each utterance and the positions of its speech.
        """
        owner, lengths = dialogues.owner, dialogue_tokens(self.index, dialogues.entries)
        prefix = np.full(len(drawn), len(self.index.prefix_ids), np.int64)
        if self.index.prompt_first:
            lengths += speech[owner]  # each prompt has the speech after it
        else:
            prefix += speech
        before = starts_of(lengths)
        return prefix[owner] + before + lengths - before[starts_of(drawn)[owner]]

    def make_groups(
        self,
        utterances: np.ndarray,
        rows: np.ndarray,
        is_text: np.ndarray,
        dialogues: Dialogues,
        ends: np.ndarray,
        taken: np.ndarray,
        first: np.ndarray,
        stop: np.ndarray,
        epoch: int,
    ) -> list[Group]:
        """The groups of the utterances `taken`, whose dialogues are those from `first` to `stop`, all `(groups,)`."""
        answers = dialogues.entries["answer_tokens"].astype(np.int64)
        targets = np.concatenate([[0], np.cumsum(answers)])
        weights = np.concatenate([[0.0], np.cumsum(answers * self.task_weights[dialogues.entries["task"]])])
        words = rows["words"].astype(np.int64)
        first_word = starts_of(words)
        has_text = np.bincount(np.repeat(np.arange(len(rows)), words), is_text, minlength=len(rows)) > 0
        stop_word = np.where(has_text, first_word + words, first_word)  # where all is sound, no word is listed
        columns = (
            utterances[taken],
            first,
            stop,
            first_word[taken],
            stop_word[taken],
            ends[stop - 1],
            rows["samples"][taken],
            targets[stop] - targets[first],
            np.round(weights[stop] - weights[first], 9),
            occurrences(utterances)[taken],
            np.full(len(taken), epoch),
        )
        numbers, text = dialogues.number.tolist(), is_text.tobytes()
        return [
            Group(utterance, tuple(numbers[begin:end]), text[begin_word:end_word], *sizes)
            for utterance, begin, end, begin_word, end_word, *sizes in zip(*(c.tolist() for c in columns), strict=True)
        ]

    def speech_tokens(self, rows: np.ndarray, is_text: np.ndarray) -> np.ndarray:
        """LLM positions `(utterances,)` of each utterance: adapter frames, text tokens where it is interleaved, text around it.

        `rows` are UTTERANCE entries `(utterances,)`; `is_text` `(words,)` says which of their words are text.
        """
        frames, around = np.asarray(self.geometry.frames(rows["samples"].astype(np.int64)), np.int64), around_tokens(rows)
        if not is_text.any():
            return frames + around
        owner, entries = word_entries(self.index, rows)
        spans = find_spans(rows, owner, entries, is_text)
        text = np.add.reduceat(entries["tokens"].astype(np.int64), spans.first)
        tokens = np.where(spans.is_text, text, self.span_frames(spans, frames))
        interleaved = np.bincount(spans.owner, tokens, minlength=len(rows)).astype(np.int64)
        has_text = np.bincount(owner, is_text, minlength=len(rows)) > 0
        return np.where(has_text, interleaved, frames) + around

    def span_frames(self, spans: Spans, frames: np.ndarray) -> np.ndarray:
        """Adapter frames `(spans,)` of each span as sound. `frames` `(utterances,)` are those of whole utterances."""
        if self.interleave.cut == "encode":
            samples = spans.end - spans.begin
            return np.where(samples > 0, self.geometry.frames(np.maximum(samples, 1)), 0)
        spacing, most = self.geometry.samples_per_frame, frames[spans.owner]
        first = np.minimum(most, np.round(spans.begin / spacing).astype(np.int64))
        stop = np.maximum(first, np.minimum(most, np.round(spans.end / spacing).astype(np.int64)))
        return np.where(spans.is_last, most, stop) - first


def occurrences(utterances: np.ndarray) -> np.ndarray:
    """`(utterances,)` how often each number has stood before, in an array of numbers `(utterances,)`."""
    order = np.argsort(utterances, kind="stable")
    ordered, before = utterances[order], np.empty(len(utterances), np.int64)
    before[order] = np.arange(len(order)) - np.searchsorted(ordered, ordered)
    return before


def find_spans(rows: np.ndarray, owner: np.ndarray, entries: np.ndarray, is_text: np.ndarray) -> Spans:
    """The spans of utterances, from the owner `(words,)`, the WORD entry and the drawn kind of each word.

    The samples of an utterance's spans tile it, as `interleave.sound_bounds` does for one span.
    """
    words, samples = rows["words"].astype(np.int64), rows["samples"].astype(np.int64)
    first_word = starts_of(words)
    opens = np.ones(len(owner), bool)
    opens[1:] = (owner[1:] != owner[:-1]) | (is_text[1:] != is_text[:-1])
    first = np.flatnonzero(opens)
    stop = np.append(first[1:], len(owner))
    own = owner[first]
    is_last = stop == (first_word + words)[own]
    length = samples[own]
    starts = entries["start"].astype(np.int64)
    begin = np.minimum(np.where(first == first_word[own], 0, starts[first]), length)
    next_start = starts[np.minimum(stop, len(starts) - 1)]
    end = np.where(is_last, length, np.minimum(np.maximum(begin, next_start), length))
    return Spans(own, first, is_text[first], is_last, begin, end)
