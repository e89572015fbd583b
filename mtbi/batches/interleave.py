"""Speech-text interleaving: the speech LLM gets some spans of an utterance as text tokens instead of sound."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mtbi.errors import UserError
from mtbi.recipe import InterleaveConfig


@dataclass(frozen=True)
class Segment:
    """Neighbouring words that are all text or all sound. The segments of an utterance tile its words."""

    first: int  #: first word
    stop: int  #: one past the last word
    is_text: bool


def check(config: InterleaveConfig, follows_time: bool) -> None:
    """Raises UserError for a minimum above its maximum (the values themselves are checked when the recipe is read).

    Also for `slice` where the LLM positions of a clip do not follow its time.
    """
    if config.share and config.cut == "slice" and not follows_time:
        raise UserError(
            "interleave.cut=slice takes the LLM positions of each span, but those of this model.adapter.kind stand for a whole "
            "clip. Set interleave.cut=encode, which encodes each span alone and needs shards with audio, or interleave.share=0."
        )
    for low, high in (("text_share_min", "text_share_max"), ("span_words_min", "span_words_max")):
        if getattr(config, low) > getattr(config, high):
            raise UserError(f"interleave: {low} ({getattr(config, low)}) is above {high} ({getattr(config, high)})")


@dataclass(frozen=True)
class Coverage:
    """How many utterances can be interleaved. They need two aligned words, because one span stays sound."""

    utterances: int
    unaligned: int  #: without word times
    single: int  #: of one word; in scripts without spaces, of one character or token

    @classmethod
    def of(cls, words: np.ndarray) -> Coverage:
        """The coverage of utterances with sound, from the number of aligned words of each, `(utterances,)`."""
        return cls(len(words), int((words == 0).sum()), int((words == 1).sum()))

    @property
    def possible(self) -> int:
        """Utterances that can be interleaved."""
        return self.utterances - self.unaligned - self.single

    def __str__(self) -> str:
        total = max(self.utterances, 1)
        return (
            f"{self.possible / total:.1%} of the utterances can be interleaved, "
            f"{self.unaligned / total:.1%} have no word times, {self.single / total:.1%} one word only"
        )


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Where each of several neighbouring stretches begins, from their lengths: the sum of the lengths before it."""
    return np.cumsum(counts) - counts


def draw_many(words: np.ndarray, rng: np.random.Generator, config: InterleaveConfig) -> np.ndarray:
    """Which words of many utterances become text: `(utterances,)` counts to `(sum of words,)` booleans.

    A share of the utterances is interleaved. For each of them we draw its share of text, then the length of each span, then
    whether that span becomes text. At least one span stays sound.
    """
    total, starts = int(words.sum()), starts_of(words)
    owner = np.repeat(np.arange(len(words)), words)
    mixed = rng.random(len(words)) < config.share
    text_share = rng.uniform(config.text_share_min, config.text_share_max, len(words))
    # As many spans are drawn as there are words. Those that would begin after the last word are not used.
    lengths = rng.integers(config.span_words_min, config.span_words_max + 1, total)
    before = starts_of(lengths)
    begins = before - before[starts[owner]] if total else before
    used = begins < words[owner]
    is_text = rng.random(total) < text_share[owner]
    spans = np.bincount(owner[used], minlength=len(words))
    all_text = np.bincount(owner[used & is_text], minlength=len(words)) == spans
    kept_as_sound = np.floor(rng.random(len(words)) * spans).astype(int)
    local = np.arange(total) - starts[owner]
    is_text[all_text[owner] & (local == kept_as_sound[owner])] = False
    # From spans to words: a word is in the last span that begins at or before it.
    first_words = np.zeros(total, int)
    first_words[(starts[owner] + begins)[used]] = 1
    return is_text[used][np.cumsum(first_words) - 1] & mixed[owner]


def segments_of(is_text: np.ndarray) -> tuple[Segment, ...] | None:
    """The segments of one utterance's words; None where all is sound."""
    if not is_text.any():
        return None
    edges = [0, *(np.flatnonzero(is_text[1:] != is_text[:-1]) + 1).tolist(), len(is_text)]
    return tuple(Segment(first, stop, bool(is_text[first])) for first, stop in pairwise(edges))


def draw(words: int, rng: np.random.Generator, config: InterleaveConfig) -> tuple[Segment, ...] | None:
    """The segments of one utterance of so many words; None where it stays sound."""
    return segments_of(draw_many(np.array([words]), rng, config))


def sound_bounds(segment: Segment, starts: np.ndarray, samples: int) -> tuple[int, int]:
    """First sample and one past the last of a segment; `starts` `(words,)` are the words' first samples.

    A word lasts until the next one begins; the first one takes the silence before it and the last one the silence after it.
    """
    begin = 0 if segment.first == 0 else int(starts[segment.first])
    end = samples if segment.stop == len(starts) else int(starts[segment.stop])
    return min(begin, samples), min(max(begin, end), samples)


def sliced_frames(segment: Segment, starts: np.ndarray, samples: int, frames: int, samples_per_frame: float) -> tuple[int, int]:
    """First adapter frame and one past the last of a segment, rounded to frames; the segments' frames tile the utterance."""
    begin, end = sound_bounds(segment, starts, samples)
    first = min(frames, round(begin / samples_per_frame))
    return first, frames if segment.stop == len(starts) else max(first, min(frames, round(end / samples_per_frame)))
