"""MP3 files of variable bit rate, with and without a header that gives their length."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec, mp3
from mtbi.errors import UserError

#: Silence, then noise: the first frames say little about the size of the others.
SOUND = np.concatenate([np.zeros(16_000), np.random.default_rng(0).normal(0, 0.1, 16_000)])


def written(samples: np.ndarray, mode: str = "VARIABLE", rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="MP3", bitrate_mode=mode)
    return buffer.getvalue()


def without_header(data: bytes) -> bytes:
    first = mp3.Frame.parse(data[:4])
    assert first is not None
    assert data[first.tag_at : first.tag_at + 4] in (b"Xing", b"Info")
    return data[first.length :]


@pytest.mark.parametrize("samples", [SOUND, SOUND[::-1]], ids=["quiet first", "loud first"])
def test_variable_bit_rate_without_a_header_is_read_whole(samples: np.ndarray) -> None:
    """libsndfile alone reads 16776 of these samples, or announces many more than there are."""
    data = without_header(written(samples))
    assert abs(len(codec.read(data)) - 33_408) < 600
    assert abs(len(codec.read(b"ID3\x04\0\0\0\0\0\x20" + bytes(32) + data + b"TAG" + bytes(125))) - 33_408) < 600


def test_the_header_of_the_encoder_is_believed() -> None:
    data = written(SOUND)
    assert len(codec.read(data)) == 32_000
    assert mp3.recount(data, 32_000) is None
    with pytest.raises(UserError, match=r"truncated: .* frames of the 58"):
        codec.read(data[: len(data) // 2])


def test_constant_bit_rate_is_not_touched() -> None:
    data = without_header(written(SOUND, "CONSTANT"))
    frame = mp3.Frame.parse(data[:4])
    assert frame is not None
    data = data[: frame.length] * 60
    assert mp3.recount(data, 60 * 576) is None
    assert len(codec.read(data)) == 60 * 576


def test_two_recordings_one_behind_the_other() -> None:
    data = written(SOUND)
    assert abs(len(codec.read(data + data)) - 66_816) < 600
    with pytest.raises(UserError, match="several recordings: the sampling rate changes"):
        codec.read(data + written(SOUND, rate=22_050))


def test_no_hour_is_decoded_to_be_refused() -> None:
    with pytest.raises(UserError, match="too long"):
        codec.load(without_header(written(SOUND)), max_seconds=1)


def test_bytes_that_look_like_frames_cost_no_time() -> None:
    data = without_header(written(SOUND))
    assert abs(len(codec.read(data + b"\xff" * 500_000)) - 33_408) < 600
    with pytest.raises(UserError, match="too little of the file is sound"):
        codec.read(data + b"\xff\xfb\x90\x00" * 100_000)
