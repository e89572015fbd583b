"""Decode, resample and encode audio.

Resampling and downmix happen once, when shards are made (`mtbi data shard`). A manifest names the original files; a shard
holds 16 kHz mono. Inside the package a waveform is float32 `(samples,)` in [-1, 1] at `SAMPLE_RATE`.

Every UserError here starts with a short category and a colon ("truncated: …"), because summaries count these categories.
"""

from __future__ import annotations

import io
import math
import stat
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from mtbi.audio import decoding, ffmpeg, lengths, members, sound_files
from mtbi.audio.segments import AudioSegment
from mtbi.errors import UserError

SAMPLE_RATE = 16_000
#: Formats that `encode` writes. FLAC keeps 16 bits a sample without loss. Opus is several times smaller and lossy.
KINDS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
LARGEST_KERNEL = 2**20  # numbers in the table of resampling filters; common rates need under 2**19
ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # of torchaudio's filter
LARGEST_SAMPLE = 8.0  # float files may exceed 1.0 a little; far larger values are integers stored as floats


def load(
    source: str | Path | bytes, max_seconds: float = math.inf, segment: AudioSegment | None = None
) -> tuple[np.ndarray, int]:
    """Decode a file, or its bytes, unchanged: samples `(samples, channels)` float32 and the sampling rate in Hz.

    With a `segment`, only this part of the recording, without decoding what stands before it where the format can seek.
    The decoded data decide about the length, not the header (`mtbi.audio.lengths`). A file longer than `max_seconds` is refused
    at its header, or as soon as that much is decoded, so an hour of audio costs no memory. ffmpeg, where it is installed,
    decodes files that libsndfile cannot read. It does not decode bytes.
    Raises UserError for audio that cannot be opened or decoded, is empty, truncated or too long, or has samples that are not
    finite or far beyond 1, and for a segment outside the recording.
    """
    path = None if isinstance(source, bytes) else sound_files.locate(source)
    with io.BytesIO(source) if isinstance(source, bytes) else _open(Path(source) if path is None else path) as file:
        return load_open(file, path, max_seconds, segment)


def load_open(
    file: BinaryIO, path: Path | None = None, max_seconds: float = math.inf, segment: AudioSegment | None = None
) -> tuple[np.ndarray, int]:
    """As `load`, from a seekable file, which has a `path` if it is on a disk."""
    spare = path if path is None or members.span_of(path) or not members.is_member(path) else None  # that ffmpeg can read
    start, size = file.read(64), file.seek(0, io.SEEK_END)
    if size == 0:
        raise UserError("empty file: 0 bytes")
    try:
        samples, rate = decoding.decode(file, path, size, max_seconds, segment)
    except (RuntimeError, TypeError, ValueError) as error:  # libsndfile's errors are RuntimeErrors; TypeError: a .raw file
        kind = ffmpeg.name(start, path)
        if spare and kind:
            if start[:4] == b"OggS":
                file.seek(0)
                lengths.ogg_links(file.read())
            return _load_by_ffmpeg(spare, kind, max_seconds, segment)
        raise _unreadable(error, kind) from error
    if len(samples) == 0:
        raise UserError("no samples: the file holds a header but no sound")
    bad = int(samples.size - np.count_nonzero(np.isfinite(samples)))
    if bad:
        raise UserError(f"not finite: {bad} of {samples.size} samples are NaN or infinite")
    peak = float(np.abs(samples).max())
    if peak > LARGEST_SAMPLE:
        raise UserError(
            f"not scaled: samples reach {peak:.0f}, but float audio must lie within [-1, 1]; divide by the full scale"
        )
    return samples, rate


def _load_by_ffmpeg(path: Path, kind: str, max_seconds: float, segment: AudioSegment | None) -> tuple[np.ndarray, int]:
    """`load` of a file that libsndfile cannot read, or of a segment of it."""
    if segment is None:
        return load(ffmpeg.to_wav(path, kind, max_seconds), max_seconds)
    decoding.refuse_longer(segment.duration_s, max_seconds)
    skipped_s = ffmpeg.start_before(segment.start_s, kind)
    wanted_s = (segment.duration_s or max_seconds) + segment.start_s - skipped_s
    try:
        samples, rate = load(ffmpeg.to_wav(path, kind, wanted_s, skipped_s))
    except UserError as error:
        if skipped_s and str(error).startswith("no samples"):
            segment.refuse_outside(skipped_s, "before")
        raise
    first, count = round((segment.start_s - skipped_s) * rate), segment.count(rate) or len(samples)
    if first + count > len(samples):
        segment.refuse_outside(skipped_s + len(samples) / rate)
    samples = samples[first : first + count]
    decoding.refuse_longer(len(samples) / rate, max_seconds)
    return samples, rate


def _open(path: Path) -> BinaryIO:
    try:
        if members.is_member(path):
            return members.open_member(path)
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # opening a pipe would wait for its writer
            raise UserError("cannot be opened: not a regular file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError("no such file: check the path and that the corpus is complete") from error
    except ValueError as error:
        raise UserError("cannot be opened: the path holds a NUL character") from error
    except OSError as error:
        raise UserError(f"cannot be opened: {error.strerror}") from error


def _unreadable(error: Exception, kind: str | None) -> UserError:
    if kind:
        return UserError(
            f"not readable as audio: {kind} is not among the formats that libsndfile reads; convert it to WAV or FLAC"
        )
    reason = str(getattr(error, "error_string", error)).strip()
    cut = any(mark in reason for mark in ("sync", "psf_fseek", "malformed"))
    return UserError(f"{'truncated or damaged' if cut else 'not readable as audio'}: {reason}")


def standardise(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """`(samples, channels)` at `rate_hz` to the mean of the channels at 16 kHz, `(samples,)` float32.

    Resampling is torchaudio's windowed-sinc interpolation. Rates that share only a small divisor with 16 kHz need a table of
    filters that is too large. For them the same filter is computed for each sample.
    """
    mono = samples.mean(axis=1, dtype=np.float32)
    divisor = math.gcd(rate_hz, SAMPLE_RATE)
    if (rate_hz // divisor) * (SAMPLE_RATE // divisor) > LARGEST_KERNEL:
        mono = _resample_each(mono, rate_hz)
    elif rate_hz != SAMPLE_RATE:
        mono = resample(torch.from_numpy(mono), rate_hz, SAMPLE_RATE).numpy()
    return np.ascontiguousarray(mono)


def _resample_each(mono: np.ndarray, rate_hz: int) -> np.ndarray:
    """torchaudio's `resample` to 16 kHz, `(samples,)` float32, with the filter of each new sample computed on its own."""
    cutoff_hz = ROLLOFF * min(rate_hz, SAMPLE_RATE)
    reach = math.ceil(ZERO_CROSSINGS * rate_hz / cutoff_hz)  # old samples on each side
    count = -(-len(mono) * SAMPLE_RATE // rate_hz)
    padded = np.pad(mono, (reach, reach + 1))
    new = np.empty(count, np.float32)
    rows = max(1, LARGEST_KERNEL // (2 * reach + 2))
    for first in range(0, count, rows):
        number = np.arange(first, min(first + rows, count), dtype=np.int64) * rate_hz
        near, phase = number // SAMPLE_RATE, (number % SAMPLE_RATE) / SAMPLE_RATE
        around = np.arange(-reach, reach + 2)
        crossings = np.clip((around - phase[:, None]) * (cutoff_hz / rate_hz), -ZERO_CROSSINGS, ZERO_CROSSINGS)
        weights = np.sinc(crossings) * np.cos(crossings * (np.pi / ZERO_CROSSINGS / 2)) ** 2
        new[first : first + len(near)] = (padded[near[:, None] + around + reach] * weights).sum(axis=1) * (cutoff_hz / rate_hz)
    return new


def read(source: str | Path | bytes, segment: AudioSegment | None = None) -> np.ndarray:
    """A sound file, its bytes, or a segment of either, as `(samples,)` float32 at 16 kHz. Raises UserError as `load` does."""
    return standardise(*load(source, segment=segment))


def encode(wave: np.ndarray, kind: str = "flac") -> bytes:
    """`(samples,)` at 16 kHz as the bytes of a FLAC (16 bit) or Ogg Opus file. Samples beyond [-1, 1] are clipped.

    Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"audio kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    container, subtype = KINDS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1.0, 1.0), SAMPLE_RATE, format=container, subtype=subtype)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """The waveform, `(samples,)` float32, of bytes from `encode`. Raises UserError if they are damaged or not 16 kHz mono."""
    samples, rate_hz = load(data)
    if rate_hz != SAMPLE_RATE or samples.shape[1] != 1:
        raise UserError(f"not from a shard: {rate_hz} Hz, {samples.shape[1]} channels, but shards hold {SAMPLE_RATE} Hz mono")
    return samples[:, 0]
