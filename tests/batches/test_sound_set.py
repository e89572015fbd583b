from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mtbi.batches.sound_set import WHOLE_SECONDS, SoundSet, repeated
from mtbi.corpus.manifest import Utterance, write_manifest
from mtbi.errors import UserError


def save(path: Path, wave: np.ndarray, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


def tone(seconds: float, rate: int, frequency: float = 400.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def test_recordings_come_from_folders_manifests_and_files_in_a_fixed_order(tmp_path: Path) -> None:
    for name in ("b/2.wav", "a/1.flac", "c.wav"):
        save(tmp_path / "noise" / name, tone(0.2, 16_000))
    (tmp_path / "noise" / "readme.txt").write_text("not sound")
    save(tmp_path / "other" / "x.wav", tone(0.2, 16_000))
    write_manifest(tmp_path / "other" / "manifest.jsonl", [Utterance("x", "x.wav", "")])
    paths = [tmp_path / "noise", tmp_path / "other" / "manifest.jsonl", tmp_path / "other" / "x.wav"]
    found = SoundSet.of("augment.noise", [str(path) for path in paths])
    assert found.names == ("a/1.flac", "b/2.wav", "c.wav", "x.wav", "x.wav")
    assert all(path.is_file() for path in found.files)


def test_other_rates_and_channels_become_16_khz_and_the_first_channel(tmp_path: Path) -> None:
    right = np.zeros(44_100)
    save(tmp_path / "stereo.wav", np.stack([tone(1.0, 44_100), right], 1), 44_100)
    wave = SoundSet.of("augment.noise", [str(tmp_path)]).draw(np.random.default_rng(0))
    assert len(wave) == 16_000
    spectrum = np.abs(np.fft.rfft(wave))
    assert int(spectrum.argmax()) == 400  # bins of 1 Hz
    assert np.abs(wave[1000:-1000]).max() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_a_piece_of_a_long_recording_is_that_of_the_whole(tmp_path: Path, rate: int) -> None:
    ramp = np.linspace(0, 0.9, int((WHOLE_SECONDS + 10) * rate))
    path = save(tmp_path / "long.wav", ramp, rate)
    found = SoundSet.of("augment.noise", [str(path)])
    whole = found.read(path)
    starts = set()
    for seed in range(5):
        piece = found.draw_piece(3200, np.random.default_rng(seed))
        assert piece.shape == (3200,)
        start = int(np.abs(whole - piece[1600]).argmin()) - 1600
        np.testing.assert_allclose(piece[100:-100], whole[start : start + 3200][100:-100], atol=2e-4)
        starts.add(start)
    assert len(starts) == 5


def test_a_short_recording_is_repeated() -> None:
    wave = np.arange(5, dtype=np.float32)
    assert repeated(wave, 8, 0.0).tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert repeated(wave, 8, 0.999).tolist() == [4, 0, 1, 2, 3, 4, 0, 1]
    assert {int(repeated(wave, 3, place)[0]) for place in np.linspace(0, 0.999, 50)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "augment.noise: there is no .*noise"),
        (lambda folder: folder.mkdir(), "augment.noise: .*noise holds no recordings; name a folder with sound files"),
        (lambda folder: save(folder / "empty.wav", np.zeros(0)), r"empty.wav: no samples. Take this file away"),
        (lambda folder: (save(folder / "a.wav", np.zeros(9)), (folder / "b.wav").write_bytes(b"text")), r"b.wav: not readable"),
        (
            lambda folder: save(folder / "song.wav", np.zeros(32_000)),
            r"song.wav: 2.0 s long, and an impulse resp",
        ),
    ],
)
def test_what_cannot_be_used_is_named_before_the_run(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "noise")  # type: ignore[operator]
    with pytest.raises(UserError, match=message):
        SoundSet.of("augment.noise", [str(tmp_path / "noise")], longest_seconds=1)


def test_a_recording_that_is_cut_short_later_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "cut.wav", tone(1.0, 16_000))
    found = SoundSet.of("augment.noise", [str(tmp_path)])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"augment.noise: .*cut.wav: truncated"):
        found.draw_piece(100, np.random.default_rng(0))


def test_segments_of_longer_files_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "noise.jsonl", [Utterance("part", "x.wav", "", start_s=1.0, duration_s=2.0)])
    with pytest.raises(UserError, match="part is a segment of a longer file; name whole files here"):
        SoundSet.of("augment.noise", [str(tmp_path / "noise.jsonl")])


def test_recordings_on_object_storage_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path / "noise.jsonl", [Utterance("far", "s3://bucket/noise.wav", "")])
    with pytest.raises(UserError, match=r"s3://bucket/noise\.wav is on object storage; download it"):
        SoundSet.of("augment.noise", [str(tmp_path / "noise.jsonl")])
