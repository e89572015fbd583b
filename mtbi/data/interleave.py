"""Speech-text interleaving: some spans of an utterance are given to the speech LLM as text tokens instead of sound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mtbi.errors import UserError
from mtbi.recipe import InterleaveConfig


@dataclass(frozen=True)
class Segment:
    """Neighbouring words given in the same way. The segments of an utterance tile its words."""

    first: int  #: first word
    stop: int  #: one past the last word
    is_text: bool


def check(config: InterleaveConfig) -> None:
    """Raises UserError for a minimum above its maximum (the values themselves are checked when the recipe is read)."""
    for low, high in (("text_share_min", "text_share_max"), ("span_words_min", "span_words_max")):
        if getattr(config, low) > getattr(config, high):
            raise UserError(f"interleave: {low} ({getattr(config, low)}) is above {high} ({getattr(config, high)})")


def draw(words: int, rng: np.random.Generator, config: InterleaveConfig) -> tuple[Segment, ...] | None:
    """Which of `words` words become text; None where the utterance stays sound.

    The share of text is drawn for the utterance, the length of each span and whether it is text after that. At least
    one span stays sound.
    """
    if rng.random() >= config.share or words == 0:
        return None
    text_share = rng.uniform(config.text_share_min, config.text_share_max)
    starts = [0]
    while starts[-1] < words:
        starts.append(min(words, starts[-1] + int(rng.integers(config.span_words_min, config.span_words_max + 1))))
    spans = len(starts) - 1
    is_text = rng.random(spans) < text_share
    if is_text.all():
        is_text[rng.integers(spans)] = False
    segments: list[Segment] = []
    for first, stop, text in zip(starts[:-1], starts[1:], is_text.tolist(), strict=True):
        if segments and segments[-1].is_text == text:
            segments[-1] = Segment(segments[-1].first, stop, text)
        else:
            segments.append(Segment(first, stop, text))
    return tuple(segments) if any(segment.is_text for segment in segments) else None


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
