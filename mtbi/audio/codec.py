"""Decode, resample and encode audio.

Resampling and downmix happen once, when shards are made (`mtbi data shard`). A manifest names the original files; a shard
holds 16 kHz mono. Inside the package a waveform is float32 `(samples,)` in [-1, 1] at `SAMPLE_RATE`.

Every UserError here starts with a short category and a colon ("truncated: …"), because summaries count these categories.
"""

from __future__ import annotations

import io
import math
import stat
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from mtbi.audio import ffmpeg, lengths, mp3, segments, sound_files
from mtbi.audio.segments import UNKNOWN_LENGTH_SAMPLES, AudioSegment
from mtbi.errors import UserError

SAMPLE_RATE = 16_000
#: Formats that `encode` writes. FLAC keeps 16 bits a sample without loss. Opus is several times smaller and lossy.
KINDS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}
LARGEST_KERNEL = 2**20  # numbers in the table of resampling filters; common rates need under 2**19
ZERO_CROSSINGS, ROLLOFF = 6, 0.99  # of torchaudio's filter
SMALLEST_BLOCK_SAMPLES, LARGEST_BLOCK_SAMPLES = 2**16, 2**20  # decoded at once
MOST_COUNTED = 8  # MP3 and Ogg files whose frames were counted; most of them are kept as a note, a few as their bytes
LARGEST_SAMPLE = 8.0  # float files may exceed 1.0 a little; far larger values are integers stored as floats


_COUNTED: dict[tuple[str, int, int], list[bytes]] = {}
_COUNTED_LOCK = threading.Lock()


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
        start, size = file.read(64), file.seek(0, io.SEEK_END)
        if size == 0:
            raise UserError("empty file: 0 bytes")
        try:
            samples, rate = _decode(file, path, size, max_seconds, segment)
        except (RuntimeError, TypeError, ValueError) as error:  # libsndfile's errors are RuntimeErrors; TypeError: a .raw file
            kind = ffmpeg.name(start, path)
            if path and kind:
                if start[:4] == b"OggS":
                    lengths.ogg_links(path.read_bytes())
                return _load_by_ffmpeg(path, kind, max_seconds, segment)
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
    _refuse_longer(segment.duration_s, max_seconds)
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
    _refuse_longer(len(samples) / rate, max_seconds)
    return samples, rate


def _open(path: Path) -> BinaryIO:
    try:
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


class _Stream(soundfile.SoundFile):
    """A file that is read from start to end. soundfile seeks after each block; GSM and FLAC of unknown length forbid that."""

    def seekable(self) -> bool:
        return False


def _decode(
    file: BinaryIO, path: Path | None, size: int, max_seconds: float, segment: AudioSegment | None
) -> tuple[np.ndarray, int]:
    """Samples and rate. Raises soundfile's errors where libsndfile cannot read the file."""
    length = lengths.inspect(file, size)
    if length.cut:
        whole = size - length.present + (length.announced or 0)
        raise UserError(f"truncated: {size} bytes of the {whole} that the {length.container} header announces")
    file.seek(0)
    if segment:
        return _decode_segment(file, path, size, length, max_seconds, segment)
    if length.patches:
        with _Stream(lengths.Patched(file, length.patches)) as stream:
            return _read(stream, length.flac_samples, max_seconds)
    with _Stream(path or file) as stream:
        if stream.format not in ("MP3", "OGG"):
            return _read(stream, stream.frames, max_seconds)
        recordings = _recordings(file, size, stream, max_seconds)
        if not recordings:
            return _read(stream, 0, max_seconds)
    parts = []
    for data in recordings:
        with _Stream(io.BytesIO(data)) as stream:
            parts.append(_read(stream, 0, max_seconds))
    if len({(samples.shape[1], rate) for samples, rate in parts}) > 1:
        raise UserError(
            "several recordings: sampling rate or channels change within the file; convert it, for example with ffmpeg"
        )
    samples, rate = np.concatenate([samples for samples, _ in parts]), parts[0][1]
    _refuse_longer(len(samples) / rate, max_seconds)
    return samples, rate


def _decode_segment(
    file: BinaryIO, path: Path | None, size: int, length: lengths.Length, max_seconds: float, segment: AudioSegment
) -> tuple[np.ndarray, int]:
    """`_decode` of a segment."""
    _refuse_longer(segment.duration_s, max_seconds)
    patches = {} if length.flac_samples else length.patches  # a FLAC file with the length in its header can seek
    with _Stream(lengths.Patched(file, patches) if patches else path or file) as stream:
        recordings = _recordings_once(file, path, size, stream) if stream.format in ("MP3", "OGG") else []
        if not recordings:
            return _read_segment(stream, max_seconds, segment)
    if len(recordings) == 1:
        with _Stream(io.BytesIO(recordings[0])) as stream:
            return _read_segment(stream, max_seconds, segment)
    file.seek(0)
    samples, rate = _decode(file, path, size, math.inf, None)
    segment.refuse_outside(len(samples) / rate)
    first = segment.first(rate)
    return samples[first : first + (segment.count(rate) or len(samples))], rate


def _read_segment(stream: _Stream, max_seconds: float, segment: AudioSegment) -> tuple[np.ndarray, int]:
    if not segment.duration_s and stream.frames < UNKNOWN_LENGTH_SAMPLES:
        _refuse_longer(stream.frames / stream.samplerate - segment.start_s, max_seconds)
    samples, rate = segments.read(stream, segment)
    _refuse_longer(len(samples) / rate, max_seconds)
    return samples, rate


def _recordings_once(file: BinaryIO, path: Path | None, size: int, stream: _Stream) -> list[bytes]:
    """`_recordings` of a file whose segments are read one after another: its frames are counted only once."""
    about = path.stat() if path else None
    key = (str(path), about.st_mtime_ns, size) if about else None
    with _COUNTED_LOCK:
        if key is None or key not in _COUNTED:
            found = _recordings(file, size, stream, math.inf)
            if key is None:
                return found
            if len(_COUNTED) >= MOST_COUNTED:
                del _COUNTED[next(iter(_COUNTED))]
            _COUNTED[key] = found
        return _COUNTED[key]


def _recordings(file: BinaryIO, size: int, stream: _Stream, max_seconds: float) -> list[bytes]:
    """Files to decode in place of an MP3 or Ogg file whose end libsndfile would miss. Empty where libsndfile reads it all."""
    seconds = stream.frames / stream.samplerate
    if stream.format == "MP3":  # the stream's length is an estimate; this is the shortest duration of so many bytes
        seconds = (size - mp3.LARGEST_TAG_BYTES) / mp3.LARGEST_BYTES_PER_SECOND
    _refuse_longer(seconds, max_seconds)
    position = file.tell()  # the stream may read from the same file
    file.seek(0)
    data = file.read()
    file.seek(position)
    if stream.format == "MP3":
        recounted = mp3.recount(data, stream.frames)
        return [] if recounted is None else [recounted]
    links = lengths.ogg_links(data)
    return links if len(links) > 1 else []


def _read(stream: _Stream, announced: int, max_seconds: float) -> tuple[np.ndarray, int]:
    """All samples, and the rate. `announced` is the header's number of samples, 0 where it gives none or an estimate."""
    rate = stream.samplerate
    if announced < UNKNOWN_LENGTH_SAMPLES:
        _refuse_longer(announced / rate, max_seconds)
    blocks: list[np.ndarray] = []
    total = 0
    while True:
        # After the announced samples one more is tried: other data may follow.
        wanted = announced - total if announced > total else 1 if announced == total > 0 else SMALLEST_BLOCK_SAMPLES
        wanted = min(wanted, LARGEST_BLOCK_SAMPLES, stream.frames - total)
        try:
            blocks.append(stream.read(wanted, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError:
            if announced == total > 0:
                break
            raise
        total += len(blocks[-1])
        _refuse_longer(total / rate, max_seconds)
        if len(blocks[-1]) < wanted or total >= stream.frames:
            break
    if total < 0.99 * announced < UNKNOWN_LENGTH_SAMPLES:
        raise UserError(f"truncated: {total} samples of the {announced} that the header announces")
    filled = [block for block in blocks if len(block)] or blocks[:1]
    return filled[0] if len(filled) == 1 else np.concatenate(filled), rate


def _refuse_longer(seconds: float, max_seconds: float) -> None:
    if seconds > max_seconds:
        raise UserError(f"too long: {seconds:.1f} s, more than {max_seconds:g} s")


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
