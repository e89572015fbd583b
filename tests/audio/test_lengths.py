"""Headers with wrong lengths: whole data are read to their end, cut data are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec
from mtbi.errors import UserError

NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, 8000)
FORMATS = ["WAV", "AIFF", "AU", "CAF", "W64", "RF64", "NIST", "VOC", "SVX", "FLAC"]


def written(kind: str, **options: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, 16_000, format=kind, **options)
    return buffer.getvalue()


def with_number(data: bytes, position: int, value: int, order: str = "<") -> bytes:
    return data[:position] + struct.pack(f"{order}I", value) + data[position + 4 :]


WAV, AIFF, AU = written("WAV"), written("AIFF"), written("AU")
DATA, SSND = WAV.index(b"data") + 4, AIFF.index(b"SSND") + 4
RF64 = written("RF64")
DS64 = RF64.index(b"ds64") + 8


@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF, 0x7FFFF024, len(WAV), len(WAV) - 8])
@pytest.mark.parametrize("data", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000, len(WAV) - 44, len(WAV) - 8, len(WAV)])
def test_placeholders_of_wav_mean_to_the_end(riff: int, data: int) -> None:
    assert len(codec.read(with_number(with_number(WAV, 4, riff), DATA, data))) == 8000


@pytest.mark.parametrize(
    "data",
    [
        with_number(AIFF, SSND, 0x7F000008, ">"),
        with_number(AU, 8, 0xFFFFFFFF, ">"),
        with_number(AU, 8, 0, ">"),
        with_number(WAV, DATA, 1000),
        RF64[:DS64] + bytes(24) + RF64[DS64 + 24 :],
    ],
    ids=["AIFF of sox", "AU", "AU of 0", "WAV of 1000 bytes whose RIFF is whole", "RF64 of 0"],
)
def test_other_wrong_lengths(data: bytes) -> None:
    assert np.array_equal(codec.read(data), codec.read(WAV))


def test_chunks_after_the_sound_are_no_sound() -> None:
    listed = b"LIST" + struct.pack("<I", 4000) + bytes(4000)
    assert len(codec.read(with_number(WAV + listed, 4, len(WAV + listed) - 8))) == 8000
    empty = with_number(WAV[:44], DATA, 0) + listed
    with pytest.raises(UserError, match="no samples"):
        codec.read(with_number(empty, 4, len(empty) - 8))


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_truncated_in_every_format_that_announces_a_length(kind: str) -> None:
    data = written(kind)
    assert len(codec.read(data)) == 8000
    with pytest.raises(UserError, match=r"^truncated"):
        codec.read(data[: len(data) // 2])


def test_big_endian_wav() -> None:
    data = written("WAV", endian="BIG")
    assert data[:4] == b"RIFX"
    assert np.array_equal(codec.read(data), codec.read(WAV))
    with pytest.raises(UserError, match=r"^truncated"):
        codec.read(data[:-1000])
