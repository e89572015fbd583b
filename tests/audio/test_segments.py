"""Segments of recordings: the same samples as in the whole recording, without decoding what stands before them."""

from __future__ import annotations

import io
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec, mp3
from mtbi.audio.segments import AudioSegment
from mtbi.errors import UserError


def noise(seconds: float, rate: int = 16_000) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def as_file(samples: np.ndarray, rate: int, kind: str, subtype: str) -> bytes:
    """The bytes of a file. It is written second by second, because long Vorbis files overrun libsndfile's stack."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, subtype, None, kind) as file:
        for first in range(0, len(samples), rate):
            file.write(samples[first : first + rate])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "GSM610")],
)
def test_a_stretch_has_the_samples_of_the_whole(kind: str, subtype: str, tmp_path: Path) -> None:
    rate = 8000 if subtype == "GSM610" else 16_000
    data = as_file(noise(6, rate), rate, kind, subtype)
    (tmp_path / "a.bin").write_bytes(data)
    whole, _ = codec.load(data)
    for start, seconds in [(0.0, 0.5), (1.2345, 2.0), (3.3, 0.0), (5.5, 0.6)]:
        segment = AudioSegment(start, seconds)
        first = round(start * rate)
        wanted = whole[first : first + round(seconds * rate)] if seconds else whole[first:]
        for source in (data, tmp_path / "a.bin"):
            samples, found_rate = codec.load(source, segment=segment)
            assert found_rate == rate
            np.testing.assert_allclose(samples, wanted, atol=1e-6)


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "OPUS"), ("WAV", "GSM610")])
def test_stretches_outside_the_recording_have_one_message(kind: str, subtype: str) -> None:
    rate = 8000 if subtype == "GSM610" else 16_000
    data = as_file(noise(2, rate), rate, kind, subtype)
    for segment in (AudioSegment(1.0, 1.7), AudioSegment(2.5, 1.0), AudioSegment(9.0)):
        with pytest.raises(
            UserError, match=r"outside the recording: the segment is from .* but the file ends at 2\.\d\d s; give"
        ):
            codec.load(data, segment=segment)
    assert len(codec.load(data, segment=AudioSegment(1.0, 1.3))[0]) == pytest.approx(rate, abs=400)


def test_a_long_stretch_is_refused_before_it_is_decoded() -> None:
    data = as_file(noise(5), 16_000, "FLAC", "PCM_16")
    for segment in (AudioSegment(0.5, 4.0), AudioSegment(0.5)):
        with pytest.raises(UserError, match=r"too long: 4\.[05] s, more than 3 s"):
            codec.load(data, 3, segment)
    assert len(codec.load(data, 3, AudioSegment(2.5))[0]) == 40_000


def test_flac_without_a_length_is_read_from_its_start() -> None:
    data = as_file(noise(3), 16_000, "FLAC", "PCM_16")
    unknown = data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]
    wanted = codec.load(data)[0]
    assert np.array_equal(codec.load(unknown, segment=AudioSegment(1.5, 1.0))[0], wanted[24_000:40_000])
    assert np.array_equal(codec.load(unknown, segment=AudioSegment(1.5))[0], wanted[24_000:])
    with pytest.raises(UserError, match=r"outside the recording: .* ends at 3\.00 s"):
        codec.load(unknown, segment=AudioSegment(1.5, 3.0))


def test_a_wav_file_of_a_pipe_and_several_ogg_recordings() -> None:
    data = as_file(noise(3), 16_000, "WAV", "PCM_16")
    piped = data[:40] + b"\xff\xff\xff\x7f" + data[44:]
    assert np.array_equal(codec.load(piped, segment=AudioSegment(1, 1))[0], codec.load(data)[0][16_000:32_000])
    ogg = as_file(noise(1), 16_000, "OGG", "VORBIS")
    assert np.array_equal(codec.load(ogg + ogg, segment=AudioSegment(0.5, 1))[0], codec.load(ogg + ogg)[0][8000:24_000])


def test_damage_in_a_stretch_is_told_and_damage_elsewhere_is_not() -> None:
    data = as_file(noise(10), 16_000, "FLAC", "PCM_16")
    cut = data[: len(data) // 2]
    assert len(codec.load(cut, segment=AudioSegment(1, 2))[0]) == 32_000
    with pytest.raises(UserError, match="truncated"):
        codec.load(cut, segment=AudioSegment(7, 2))


def test_a_thousand_segments_are_not_decoded_from_the_beginning(tmp_path: Path) -> None:
    """The last second of a file takes no longer than its first, and far less than the file."""
    soundfile.write(tmp_path / "a.flac", noise(600), 16_000)
    codec.load(tmp_path / "a.flac", segment=AudioSegment(1, 1))
    started = time.perf_counter()
    codec.load(tmp_path / "a.flac")
    whole = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(5):
        codec.load(tmp_path / "a.flac", segment=AudioSegment(598, 1))
    assert (time.perf_counter() - started) / 5 < whole / 5


def test_the_frames_of_an_mp3_file_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    count = mp3.recount
    monkeypatch.setattr(mp3, "recount", lambda *given: counted.append(1) or count(*given))
    (tmp_path / "a.mp3").write_bytes(as_file(noise(4), 16_000, "MP3", "MPEG_LAYER_III"))
    for start in (0.5, 1.5, 2.5):
        assert len(codec.load(tmp_path / "a.mp3", segment=AudioSegment(start, 1))[0]) == 16_000
    assert len(counted) == 1


@pytest.mark.parametrize("header", [True, False])
def test_segments_of_mp3_in_any_order_and_in_several_threads(header: bool, tmp_path: Path) -> None:
    for name in ("a", "b"):
        data = as_file(noise(6), 16_000, "MP3", "MPEG_LAYER_III")
        frame = mp3.Frame.parse(data[:4])
        assert frame is not None
        (tmp_path / f"{name}.mp3").write_bytes(data if header else data[frame.length :])
    wanted = codec.load(tmp_path / "a.mp3")[0]
    places = [(name, start) for start in (4.5, 0.25, 3.0, 0.0, 4.75, 1.1) for name in ("a", "a", "b")]

    def part(place: tuple[str, float]) -> np.ndarray:
        return codec.load(tmp_path / f"{place[0]}.mp3", segment=AudioSegment(place[1], 0.5))[0]

    with ThreadPoolExecutor(3) as pool:
        for (_, start), samples in zip(places, pool.map(part, places), strict=True):
            first = round(start * 16_000)
            np.testing.assert_allclose(samples, wanted[first : first + 8000], atol=1e-6)
    (tmp_path / "a.mp3").write_bytes(as_file(noise(1), 16_000, "MP3", "MPEG_LAYER_III"))
    with pytest.raises(UserError, match="outside the recording"):
        part(("a", 4.5))


@pytest.mark.slow  # as what it needs is installed for the slow tests
@pytest.mark.parametrize(("ending", "off"), [("m4a", 0), ("webm", 400), ("wma", 0), ("wv", 0)])
def test_stretches_by_ffmpeg(ending: str, off: int, tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg is not installed")
    steps = np.repeat(np.linspace(0.05, 0.9, 8), 16_000) * np.sin(np.arange(128_000) * 0.2)
    soundfile.write(tmp_path / "a.wav", steps, 16_000)
    path = tmp_path / f"a.{ending}"
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "error", "-i", tmp_path / "a.wav", path], check=True)
    whole, rate = codec.load(path)
    part, _ = codec.load(path, segment=AudioSegment(5.25, 1.5))
    assert len(part) == round(1.5 * rate)
    first = round(5.25 * rate)
    nearest = min(np.abs(part - whole[first + lag : first + lag + len(part)]).mean() for lag in range(-off, off + 1, 4))
    assert nearest < 2e-3
    for segment in (AudioSegment(7.5, 2.0), AudioSegment(60, 2.0)):
        with pytest.raises(UserError, match="outside the recording"):
            codec.load(path, segment=segment)
    with pytest.raises(UserError, match="too long"):
        codec.load(path, 3, AudioSegment(1.0))
