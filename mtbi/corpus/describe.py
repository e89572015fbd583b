"""Measured properties of each utterance: pitch, pace, level and noise (`mtbi data describe`).

The fields stand in the manifest, where `behaviour.reads` can name them. So the text LLM knows them, and the speech LLM learns
to hear them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from tqdm import tqdm

from mtbi import text_units
from mtbi.audio import codec
from mtbi.corpus import recordings
from mtbi.corpus.manifest import Utterance

FIELDS = ("pitch_hz", "words_per_s", "level_db", "snr_db")
CHUNK_UTTERANCES = 128  #: read and measured together
HOP = codec.SAMPLE_RATE // 100  #: between two frames
ENERGY_WINDOW = codec.SAMPLE_RATE // 40
ACTIVE_DB = (
    25.0  #: a frame of speech is at most this far below the loudest 5% of the frames, and nearer to them than to the noise
)
QUIET_SHARE = 0.1  #: of all frames, the quietest are the noise
PITCH_WINDOW = codec.SAMPLE_RATE // 25
SHORTEST_PERIOD, LONGEST_PERIOD = codec.SAMPLE_RATE // 400, codec.SAMPLE_RATE // 60  #: samples, at 400 and 60 Hz
VOICED = 0.6  #: the least correlation of a voiced frame with the next period
SAME_PERIOD = 0.9  #: of the highest correlation: among the peaks above it the shortest period is taken
FEWEST_VOICED = 5  #: frames, for a pitch
PITCH_FRAMES = 1024  #: computed together
SILENT = 1e-12  #: power of digital silence


def describe(utterances: Iterable[Utterance], folder: Path) -> Iterator[Utterance]:
    """Each utterance with its measured `FIELDS`, in the given order. Relative audio paths start from `folder`.

    A field that cannot be measured is left out. Text without sound, and recordings that cannot be read (logged), get none.
    """
    with tqdm(utterances, desc="describe", unit="utterance", disable=None) as bar, ThreadPoolExecutor() as pool:
        remaining = iter(bar)
        while chunk := list(islice(remaining, CHUNK_UTTERANCES)):
            yield from pool.map(lambda utterance: _described(utterance, folder), chunk)


def _described(utterance: Utterance, folder: Path) -> Utterance:
    kept = {name: value for name, value in utterance.extra.items() if name not in FIELDS}
    if not utterance.audio or (wave := recordings.read_or_warn(utterance, folder)) is None:
        return replace(utterance, extra=kept)
    return replace(utterance, extra=kept | measure(wave, text_units.count(utterance.text)))


def measure(wave: np.ndarray, words: int) -> dict[str, float]:
    """The `FIELDS` of a waveform `(samples,)` at 16 kHz in which `words` units are said.

    - `pitch_hz`: the median fundamental frequency of the voiced frames.
    - `words_per_s`: words per second, from the first frame of speech to the last.
    - `level_db`: the mean power of the frames of speech, in dB relative to a square wave at full scale.
    - `snr_db`: that level less the level of the quietest tenth of all frames, which needs a pause or silence at the ends.
    """
    levels = frame_levels(wave)
    if levels.max() <= 10 * np.log10(SILENT) + 1:
        return {}
    noise = mean_level(np.sort(levels)[: max(1, int(QUIET_SHARE * len(levels)))])
    loud = np.percentile(levels, 95)
    speech = levels >= max(loud - ACTIVE_DB, (loud + noise) / 2)
    active, level = np.flatnonzero(speech), mean_level(levels[speech])
    seconds = (active[-1] - active[0] + 1) * HOP / codec.SAMPLE_RATE
    measured = {"words_per_s": words / seconds, "level_db": level, "snr_db": level - noise}
    pitch, correlation = pitches(wave)
    voiced = speech & (correlation > VOICED)
    if voiced.sum() >= FEWEST_VOICED:
        measured["pitch_hz"] = float(np.median(pitch[voiced]))
    return {name: round(measured[name], 1) for name in FIELDS if name in measured}


def frame_levels(wave: np.ndarray) -> np.ndarray:
    """The level of each frame in dB, `(frames,)`; at least one frame."""
    frames = sliding_window_view(np.pad(wave, (0, max(0, ENERGY_WINDOW - len(wave)))), ENERGY_WINDOW)[::HOP]
    return 10 * np.log10(np.square(frames, dtype=np.float64).mean(1) + SILENT)


def mean_level(levels: np.ndarray) -> float:
    """The level of the mean power."""
    return float(10 * np.log10(np.mean(10 ** (levels / 10))))


def pitches(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fundamental frequency in Hz and the correlation with the next period, both `(frames,)` as `frame_levels`.

    Normalised cross-correlation of a window with the signal a period later (RAPT, Talkin 1995), without the search for the best
    path through the frames: the median over an utterance does not need it.
    """
    window = PITCH_WINDOW + LONGEST_PERIOD
    frames = sliding_window_view(np.pad(wave, (0, window)), window)[::HOP][: len(frame_levels(wave))]
    found = [_best_periods(frames[start : start + PITCH_FRAMES]) for start in range(0, len(frames), PITCH_FRAMES)]
    periods, correlations = (np.concatenate(column) for column in zip(*found, strict=True))
    return codec.SAMPLE_RATE / periods, correlations


def _best_periods(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The period in samples and its correlation, `(frames,)`, of windows with the longest period after them."""
    frames = frames.astype(np.float64) - frames.mean(1, keepdims=True)
    size = 2 * frames.shape[1]
    spectrum = np.fft.rfft(frames[:, :PITCH_WINDOW], size).conj() * np.fft.rfft(frames, size)
    products = np.fft.irfft(spectrum, size)[:, : LONGEST_PERIOD + 1]
    sums = np.cumsum(np.pad(np.square(frames), ((0, 0), (1, 0))), axis=1)
    energies = sums[:, PITCH_WINDOW:] - sums[:, : LONGEST_PERIOD + 1]
    correlations = products / np.sqrt(energies[:, :1] * energies + SILENT)
    correlations[:, :SHORTEST_PERIOD] = 0
    best = correlations.max(1)
    periods = np.argmax(correlations >= SAME_PERIOD * best[:, None], axis=1)
    return np.maximum(periods, SHORTEST_PERIOD), best
