"""Reading of good and broken recordings, resampling, and the two encodings of shards."""

from __future__ import annotations

import io
import math
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.audio import codec
from mtbi.errors import UserError


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def as_file(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_real_recordings_of_several_rates_become_16_khz_mono(speech: Path) -> None:
    for place, rate, channels in [
        ("fsdd/audio/george/0_george_1.flac", 8000, 1),
        ("ljspeech_samples/audio/lj-LJ001-0002.flac", 22050, 1),
        ("librispeech_train_clean_3spk/audio/19/19-198-0000.flac", 16000, 1),
        ("multitalker_small/audio/fw-stereo-diarization.flac", None, 2),
    ]:
        samples, found_rate = codec.load(speech / place)
        wave = codec.read(speech / place)
        assert samples.shape[1] == channels
        assert rate in (None, found_rate)
        assert wave.dtype == np.float32
        assert wave.ndim == 1
        assert len(wave) == math.ceil(len(samples) * 16000 / found_rate)
        assert np.array_equal(wave, codec.read((speech / place).read_bytes()))


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_resampling_keeps_a_tone(rate: int) -> None:
    wave = codec.read(as_file(tone(1.0, rate), rate, subtype="FLOAT"))
    assert len(wave) == 16000
    assert np.abs(wave - tone(1.0))[200:-200].max() < 2e-3


def test_two_channels_are_averaged() -> None:
    left, right = tone(0.5), tone(0.5, hertz=900)
    wave = codec.read(as_file(np.stack([left, right], 1), 16000, subtype="FLOAT"))
    np.testing.assert_allclose(wave, (left + right) / 2, atol=1e-6)


def test_ten_minutes_at_44_khz() -> None:
    data = as_file(tone(600, 44100), 44100, subtype="PCM_16")
    assert len(codec.read(data)) == 600 * 16000
    with pytest.raises(UserError, match=r"too long: 600\.0 s, more than 60 s"):
        codec.load(data, max_seconds=60)


def test_flac_is_lossless_and_opus_is_close_and_smaller(speech: Path) -> None:
    wave = codec.read(speech / "librispeech_train_clean_3spk/audio/19/19-198-0001.flac")
    flac, opus = codec.encode(wave), codec.encode(wave, "opus")
    assert np.array_equal(codec.decode(flac), wave)
    decoded = codec.decode(opus)
    assert len(opus) < len(flac) / 2
    assert len(decoded) == len(wave)
    assert np.corrcoef(decoded, wave)[0, 1] > 0.95


@pytest.mark.parametrize(("kind", "longest_seconds"), [("flac", 600.0), ("opus", 60.0)])
def test_encoding_of_the_shortest_and_the_longest(kind: str, longest_seconds: float) -> None:
    for seconds in (0.1, longest_seconds):
        assert len(codec.decode(codec.encode(tone(seconds), kind))) == round(seconds * 16000)


def test_encoding_clips_and_refuses_unknown_kinds() -> None:
    assert np.abs(codec.decode(codec.encode(4 * tone(0.2)))).max() <= 1
    with pytest.raises(UserError, match="'mp3' is unknown: choose one of flac, opus"):
        codec.encode(tone(0.1), "mp3")


def test_decode_refuses_what_no_shard_holds() -> None:
    with pytest.raises(UserError, match="not from a shard: 8000 Hz"):
        codec.decode(as_file(tone(0.2, 8000), 8000, "FLAC"))


FLAC = as_file(tone(2.0), 16000, "FLAC")
WAV = as_file(tone(2.0), 16000)
NAN = tone(1.0)
NAN[[5, 70]] = np.nan, np.inf


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file: 0 bytes"),
        (b"This is a shopping list, not a sound.\n" * 50, "not readable as audio"),
        (FLAC[: len(FLAC) // 2], "truncated"),
        (FLAC[:-7], "truncated"),
        (FLAC[:60], "truncated|not readable"),
        (WAV[: len(WAV) // 2], "truncated: 32022 bytes of the 64044"),
        (as_file(NAN, 16000, subtype="FLOAT"), "not finite: 2 of 16000 samples"),
        (as_file(tone(0.0), 16000), "no samples"),
        (as_file(20000 * tone(0.5), 16000, subtype="FLOAT"), "not scaled: samples reach 6000"),
    ],
    ids=[
        "empty",
        "text",
        "half FLAC",
        "FLAC without end",
        "FLAC header",
        "half WAV",
        "NaN",
        "no samples",
        "integers as floats",
    ],
)
def test_broken_files_have_a_clear_reason(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(UserError, match=reason):
            codec.read(source)


def test_missing_file_folder_and_pipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        codec.read(tmp_path / "gone.wav")
    with pytest.raises(UserError, match="cannot be opened: Is a directory"):
        codec.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(UserError, match="not a regular file"):
        codec.read(tmp_path / "pipe.wav")
    with pytest.raises(UserError, match="the path holds a NUL"):
        codec.read("a\0.wav")


@pytest.mark.parametrize("rate", [22254, 47999, 15999, 16001, 2089, 8012, 44056, 192_001])
def test_odd_rates_are_resampled_without_a_large_table(rate: int) -> None:
    wave = codec.standardise(tone(1.0, rate)[:, None], rate)
    assert len(wave) == 16000
    assert np.abs(wave - tone(1.0))[200:-200].max() < 2e-3
    assert len(codec.standardise(np.zeros((1, 1), np.float32), rate)) == math.ceil(16000 / rate)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_the_filter_of_odd_rates_is_that_of_common_ones(rate: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 3 * rate // 2).astype(np.float32)
    np.testing.assert_allclose(codec._resample_each(noise, rate), codec.standardise(noise[:, None], rate), atol=2e-5)


def wrong_total(data: bytes, samples: int) -> bytes:
    """A FLAC file whose header announces another number of samples."""
    return data[:21] + bytes([data[21] & 0xF0]) + samples.to_bytes(4, "big") + data[26:]


@pytest.mark.parametrize("announced", [0, 1000])
def test_flac_is_read_to_its_end_whatever_its_header_announces(announced: int, tmp_path: Path) -> None:
    whole = codec.read(FLAC)
    (tmp_path / "a.flac").write_bytes(wrong_total(FLAC, announced))
    assert np.array_equal(codec.read(tmp_path / "a.flac"), whole)
    assert np.array_equal(codec.read(FLAC + b"TAG" + bytes(125)), whole)
    with pytest.raises(UserError, match="truncated: 32000 samples of the 40000"):
        codec.read(wrong_total(FLAC, 40_000))
    with pytest.raises(UserError, match="truncated"):
        codec.read(wrong_total(FLAC, announced)[:-500])


def test_an_endless_flac_is_refused_when_so_much_is_decoded() -> None:
    with pytest.raises(UserError, match=r"too long: .* more than 1 s"):
        codec.load(wrong_total(FLAC, 0), max_seconds=1)


def test_telephone_speech_in_gsm() -> None:
    assert codec.load(as_file(tone(1.0, 8000), 8000, subtype="GSM610"))[0].shape == (8320, 1)


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
def test_several_recordings_in_one_ogg_file_are_all_read(subtype: str) -> None:
    one = as_file(tone(1.0), 16000, "OGG", subtype)
    assert len(codec.read(one)) == 16000
    assert len(codec.read(one + one)) == 32000
    with pytest.raises(UserError, match=r"too long: 2\.0 s"):
        codec.load(one + one, max_seconds=1.5)
    with pytest.raises(UserError, match="several recordings"):
        codec.read(one + as_file(tone(1.0, 8000), 8000, "OGG", subtype))
    with pytest.raises(UserError, match="truncated"):
        codec.read(one + one[:-100])


def test_the_name_in_another_unicode_form_is_the_same_file(tmp_path: Path) -> None:
    name = "größe.wav"
    (tmp_path / unicodedata.normalize("NFD", name)).write_bytes(WAV)
    assert len(codec.read(tmp_path / unicodedata.normalize("NFC", name))) == 32000


def test_silence_can_be_read() -> None:
    assert not codec.read(as_file(np.zeros(1600, np.float32), 16000)).any()
