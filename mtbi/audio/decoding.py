"""Decoding by libsndfile: to the real end of a file, whatever its header announces, or of a segment alone."""

from __future__ import annotations

import io
import math
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from mtbi.audio import lengths, members, mp3, segments
from mtbi.audio.segments import UNKNOWN_LENGTH_SAMPLES, AudioSegment
from mtbi.errors import UserError

SMALLEST_BLOCK_SAMPLES, LARGEST_BLOCK_SAMPLES = 2**16, 2**20  # decoded at once
MOST_COUNTED = 8  # MP3 and Ogg files whose frames were counted; most of them are kept as a note, a few as their bytes

Key = tuple[str, int, int]  # path, time of the last change, size
_COUNTED: dict[Key, list[bytes]] = {}
_COUNTED_LOCK = threading.Lock()


class _Stream(soundfile.SoundFile):
    """A file that is read from start to end. soundfile seeks after each block; GSM and FLAC of unknown length forbid that."""

    def seekable(self) -> bool:
        return False


class _Kept(threading.local):
    """The MP3 file of which this thread read a segment last. While it is open, its decoder knows the places of its frames.

    A segment of a file of 20 minutes then takes 5 ms instead of 57 ms.
    """

    key: Key | None = None
    stream: Any = None

    def keep(self, key: Key | None, stream: _Stream | None) -> None:
        """Keep this stream open, and close the one before."""
        if self.stream is not None:
            self.stream.close()
        self.key, self.stream = key, stream


_KEPT = _Kept()


def decode(
    file: BinaryIO, path: Path | None, size: int, max_seconds: float, segment: AudioSegment | None
) -> tuple[np.ndarray, int]:
    """Samples `(samples, channels)` float32 of a file or of a segment of it, and the rate in Hz.

    `file` has `size` bytes, and `path` is its path where it has one. Raises UserError for a recording that is truncated or
    longer than `max_seconds`, and soundfile's errors where libsndfile cannot read the file.
    """
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
    with _Stream(_seekable(file, path)) as stream:
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
    refuse_longer(len(samples) / rate, max_seconds)
    return samples, rate


def _seekable(file: BinaryIO, path: Path | None) -> BinaryIO | Path:
    """What libsndfile opens: the path of a file, which is faster, or the bytes of a recording inside an archive."""
    return file if path is None or members.is_member(path) else path


def _decode_segment(
    file: BinaryIO, path: Path | None, size: int, length: lengths.Length, max_seconds: float, segment: AudioSegment
) -> tuple[np.ndarray, int]:
    """`decode` of a segment."""
    refuse_longer(segment.duration_s, max_seconds)
    key = _key(path, size)
    if key is not None and key == _KEPT.key:
        return _read_segment(_KEPT.stream, max_seconds, segment)
    patches = {} if length.flac_samples else length.patches  # a FLAC file with the length in its header can seek
    stream = _Stream(lengths.Patched(file, patches) if patches else _seekable(file, path))
    recordings = _recordings_once(file, key, size, stream) if stream.format in ("MP3", "OGG") else []
    if len(recordings) == 1:
        stream.close()
        stream = _Stream(io.BytesIO(recordings[0]))
    if len(recordings) < 2:
        if stream.format == "MP3" and key is not None and (recordings or not members.is_member(key[0])):
            _KEPT.keep(key, stream)
            return _read_segment(stream, max_seconds, segment)
        with stream:
            return _read_segment(stream, max_seconds, segment)
    stream.close()
    file.seek(0)
    samples, rate = decode(file, path, size, math.inf, None)
    segment.refuse_outside(len(samples) / rate)
    first = segment.first(rate)
    return samples[first : first + (segment.count(rate) or len(samples))], rate


def _read_segment(stream: _Stream, max_seconds: float, segment: AudioSegment) -> tuple[np.ndarray, int]:
    if not segment.duration_s and stream.frames < UNKNOWN_LENGTH_SAMPLES:
        refuse_longer(stream.frames / stream.samplerate - segment.start_s, max_seconds)
    try:
        samples, rate = segments.read(stream, segment)
    except Exception:
        if stream is _KEPT.stream:  # the decoder may not be usable after an error
            _KEPT.keep(None, None)
        raise
    refuse_longer(len(samples) / rate, max_seconds)
    return samples, rate


def _key(path: Path | None, size: int) -> Key | None:
    """What a file is known by while it does not change. None for bytes."""
    return None if path is None else (str(path), Path(members.file_of(path)).stat().st_mtime_ns, size)


def _recordings_once(file: BinaryIO, key: Key | None, size: int, stream: _Stream) -> list[bytes]:
    """`_recordings` of a file whose segments are read one after another: its frames are counted only once."""
    if key is None:
        return _recordings(file, size, stream, math.inf)
    with _COUNTED_LOCK:
        if key not in _COUNTED:
            found = _recordings(file, size, stream, math.inf)
            if len(_COUNTED) >= MOST_COUNTED:
                del _COUNTED[next(iter(_COUNTED))]
            _COUNTED[key] = found
        return _COUNTED[key]


def _recordings(file: BinaryIO, size: int, stream: _Stream, max_seconds: float) -> list[bytes]:
    """Files to decode in place of an MP3 or Ogg file whose end libsndfile would miss. Empty where libsndfile reads it all."""
    seconds = stream.frames / stream.samplerate
    if stream.format == "MP3":  # the stream's length is an estimate; this is the shortest duration of so many bytes
        seconds = (size - mp3.LARGEST_TAG_BYTES) / mp3.LARGEST_BYTES_PER_SECOND
    refuse_longer(seconds, max_seconds)
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
        refuse_longer(announced / rate, max_seconds)
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
        refuse_longer(total / rate, max_seconds)
        if len(blocks[-1]) < wanted or total >= stream.frames:
            break
    if total < 0.99 * announced < UNKNOWN_LENGTH_SAMPLES:
        raise UserError(f"truncated: {total} samples of the {announced} that the header announces")
    filled = [block for block in blocks if len(block)] or blocks[:1]
    return filled[0] if len(filled) == 1 else np.concatenate(filled), rate


def refuse_longer(seconds: float, max_seconds: float) -> None:
    """Raises UserError for a recording that lasts longer than it may."""
    if seconds > max_seconds:
        raise UserError(f"too long: {seconds:.1f} s, more than {max_seconds:g} s")
