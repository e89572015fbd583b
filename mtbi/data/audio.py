"""Reading, resampling, encoding and decoding of sound.

Resampling and downmix happen once, when shards are made (`mtbi data shard`): a manifest keeps the original files, a shard
holds 16 kHz mono. Inside the package a waveform is float32 `(samples,)` in [-1, 1] at `SAMPLE_RATE`.

Every UserError here starts with a short category and a colon ("truncated: …"), so that summaries can count reasons.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from mtbi.errors import UserError

SAMPLE_RATE = 16_000
#: What `encode` can write: FLAC keeps 16 bits a sample without loss; Opus is several times smaller and lossy.
KINDS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
UNKNOWN_LENGTH_SAMPLES = 2**40  # libsndfile reports about 2**63 when a header does not give the length
LARGEST_KERNEL = 2**25  # numbers in the resampling filter bank; common rates need under 2**20
LARGEST_SAMPLE = 8.0  # float files may overshoot 1.0 a little; far more means integers stored as floats


def load(source: str | Path | bytes, max_seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """Decode a file, or its bytes, as it is: samples `(samples, channels)` float32 and the sampling rate in Hz.

    A file whose header says that it is longer than `max_seconds` is refused before it is decoded: an hour costs no memory.
    Raises UserError when it cannot be opened or decoded, is empty, truncated or too long, or holds samples that are not finite.
    """
    size, start = _size_and_start(source)
    if size == 0:
        raise UserError("empty file: 0 bytes")
    riff_size = int.from_bytes(start[4:8], "little")
    if start[:4] == b"RIFF" and riff_size not in (0, 2**32 - 1) and size < riff_size + 8 - 1:
        raise UserError(f"truncated: {size} bytes of the {riff_size + 8} that the WAV header announces")
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            frames, rate = file.frames, file.samplerate
            if frames > UNKNOWN_LENGTH_SAMPLES:
                raise UserError("length unknown: the header does not give the number of samples; convert the file again")
            if frames / rate > max_seconds:
                raise UserError(f"too long: {frames / rate:.1f} s, more than {max_seconds:g} s")
            samples = file.read(dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError) as error:  # libsndfile's errors are RuntimeErrors; TypeError: a .raw file
        reason = str(getattr(error, "error_string", error)).strip()
        kind = "truncated or damaged" if "sync" in reason or "psf_fseek" in reason else "not readable as audio"
        raise UserError(f"{kind}: {reason}") from error
    if len(samples) == 0:
        raise UserError("no samples: the file holds a header but no sound")
    if len(samples) < 0.99 * frames:  # the length of an MP3 is an estimate
        raise UserError(f"truncated: {len(samples)} samples of the {frames} that the header announces")
    bad = int(samples.size - np.count_nonzero(np.isfinite(samples)))
    if bad:
        raise UserError(f"not finite: {bad} of {samples.size} samples are NaN or infinite")
    peak = float(np.abs(samples).max())
    if peak > LARGEST_SAMPLE:
        raise UserError(
            f"not scaled: samples reach {peak:.0f}, but float audio must lie within [-1, 1]; divide by the full scale"
        )
    return samples, rate


def _size_and_start(source: str | Path | bytes) -> tuple[int, bytes]:
    """Size in bytes, and the first bytes."""
    if isinstance(source, bytes):
        return len(source), source[:12]
    try:
        with open(source, "rb") as file:
            return Path(source).stat().st_size, file.read(12)
    except FileNotFoundError as error:
        raise UserError("no such file: check the path and that the corpus is complete") from error
    except OSError as error:
        raise UserError(f"cannot be opened: {error.strerror}") from error


def standardise(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """`(samples, channels)` at `rate_hz` to the mean of the channels at 16 kHz, `(samples,)` float32.

    Resamples by windowed-sinc interpolation (torchaudio). Raises UserError for a rate with too small a divisor of 16 kHz.
    """
    mono = samples.mean(axis=1, dtype=np.float32)
    divisor = math.gcd(rate_hz, SAMPLE_RATE)
    if (rate_hz // divisor) * (SAMPLE_RATE // divisor) > LARGEST_KERNEL:
        raise UserError(
            f"odd sampling rate: {rate_hz} Hz has no useful common divisor with {SAMPLE_RATE} Hz; convert the file first"
        )
    if rate_hz != SAMPLE_RATE:
        mono = resample(torch.from_numpy(mono), rate_hz, SAMPLE_RATE).numpy()
    return np.ascontiguousarray(mono)


def read(source: str | Path | bytes) -> np.ndarray:
    """A sound file, or its bytes, as `(samples,)` float32 at 16 kHz. Raises UserError as `load` and `standardise` do."""
    return standardise(*load(source))


def encode(wave: np.ndarray, kind: str = "flac") -> bytes:
    """`(samples,)` at 16 kHz as a FLAC (16 bit) or Ogg Opus file; what lies beyond [-1, 1] is clipped.

    Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"audio kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    container, subtype = KINDS[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave, -1.0, 1.0), SAMPLE_RATE, format=container, subtype=subtype)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """What `encode` wrote, as `(samples,)` float32. Raises UserError if it is damaged or is not 16 kHz mono."""
    samples, rate_hz = load(data)
    if rate_hz != SAMPLE_RATE or samples.shape[1] != 1:
        raise UserError(f"not from a shard: {rate_hz} Hz, {samples.shape[1]} channels, but shards hold {SAMPLE_RATE} Hz mono")
    return samples[:, 0]
