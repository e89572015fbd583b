"""Which utterances of a manifest are fit for use: each recording is decoded once, and each unfit utterance gets a reason."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.contrib.concurrent import thread_map

from mtbi import text_units
from mtbi.corpus import recordings, records, text_style
from mtbi.corpus.manifest import Rejected, Utterance
from mtbi.errors import UnavailableError, UserError

CHECK_THREADS = min(8, os.cpu_count() or 1)  # decoding releases the interpreter lock


@dataclass(frozen=True)
class RecordingLimits:
    """The recordings and transcripts that `check` accepts.

    FSDD's shortest digit lasts 0.14 s. LibriSpeech's longest utterance lasts 35 s.
    """

    min_duration_seconds: float = 0.1
    max_duration_seconds: float = 60.0
    min_sample_rate_hz: int = 8000  #: telephone speech
    max_channels: int = 2  #: two are mixed down; more are an array of microphones, or one speaker a channel
    min_peak_dbfs: float = -60.0  #: of the mix; a recording below it is silence. `-inf` keeps silence
    #: About 3 minutes of speech: a longer transcript belongs to another recording. Characters in scripts without spaces.
    max_words: int = 500


def check(
    utterances: Iterable[Utterance], folder: Path | str, limits: RecordingLimits | None = None
) -> tuple[list[Utterance], list[Rejected]]:
    """Decode each recording once. Returns the utterances that can be used and the rejected ones, both in the given order.

    Relative audio paths start from `folder`. The returned utterances have the measured `duration_s` and `sample_rate`.
    """
    limits, folder = limits or RecordingLimits(), Path(folder)

    def measure(utterance: Utterance) -> Utterance | Rejected:
        try:
            return _measure(utterance, folder, limits)
        except UnavailableError:  # of the object store: no recording is at fault
            raise
        except UserError as error:
            return Rejected(id=utterance.id, audio=utterance.audio, reason=str(error))

    results = thread_map(measure, list(utterances), max_workers=CHECK_THREADS, desc="check", unit="utterance", disable=None)
    return [r for r in results if isinstance(r, Utterance)], [r for r in results if not isinstance(r, Utterance)]


def _measure(utterance: Utterance, folder: Path, limits: RecordingLimits) -> Utterance:
    """The utterance with its measured duration and rate. Raises UserError with the reason if it is unfit."""
    records.refuse_characters(utterance.to_json())
    words = text_units.count(utterance.text)
    if not re.search(r"\w", utterance.text):
        keys = f"; other keys of the record: {', '.join(utterance.extra)}" if utterance.extra and not utterance.text else ""
        raise UserError(f"no transcript: the text is empty or has no word{keys}")
    if not re.search(r"\w", text_style.TAG.sub(" ", utterance.text)):
        raise UserError("no transcript: the text has only tags, such as [noise]")
    if words > limits.max_words:
        raise UserError(f"transcript too long: {words} words, more than {limits.max_words}")
    if not utterance.audio:
        return utterance
    samples, rate_hz = recordings.load(utterance, folder, limits.max_duration_seconds)
    duration = len(samples) / rate_hz
    if duration < limits.min_duration_seconds:
        raise UserError(f"too short: {duration:.3f} s, less than {limits.min_duration_seconds:g} s")
    if rate_hz < limits.min_sample_rate_hz:
        raise UserError(f"sampling rate too low: {rate_hz} Hz, less than {limits.min_sample_rate_hz} Hz")
    if samples.shape[1] > limits.max_channels:
        raise UserError(f"too many channels: {samples.shape[1]}, more than {limits.max_channels}")
    if samples.shape[1] > 1 and "channel" in utterance.extra:
        raise UserError(f"channel given: one of {samples.shape[1]} channels cannot be chosen; write the channels as files")
    recordings.refuse_other_duration(utterance, duration)
    records.refuse_times(utterance.words or [], duration)
    peak = float(np.abs(samples.mean(axis=1)).max())
    level = 20 * math.log10(peak) if peak else -math.inf
    if level < limits.min_peak_dbfs:
        raise UserError(f"silence: the peak is {level:.0f} dBFS, under {limits.min_peak_dbfs:g} dBFS")
    return replace(utterance, duration_s=round(duration, 4 if utterance.start_s is None else 6), sample_rate=rate_hz)
