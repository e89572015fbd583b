"""What people hand over as a recording: the right samples, or a sentence."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from mtbi.audio import codec
from mtbi.audio.waveforms import RecordingError, listed, waveform
from mtbi.errors import UserError

RATE = 16_000
WAVE = (0.5 * np.sin(np.arange(4000) * 0.1)).astype(np.float32)
LOUD = 32767 * WAVE


def wav(samples: np.ndarray = WAVE, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


class Once(io.RawIOBase):
    """A file that cannot be wound back, as a socket or a pipe."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self.content.readinto(buffer)


@dataclass
class Decoded:
    """What a decoder of torchcodec returns (which this environment lacks)."""

    data: Tensor
    sample_rate: int


class Decoder:
    def get_all_samples(self) -> Decoded:
        return Decoded(torch.from_numpy(np.stack([WAVE, WAVE])), RATE)


@pytest.mark.parametrize(
    "recording",
    [
        WAVE,
        WAVE.astype(np.float64),
        WAVE.astype(">f4"),
        WAVE[::-1][::-1],
        WAVE.tolist(),
        tuple(WAVE.tolist()),
        torch.from_numpy(WAVE),
        torch.from_numpy(WAVE).clone().requires_grad_(),
        np.stack([WAVE, WAVE]),
        np.stack([WAVE, WAVE], 1),
        np.stack([WAVE * 2, WAVE * 0]),
        torch.from_numpy(WAVE)[None],
        WAVE[:, None],
        {"array": WAVE, "sampling_rate": RATE},
        {"array": WAVE, "sampling_rate": RATE, "path": "a.wav"},
        {"array": WAVE, "sampling_rate": torch.tensor(RATE), "path": None},
        {"raw": WAVE, "sampling_rate": RATE},
        {"bytes": wav(), "path": "a.wav"},
        (RATE, WAVE),
        (WAVE, RATE),
        [RATE, WAVE.tolist()],
        (torch.from_numpy(WAVE)[None], float(RATE)),
        (np.int64(RATE), WAVE),
        wav(),
        bytearray(wav()),
        memoryview(wav()),
        memoryview(WAVE),
        io.BytesIO(wav()),
        io.BufferedReader(Once(wav())),
        Decoder(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_same_samples_in_every_form(recording: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = waveform(recording)
    assert (found.dtype, found.shape) == (np.dtype("float32"), WAVE.shape)
    np.testing.assert_array_equal(found, WAVE)
    assert not np.shares_memory(found, WAVE)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a b.wav"
    path.write_bytes(wav())
    for recording in (str(path), path, path.as_uri(), {"path": str(path), "bytes": None}):
        np.testing.assert_array_equal(waveform(recording), WAVE)
    with open(path, "rb") as file:  # as often as wanted, and left where it was
        file.seek(7)
        for _ in range(2):
            np.testing.assert_array_equal(waveform(file), WAVE)
        assert file.tell() == 7
    with open(path, "rb") as file:
        pass
    with pytest.raises(RecordingError, match="closed file"):
        waveform(file)
    with open(path, encoding="latin-1") as text, pytest.raises(RecordingError, match="gives str, not bytes"):
        waveform(text)


@pytest.mark.parametrize(
    ("dtype", "full_scale", "zero"),
    [("int8", 2**7, 0), ("uint8", 2**7, 2**7), ("int16", 2**15, 0), (">i2", 2**15, 0), ("uint16", 2**15, 2**15),
     ("int32", 2**31, 0), ("uint32", 2**31, 2**31), ("int64", 2**63, 0)],
)  # fmt: skip
def test_integers_are_divided_by_the_full_scale_of_their_type(dtype: str, full_scale: int, zero: int) -> None:
    whole = np.array([0, 1, -2, 3]) * (full_scale // 8) + zero
    np.testing.assert_array_equal(waveform(whole.astype(dtype)), np.float32([0, 0.125, -0.25, 0.375]))
    np.testing.assert_array_equal(waveform(np.full((9, 2), zero).astype(dtype)), np.zeros(9, np.float32))
    if dtype == "int16":
        np.testing.assert_array_equal(waveform(torch.from_numpy(whole.astype(dtype))), np.float32([0, 0.125, -0.25, 0.375]))
        np.testing.assert_array_equal(waveform(np.full(9, -32768, dtype)), np.full(9, -1, np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    np.testing.assert_allclose(waveform(torch.from_numpy(WAVE).to(dtype)), WAVE, atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled(rate: int) -> None:
    samples = (0.5 * np.sin(2 * np.pi * 300 * np.arange(rate) / rate)).astype(np.float32)
    expected = codec.read(wav(samples, rate))
    assert len(expected) == RATE
    for recording in ((rate, samples), {"array": samples, "sampling_rate": rate}, (samples, rate)):
        np.testing.assert_array_equal(waveform(recording), expected)
    np.testing.assert_array_equal(waveform(samples, rate), expected)
    np.testing.assert_array_equal(waveform((rate, samples), rate), expected)


@pytest.mark.parametrize(
    ("recording", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((0, 2), np.float32), "no samples"),
        ([], "no samples"),
        (np.full(9, np.nan), "9 of 9 samples are NaN"),
        (np.array([0, np.inf], np.float16), "1 of 2 samples"),
        (LOUD, "not scaled: samples reach 16384"),
        (np.full(9, 1e300), "not scaled"),
        (LOUD.astype(np.int32), "less than 16 of their 32 bits"),
        (LOUD.astype(int).tolist(), "less than 16 of their 64 bits"),
        ((LOUD + 32768).astype(np.uint32), "less than 16 of their 32 bits"),
        (WAVE.astype(complex), "complex128"),
        (WAVE > 0, "bool"),
        ([True, False], "bool"),
        (WAVE.astype(object), "cannot be read as a recording"),
        (np.array(["a", "b"]), "cannot be read as a recording"),
        (np.ma.masked_less(WAVE, 0), "mask"),
        (np.zeros((3, 3)), r"\(3, 3\): which axis"),
        (np.zeros((80, 300)), "80 channels"),
        (np.zeros((1, 1, 9)), r"\(1, 1, 9\)"),
        (0.5, r"\(\)"),
        (None, "NoneType cannot be read as a recording"),
        (object(), "object cannot be read as a recording"),
        (torch.zeros(9, device="meta"), "cannot be read as samples"),
        (torch.zeros(9, 2).to_sparse(), "cannot be read as samples"),
        ([WAVE, WAVE], "of 2 items, but one recording"),
        ([[0.1, 0.2], [0.1]], "cannot be read as samples"),
        (["a.wav"], "of 1 items, but one recording"),
        ((RATE, None), "of 2 items, but one recording"),
        ((WAVE, str(RATE)), "of 2 items, but one recording"),
        ((True, WAVE), "sampling rate of True"),
        ((16, WAVE), "in hertz"),
        ((-RATE, WAVE), "in hertz"),
        ((16000.5, WAVE), "whole number of hertz"),
        ((float("nan"), WAVE), "whole number of hertz"),
        ({"array": WAVE, "sampling_rate": "16000"}, "whole number of hertz"),
        ({"array": WAVE}, "lacks its 'sampling_rate'"),
        ({"array": WAVE, "sampling_rate": None}, "lacks its 'sampling_rate'"),
        ({"array": WAVE, "sample_rate": RATE}, "is not understood"),
        ({"audio": WAVE}, "is not understood"),
        ({}, "is not understood"),
        (b"", "empty file"),
        (b"no sound at all", "not readable as audio"),
        (io.BytesIO(), "empty file"),
        ("no.wav", "no.wav: no such file"),
        ("a\0.wav", "NUL character"),
        ("https://example.org/a.wav", "not a local file"),
        ("s3://bucket/a.wav", "not a local file"),
        ("data:audio/wav,abc", "not audio in base64"),
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_a_sentence(recording: Any, message: str) -> None:
    with pytest.raises(RecordingError, match=message) as caught:
        waveform(recording)
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


def test_a_rate_that_contradicts_the_recordings_own_is_refused() -> None:
    for recording in ((8000, WAVE), {"array": WAVE, "sampling_rate": 8000}):
        with pytest.raises(RecordingError, match=r"8000 Hz by themselves, and sampling_rate=16000"):
            waveform(recording, RATE)


def test_one_recording_or_several() -> None:
    assert listed(None) == []
    assert len(listed([WAVE, WAVE])) == len(listed(("a.wav", b""))) == 2
    for one in (WAVE, "a.wav", (RATE, WAVE), [0.1, 0.2], {"array": WAVE, "sampling_rate": RATE}):
        [same] = listed(one)
        assert same is one
