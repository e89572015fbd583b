"""The memory that a request takes, measured in the server's process: at most three times the largest request."""

from __future__ import annotations

import base64
import ctypes
import gc
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from http_call import Answer, post
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from mtbi.use.open_run import TrainedRun
from mtbi.use.serve.server import ServerLimits, make_app

CLEAR = Path("/proc/self/clear_refs")
pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="the peak of a process's memory is read as Linux gives it")
MEGABYTES = 25
CONTAINERS = ["WAV", "WAVEX", "W64", "RF64", "AIFF", "AU", "CAF", "FLAC", "OGG", "MP3", "NIST", "VOC"]
PROMPT = {"type": "text", "text": "repeat"}
Measured = Callable[[bytes], tuple[Answer, float]]


def file_of(frames: int, rate: int, channels: int, kind: str, subtype: str | None = None) -> bytes:
    """Silence."""
    out = io.BytesIO()
    soundfile.write(out, np.zeros((frames, channels), np.int16), rate, format=kind, subtype=subtype)
    return out.getvalue()


def asked(*recordings: bytes | str) -> bytes:
    """A request about recordings, or about what stands for their base64."""
    written = [one if isinstance(one, str) else base64.b64encode(one).decode() for one in recordings]
    parts: list[dict[str, Any]] = [{"type": "input_audio", "input_audio": {"data": data}} for data in written]
    body = {"messages": [{"role": "user", "content": [*parts, PROMPT]}], "max_tokens": 1}
    return json.dumps(body, ensure_ascii=False).encode()


def memory(field: str) -> float:
    """Of this process, in MB: VmRSS now, VmHWM at its peak."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1e3


@pytest.fixture(scope="module")
def measure(run: TrainedRun, serving: Callable) -> Iterator[Measured]:
    """Sends a body; gives the answer, and how many MB above idle the server's memory rose beyond what the model takes."""
    trim = ctypes.CDLL(None).malloc_trim

    def rise(body: bytes) -> tuple[Answer, float]:
        gc.collect()
        trim(0)
        CLEAR.write_text("5")  # the peak is now
        idle = memory("VmRSS")
        return post(address, body), memory("VmHWM") - idle

    with serving(make_app(run, ServerLimits(megabytes=MEGABYTES))) as address:
        longest = asked(file_of(5 * 16_000, 16_000, 1, "FLAC"))
        post(address, longest)
        own = rise(longest)[1]
        yield lambda body: (lambda answer, more: (answer, more - own))(*rise(body))


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: asked(file_of(5 * 655_350, 655_350, 8, "FLAC")), 400),
        (lambda: asked(file_of(2089, 2089, 1, "WAV")), 400),
        (lambda: asked(*[file_of(5 * 16_000, 16_000, 1, "FLAC")] * 500), 400),
        (lambda: asked(base64.b64encode(b"RIFF" + bytes(18_000_000)).decode()), 400),
        (lambda: asked("A" * 20_000_000 + "😀"), 413),
        (lambda: b'{"messages": [' + b"[]," * 8_000_000 + b"[]]}", 413),
        (lambda: b'{"messages": [' + b"{}," * 20_000 + b"{}]}", 400),
    ],
)
def test_the_worst_known_requests(measure: Measured, make: Callable[[], bytes], status: int) -> None:
    answer, more = measure(make())
    assert answer.status == status, answer.text
    assert more < 3 * MEGABYTES


def sounds() -> some.SearchStrategy[bytes]:
    """Sound files of all containers, and WAV files of any rate and channels, some with wrong numbers in their headers."""
    kinds = some.sampled_from([(kind, sub) for kind in CONTAINERS for sub in sorted(soundfile.available_subtypes(kind))])
    rates = some.sampled_from([8000, 11_025, 44_100, 96_000, 192_000])
    written = some.builds(file_or_nothing, some.integers(1, 1_000_000), rates, some.sampled_from([1, 2, 8]), kinds)
    odd = some.sampled_from([1, 2089, 4000, 8018, 22_254, 384_000, 655_350]) | some.integers(1, 2**32 - 1)
    made = some.builds(wav, odd, some.integers(1, 1024), some.integers(1, 4), some.integers(0, 15_000_000))
    fields = some.lists(some.tuples(some.integers(0, 96), some.sampled_from([0, 1, 2**15, 2**31 - 1, 2**32 - 1])), max_size=2)
    return some.builds(damaged, written | made, fields, some.sampled_from(["little", "big"]))


def file_or_nothing(frames: int, rate: int, channels: int, kind: tuple[str, str]) -> bytes:
    """Nothing where libsndfile writes no such file."""
    try:
        return file_of(frames // channels, rate, channels, *kind)
    except (RuntimeError, TypeError, ValueError):
        return b""


def wav(rate: int, channels: int, width: int, size: int) -> bytes:
    """A WAV file of whole numbers, all 0."""
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * width % 2**32, channels * width, 8 * width)
    return (
        b"RIFF" + struct.pack("<I", 36 + size) + b"WAVEfmt \x10\0\0\0" + form + b"data" + struct.pack("<I", size) + bytes(size)
    )


def damaged(content: bytes, fields: list[tuple[int, int]], order: Any) -> bytes:
    """The file, in which four bytes at some places are another number."""
    changed = bytearray(content)
    for place, number in fields:
        changed[place : place + 4] = number.to_bytes(4, order)
    return bytes(changed)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(sound=sounds())
def test_no_sound_file_takes_more(measure: Measured, sound: bytes) -> None:
    answer, more = measure(asked(sound))
    assert answer.status in (200, 400), answer.text
    assert more < 3 * MEGABYTES
