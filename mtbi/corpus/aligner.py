"""The interface of an aligner: recordings with known words to the time of each word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

#: (start, end) in seconds of each unit of a transcript.
Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Clip:
    """A recording and what is said in it."""

    wave: np.ndarray  #: (samples,) float32 at 16 kHz
    units: list[str]  #: the transcript's units (`mtbi.text_units`), in NFC
    language: str = ""  #: a code such as "en" or "pt-BR"; empty = unknown


@dataclass(frozen=True)
class Alignment:
    """The times of a clip's units, or the reason why there are none."""

    spans: Spans | None
    reason: str = ""  #: why `spans` is None, in words that fit after "no word times: "
    score: float | None = None  #: mean log-probability of the transcript's tokens, where the aligner has one


class Aligner(Protocol):
    """Finds when each word of a recording is spoken."""

    def align(self, clips: Sequence[Clip], /) -> list[Alignment]:
        """The alignment of each clip, in the given order. A clip's alignment does not depend on the other clips."""
        ...

    def transcribe(self, waveform: np.ndarray, /) -> str:
        """The words of a recording `(samples,)` at 16 kHz, where no transcript is given."""
        ...
