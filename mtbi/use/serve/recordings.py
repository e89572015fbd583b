"""Recordings in a request's body: extracted before the JSON is parsed, and decoded in bounded memory.

The base64 of a recording is by far the largest part of a request. It is extracted from the body first, so the parser reads a
short text. Parsed, a string takes up to four bytes a character, and an empty list twenty times the memory of its two brackets.
"""

from __future__ import annotations

import binascii
import io
import math
import re
from collections.abc import Callable

import numpy as np
import soundfile

from mtbi.audio import codec
from mtbi.errors import UserError
from mtbi.use.serve.api_types import ApiError, AudioUrl, InputAudio
from mtbi.use.serve.limits import ServerLimits

MOST_STRUCTURE = 50_000  #: brackets and commas in a request, its recordings not counted
LARGEST_KERNEL = 2**19  #: numbers in the resampling filter bank; the common rates need under 300,000
BLOCK = 2**20  #: characters of base64
SECONDS_AT_ONCE = 4  #: of audio in a block of resampling
_KEY = re.compile(rb'"(?:data|url)"\s*:\s*"')  # a string of JSON cannot contain it: its quotes are escaped
_BASE64 = re.compile(rb"[\x20-\x5b\x5d-\x7e]*+(?:\\[nrt/][\x20-\x5b\x5d-\x7e]*+)*+")
_ADDRESS = re.compile(rb"\w+:\\?/")
_WRAPPED = re.compile(rb"[ \\]")
_ESCAPED = {b" ": b"", b"\\n": b"", b"\\r": b"", b"\\t": b"", b"\\/": b"/"}


def extract_recordings(body: bytes, limits: ServerLimits) -> tuple[bytes, dict[str, bytes | ApiError]]:
    """The body with a short name instead of each recording, and by name the bytes of each recording, or the error about it.

    Raises ApiError 413 if the body without its recordings is too large.
    """
    view, end = memoryview(body), 0
    kept: list[bytes | memoryview] = []
    recordings: dict[str, bytes | ApiError] = {}
    for key in _KEY.finditer(body):
        start, stop = key.end(), body.find(b'"', key.end())
        plain = _BASE64.match(body, start, stop) if stop >= 0 and not _ADDRESS.match(body, start) else None
        if plain is None or plain.end() < stop:
            continue
        name = f"#{len(recordings)}"
        kept += [view[end:start], name.encode()]
        end = stop
        try:
            recordings[name] = from_base64(view[start:stop])
        except ValueError as error:  # binascii.Error is one
            recordings[name] = ApiError(400, f"not base64: {error}")
    rest = b"".join([*kept, view[end:]])
    if len(rest) > limits.text_bytes:
        most = f"{limits.text_bytes / 1e6:g} MB"
        reason = f"a request may have {most} besides its recordings, this one has {len(rest) / 1e6:.1f} MB"
        raise ApiError(413, reason, "request_too_large")
    structure = sum(rest.count(mark) for mark in (b"{", b"[", b","))
    if structure > MOST_STRUCTURE:
        reason = f"a request may have {MOST_STRUCTURE} brackets and commas, this one has {structure}"
        raise ApiError(413, reason, "request_too_large")
    return rest, recordings


def from_base64(text: memoryview) -> bytes:
    """The bytes that a string of JSON holds in base64. The beginning of a `data:` URI and white space are skipped.

    Raises ValueError if it is not base64.
    """
    if bytes(text[:5]) == b"data:":
        head, comma, _ = bytes(text[:200]).partition(b",")
        if not comma or not head.endswith(b";base64"):
            raise ValueError("a data: URI must begin as in data:audio/wav;base64,")
        text = text[len(head) + 1 :]
    if not _WRAPPED.search(text):
        return binascii.a2b_base64(text, strict_mode=True)
    decoded, rest, ended = list[bytes](), b"", False
    for start in range(0, len(text), BLOCK):
        piece = rest + bytes(text[start : start + BLOCK])
        piece, rest = (piece[:-1], b"\\") if piece.endswith(b"\\") else (piece, b"")
        for escape, character in _ESCAPED.items():
            piece = piece.replace(escape, character)
        if start + BLOCK < len(text):
            whole = len(piece) // 4 * 4
            piece, rest = piece[:whole], piece[whole:] + rest
        if ended and piece:
            raise ValueError("Excess data after padding")
        ended = piece.endswith(b"=")
        decoded.append(binascii.a2b_base64(piece, strict_mode=True))
    return b"".join(decoded)


def standardise_in_blocks(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """The same result as `codec.standardise`, made from blocks of a few seconds.

    The temporary arrays of `codec.standardise` are several times as large as its input. Each block is resampled with a second
    of audio on each side, which is much longer than the filter.
    """
    if rate_hz == codec.SAMPLE_RATE:
        return codec.standardise(samples, rate_hz)
    waves = []
    for first in range(0, -(-len(samples) // rate_hz), SECONDS_AT_ONCE):
        begin = max(0, first - 1)
        wave = codec.standardise(samples[begin * rate_hz : (first + SECONDS_AT_ONCE + 1) * rate_hz], rate_hz)
        skipped = (first - begin) * codec.SAMPLE_RATE
        waves.append(wave[skipped : skipped + SECONDS_AT_ONCE * codec.SAMPLE_RATE])
    return np.concatenate(waves)


class RecordingDecoder:
    """Decodes the recordings of one request. Each can be decoded once, which frees its bytes."""

    def __init__(
        self,
        recordings: dict[str, bytes | ApiError],
        limits: ServerLimits,
        max_seconds: float,
        count: Callable[[int], None] = lambda _samples: None,
    ) -> None:
        """`count` is called with the samples of each recording at 16 kHz, and raises ApiError if they are too many."""
        self.recordings, self.limits, self.max_seconds, self.count = recordings, limits, max_seconds, count
        self._samples = 0

    def decode(self, recording: InputAudio | AudioUrl, where: str) -> np.ndarray:
        """A recording as `(samples,)` at 16 kHz. Raises ApiError 400, with `where` in its message, for an unusable one."""
        if isinstance(recording, AudioUrl):
            field, text = "audio_url.url", recording.url
            if ":/" in text[:40]:
                reason = "nothing is fetched; send the recording itself as input_audio, in base64"
                raise ApiError(400, f"{where}: {field}: {reason}")
        else:
            field, text = "input_audio.data", recording.data
        if text not in self.recordings:
            raise ApiError(400, f"{where}: {field} is not base64: it holds characters that base64 does not have")
        if isinstance(refusal := self.recordings[text], ApiError):
            raise ApiError(400, f"{where}: {field} is {refusal.message}")
        try:
            wave = standardise_in_blocks(*self._load(text))
            self._samples += len(wave)
            if self._samples > self.limits.decoded_samples:
                seconds = self.limits.decoded_samples / codec.SAMPLE_RATE
                raise UserError(f"too long: the recordings of a request may have {seconds:.0f} s together")
        except UserError as error:
            raise ApiError(400, f"{where}: {error}") from error
        self.count(len(wave))
        return wave

    def _load(self, name: str) -> tuple[np.ndarray, int]:
        """Samples and rate in hertz, as `codec.load`. Raises UserError also if decoding or resampling takes too much memory."""
        data = self.recordings.pop(name)
        assert isinstance(data, bytes)
        try:
            with soundfile.SoundFile(io.BytesIO(data)) as file:
                channels, rate = file.channels, file.samplerate
        except (RuntimeError, TypeError, ValueError):  # `codec.load` raises the right error
            channels, rate = self.limits.channels, self.limits.rates_hz[1]
            return codec.load(data, self.limits.decoded_samples / (rate * channels))
        if channels > self.limits.channels:
            raise UserError(f"{channels} channels: at most {self.limits.channels} are read; mix them down first")
        least, most = self.limits.rates_hz
        common = math.gcd(rate, codec.SAMPLE_RATE)
        if not least <= rate <= most or (rate // common) * (codec.SAMPLE_RATE // common) > LARGEST_KERNEL:
            raise UserError(f"odd sampling rate: {rate} Hz; convert the recording to 16 kHz")
        seconds = self.limits.decoded_samples / (rate * channels)
        try:
            return codec.load(data, min(self.max_seconds, seconds))
        except UserError as error:
            if seconds >= self.max_seconds or not str(error).startswith("too long"):
                raise
            raise UserError(f"{error} with {channels} channel(s) at {rate} Hz; convert it to 16 kHz mono") from error
