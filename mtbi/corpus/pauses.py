"""Pauses between words, by the loudness of the sound."""

from __future__ import annotations

import numpy as np

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.corpus.aligner import Spans

FRAME_SECONDS = 0.02
FRAME_SAMPLES = int(SAMPLE_RATE * FRAME_SECONDS)
QUIET, LOUD = 5, 95  #: percentiles of a recording's loudness in decibels: its background and its speech
SPOKEN = 0.4  #: how far between the two a frame's loudness must be to count as speech


def trim(spans: Spans, wave: np.ndarray) -> Spans:
    """The spans of words without the silence at their starts and ends, to within 20 ms.

    A span without any loud frame is kept. `wave` is `(samples,)` at 16 kHz.
    """
    loud = loud_frames(wave)
    return [_trimmed(start, end, loud) for start, end in spans]


def loud_frames(wave: np.ndarray) -> np.ndarray:
    """Which frames of 20 ms are loud enough for speech, `(frames,)`. The threshold follows the recording."""
    frames = np.pad(wave, (0, -len(wave) % FRAME_SAMPLES)).reshape(-1, FRAME_SAMPLES)
    decibels = 10 * np.log10(np.square(frames).mean(1) + 1e-10)
    quiet, loud = np.percentile(decibels, [QUIET, LOUD])
    return decibels > quiet + SPOKEN * (loud - quiet)


def _trimmed(start: float, end: float, loud: np.ndarray) -> tuple[float, float]:
    """A span from its first to its last loud frame."""
    first = round(start / FRAME_SECONDS)
    inside = np.flatnonzero(loud[first : max(first + 1, round(end / FRAME_SECONDS))])
    if not len(inside):
        return start, end
    return max(start, (first + int(inside[0])) * FRAME_SECONDS), min(end, (first + int(inside[-1]) + 1) * FRAME_SECONDS)
