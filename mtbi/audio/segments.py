"""A segment of a recording: a start and a length in seconds, and reading of these samples alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soundfile

from mtbi.errors import UserError

#: A segment may end this much after its recording, because corpora round their times. Kaldi's extract-segments has this limit.
OVERSHOOT_SECONDS = 0.5
MP3_LEAD_SAMPLES = 4 * 1152  # a frame of MP3 needs bits and sound of the frames before it
BLOCK_SAMPLES = 2**20  # decoded at once on the way to a segment, where a format cannot seek
UNKNOWN_LENGTH_SAMPLES = 2**40  # libsndfile reports about 2**63 when a header does not give the length


@dataclass(frozen=True)
class AudioSegment:
    """A part of a recording. It ends with the recording where that is a little shorter."""

    start_s: float  #: from the start of the recording
    duration_s: float = 0.0  #: 0 = to the end of the recording

    def first(self, rate_hz: int) -> int:
        """The number of the first sample."""
        return round(self.start_s * rate_hz)

    def count(self, rate_hz: int) -> int:
        """The number of samples; 0 = to the end of the recording."""
        return round(self.duration_s * rate_hz)

    def refuse_outside(self, seconds: float, ends: str = "at") -> None:
        """Raises UserError where the segment does not lie inside a recording that ends `at`, or `before`, so many seconds."""
        if self.start_s < seconds and self.start_s + self.duration_s <= seconds + OVERSHOOT_SECONDS:
            return
        end = f" to {self.start_s + self.duration_s:.2f} s" if self.duration_s else " s to the end"
        raise UserError(
            f"outside the recording: the segment is from {self.start_s:.2f}{end}, but the file ends {ends} {seconds:.2f} s; "
            "give times from the start of this file, or no start where the file is cut already"
        )


def read(stream: soundfile.SoundFile, segment: AudioSegment) -> tuple[np.ndarray, int]:
    """The samples `(samples, channels)` float32 of a segment, and the rate in Hz.

    Only the segment is decoded, where the format can seek: libsndfile then gives the same samples as from the beginning (for
    MP3, within 1e-6). In other formats the samples before it are decoded and dropped, block by block.
    Raises UserError where the segment lies outside the recording, or where the data end before the length that the header
    announces. Raises soundfile's errors for damaged data.
    """
    rate = stream.samplerate
    first, wanted = segment.first(rate), segment.count(rate)
    known = stream.frames if stream.frames < UNKNOWN_LENGTH_SAMPLES else 0
    if known:
        segment.refuse_outside(known / rate)
        wanted = min(wanted or known, known - first)
    position = _seek(stream, first)
    samples = _read(stream, wanted) if position == first else np.zeros((0, stream.channels), np.float32)
    end_s = (position + len(samples)) / rate
    if len(samples) < max(wanted, 1):
        if known:
            raise UserError(f"truncated: the sound ends at {end_s:.2f} s, but the header announces {known / rate:.2f} s")
        segment.refuse_outside(end_s)
    return samples, rate


def _seek(stream: soundfile.SoundFile, first: int) -> int:
    """Go to a sample. Returns the position, which is smaller where the sound ends before it."""
    position = 0
    if soundfile.SoundFile.seekable(stream) and stream.frames < UNKNOWN_LENGTH_SAMPLES:
        position = stream.seek(max(0, first - MP3_LEAD_SAMPLES) if stream.format == "MP3" else first)
    while position < first:
        block = stream.read(min(BLOCK_SAMPLES, first - position), dtype="float32", always_2d=True)
        if not len(block):
            break
        position += len(block)
    return position


def _read(stream: soundfile.SoundFile, wanted: int) -> np.ndarray:
    """So many samples, or those to the end (0), of a stream, block by block."""
    blocks, total = [], 0
    while not wanted or total < wanted:
        size = min(BLOCK_SAMPLES, wanted - total) if wanted else BLOCK_SAMPLES
        block = stream.read(size, dtype="float32", always_2d=True)
        blocks.append(block)
        total += len(block)
        if len(block) < size:
            break
    return np.concatenate(blocks)
