"""Recordings are cut out of a body and decoded in bounded memory."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec
from mtbi.use.serve.api_types import ApiError, InputAudio
from mtbi.use.serve.limits import ServerLimits
from mtbi.use.serve.recordings import BLOCK, RecordingDecoder, extract_recordings, from_base64, standardise_in_blocks

DATA = bytes(range(256)) * 4000  # its base64 is longer than a block


def as_file(wave: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=kind, subtype=subtype)
    return out.getvalue()


def listened(content: bytes, limits: ServerLimits | None = None, **options: Any) -> np.ndarray:
    limits = limits or ServerLimits()
    body = json.dumps({"data": base64.b64encode(content).decode()}).encode()
    rest, recordings = extract_recordings(body, limits)
    return RecordingDecoder(recordings, limits, 30, **options).decode(InputAudio(**json.loads(rest)), "here")


@pytest.mark.parametrize("width", [0, 76, 64, 1, 3])
def test_base64_is_decoded_block_by_block(width: int) -> None:
    text = base64.b64encode(DATA[: 10_000 if width in (1, 3) else None]).decode()
    lines = "\r\n".join(text[start : start + width] for start in range(0, len(text), width)) if width else text
    written = json.dumps(lines)[1:-1].replace("/", "\\/")
    assert width in (1, 3) or len(written) > BLOCK
    assert from_base64(memoryview(written.encode())) == DATA[: 10_000 if width in (1, 3) else None]
    assert from_base64(memoryview(b"data:audio\\/wav;base64," + written.encode())) == from_base64(memoryview(written.encode()))


@pytest.mark.parametrize("end", ["A", "=A==", "-", "AAA=AAAA", " AAA"])
def test_what_is_not_base64_is_an_error(end: str) -> None:
    for start in ("AAAA", "AAAA" * (BLOCK // 4), "AAAA\\n" * (BLOCK // 5)):
        with pytest.raises(ValueError, match=r"[Dd]ata|padding"):
            from_base64(memoryview((start + end).encode()))


def test_a_body_keeps_all_but_the_recordings() -> None:
    parts = [{"data": "AAAA", "b": 'x "data": "y"'}, {"url": "https://x.org"}, {"url": "data:a/b;base64,AAA="}]
    body = {"a": parts, "é": "data"}
    rest, recordings = extract_recordings(json.dumps(body, ensure_ascii=False).encode(), ServerLimits())
    assert json.loads(rest) == {"a": [parts[0] | {"data": "#0"}, parts[1], {"url": "#1"}], "é": "data"}
    assert recordings == {"#0": b"\0\0\0", "#1": b"\0\0"}


@pytest.mark.parametrize("rate", [4000, 8000, 11_025, 22_050, 44_100, 48_000, 96_000, 384_000])
def test_seconds_are_resampled_as_the_whole(rate: int) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, (int(9.37 * rate), 2)).astype(np.float32)
    whole = codec.standardise(wave, rate)
    pieces = standardise_in_blocks(wave, rate)
    assert pieces.shape == whole.shape
    np.testing.assert_allclose(pieces, whole, atol=1e-5)
    np.testing.assert_array_equal(standardise_in_blocks(wave[:1], rate), codec.standardise(wave[:1], rate))


@pytest.mark.parametrize(
    ("seconds", "rate", "channels", "reason"),
    [
        (1, 16_000, 9, "9 channels: at most 8"),
        (1, 2089, 1, "odd sampling rate: 2089 Hz"),
        (1, 8018, 1, "odd sampling rate: 8018 Hz"),
        (0.1, 655_350, 1, "odd sampling rate: 655350 Hz"),
        (9, 48_000, 8, "too long: 9.0 s, more than 8.13802 s with 8 channel.* at 48000 Hz; convert it to 16 kHz mono"),
        (31, 16_000, 1, "too long: 31.0 s, more than 30 s"),
    ],
)
def test_what_would_take_much_memory_is_refused(seconds: float, rate: int, channels: int, reason: str) -> None:
    content = as_file(np.zeros((int(seconds * rate), channels)), rate, "FLAC" if channels < 9 else "WAV")
    with pytest.raises(ApiError, match=f"here: {reason}") as caught:
        listened(content)
    assert caught.value.status == 400


def test_what_is_usual_is_read() -> None:
    limits = ServerLimits(megabytes=1)
    for seconds, rate, channels in ((30, 16_000, 1), (5, 48_000, 2), (10, 44_100, 1)):
        wave = listened(as_file(np.zeros((seconds * rate, channels)), rate, "FLAC"), limits)
        assert len(wave) == seconds * 16_000
    assert len(listened(as_file(np.zeros((30 * 48_000, 2)), 48_000, "FLAC"))) == 480_000


def test_all_recordings_together_are_bounded() -> None:
    content = base64.b64encode(as_file(np.zeros(30 * 16_000), 16_000, "FLAC")).decode()
    limits = ServerLimits(megabytes=1)
    rest, recordings = extract_recordings(json.dumps([{"data": content}] * 2).encode(), limits)
    told: list[int] = []
    decoder = RecordingDecoder(recordings, limits, 30, told.append)
    first, second = (InputAudio(**one) for one in json.loads(rest))
    assert len(decoder.decode(first, "first")) == 480_000
    with pytest.raises(ApiError, match="second: too long: the recordings of a request may have 31 s together"):
        decoder.decode(second, "second")
    assert told == [480_000]
