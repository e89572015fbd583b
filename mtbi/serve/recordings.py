"""Recordings in a request's body: found before the JSON is parsed, and decoded in bounded memory.

The base64 of a recording is by far the largest part of a request. It is cut out of the body first, so that the parser sees a
short text: a string takes up to four bytes a character in memory, and a list of nothing twenty times its two brackets.
"""

from __future__ import annotations

import binascii
import io
import math
import re
from collections.abc import Callable

import numpy as np

from mtbi.data import audio
from mtbi.errors import UserError
from mtbi.serve.api_types import ApiError, AudioUrl, InputAudio
from mtbi.serve.limits import Limits

MOST_STRUCTURE = 50_000  #: brackets and commas of a request without its recordings
LARGEST_KERNEL = 2**20  #: numbers in the resampling filter bank; those of the common rates have under 300,000
BLOCK = 2**20
_KEY = re.compile(rb'"(?:data|url)"\s*:\s*"')  # cannot occur within a string of JSON, where quotes are escaped
_NOT_BASE64 = re.compile(rb"[^\x20-\x7e]|\\(?![nrt/])")
_ADDRESS = re.compile(rb"\w+:\\?/")
_ESCAPED = {b"\\n": b"", b"\\r": b"", b"\\t": b"", b"\\/": b"/"}


def cut_out(body: bytes, limits: Limits) -> tuple[bytes, dict[str, bytes | ApiError]]:
    """The body with a short name in the place of each recording, and by name the recordings or what is wrong with them.

    Raises ApiError 413 for a body that is too large without its recordings.
    """
    kept, recordings, end, view = [], dict[str, bytes | ApiError](), 0, memoryview(body)
    for key in _KEY.finditer(body):
        start, stop = key.end(), body.find(b'"', key.end())
        if stop < 0 or _ADDRESS.match(body, start) or _NOT_BASE64.search(body, start, stop):
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
    """The bytes of base64 in a string of JSON: a `data:` URI's beginning and white space are left out.

    Raises ValueError for what is not base64.
    """
    if bytes(text[:5]) == b"data:":
        head, comma, _ = bytes(text[:200]).partition(b",")
        if not comma or not head.endswith(b";base64"):
            raise ValueError("a data: URI must begin as in data:audio/wav;base64,")
        text = text[len(head) + 1 :]
    out, rest, ended = io.BytesIO(), b"", False
    for start in range(0, len(text), BLOCK):
        piece = rest + bytes(text[start : start + BLOCK])
        piece, rest = (piece[:-1], b"\\") if piece.endswith(b"\\") else (piece, b"")
        for escape, character in _ESCAPED.items():
            piece = piece.replace(escape, character)
        piece = piece.replace(b" ", b"")
        if start + BLOCK < len(text):
            whole = len(piece) // 4 * 4
            piece, rest = piece[:whole], piece[whole:] + rest
        if ended and piece:
            raise ValueError("Excess data after padding")
        ended = piece.endswith(b"=")
        out.write(binascii.a2b_base64(piece, strict_mode=True))
    return out.getvalue()


class Listener:
    """Decodes the recordings of one request. Each may be used once: then its bytes are given back."""

    def __init__(
        self,
        recordings: dict[str, bytes | ApiError],
        limits: Limits,
        max_seconds: float,
        room: Callable[[int], None] = lambda _samples: None,
    ) -> None:
        """`room` is told the samples of each recording at 16 kHz, and raises ApiError where there are too many."""
        self.recordings, self.limits, self.max_seconds, self.room = recordings, limits, max_seconds, room
        self._samples = 0

    def listen(self, recording: InputAudio | AudioUrl, where: str) -> np.ndarray:
        """A recording as `(samples,)` at 16 kHz. Raises ApiError 400 about `where`."""
        if isinstance(recording, AudioUrl):
            field, text = "audio_url.url", recording.url
            if ":/" in text[:40]:
                reason = "nothing is fetched; send the recording itself as input_audio, in base64"
                raise ApiError(400, f"{where}: {field}: {reason}")
        else:
            field, text = "input_audio.data", recording.data
        data = self.recordings.pop(text, None)
        if data is None:
            raise ApiError(400, f"{where}: {field} is not base64: it holds characters that base64 does not have")
        if isinstance(data, ApiError):
            raise ApiError(400, f"{where}: {field} is {data.message}")
        try:
            return self._decode(data)
        except UserError as error:
            raise ApiError(400, f"{where}: {error}") from error

    def _decode(self, data: bytes) -> np.ndarray:
        """Raises UserError for what cannot be read or would take too much memory."""
        samples, rate = audio.load(data, self.max_seconds, self.limits.decoded_samples)
        del data
        channels = samples.shape[1]
        if channels > self.limits.channels:
            raise UserError(f"{channels} channels: at most {self.limits.channels} are read; mix them down first")
        least, most = self.limits.rates_hz
        if not least <= rate <= most:
            raise UserError(f"odd sampling rate: {rate} Hz, but {least} to {most} Hz are read; convert the recording to 16 kHz")
        common = math.gcd(rate, audio.SAMPLE_RATE)
        if (rate // common) * (audio.SAMPLE_RATE // common) > LARGEST_KERNEL:
            raise UserError(f"odd sampling rate: {rate} Hz; convert the recording to 16 kHz")
        wave = audio.standardise(samples, rate)
        self._samples += len(wave)
        if self._samples > self.limits.decoded_samples:
            raise UserError(f"too large: the recordings of a request may have {self.limits.decoded_samples} samples at 16 kHz")
        self.room(len(wave))
        return wave
