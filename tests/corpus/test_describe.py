from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mtbi.audio import codec
from mtbi.cli import main
from mtbi.corpus.describe import describe, measure
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest

RATE = codec.SAMPLE_RATE


def voice(pitch: float, seconds: float, power: float = 0.01) -> np.ndarray:
    """Harmonics of a pitch, falling by 6 dB an octave, with this mean power."""
    times = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * pitch * k * times) / k for k in range(1, 12))
    return (wave * np.sqrt(power / np.mean(wave**2))).astype(np.float32)


def between_pauses(wave: np.ndarray, noise: float) -> np.ndarray:
    """The wave between two pauses of half a second, in white noise of this power."""
    padded = np.pad(wave, RATE // 2)
    return (padded + np.random.default_rng(0).normal(0, noise**0.5, len(padded))).astype(np.float32)


@pytest.mark.parametrize("pitch", [75, 110, 180, 240, 350])
def test_the_pitch_of_a_harmonic_sound(pitch: float) -> None:
    assert measure(between_pauses(voice(pitch, 1.0), 1e-6), 3)["pitch_hz"] == pytest.approx(pitch, rel=0.03)


@pytest.mark.parametrize("noise", [1e-4, 1e-6])
def test_level_noise_and_pace(noise: float) -> None:
    measured = measure(between_pauses(voice(150, 2.0), noise), 5)
    assert measured["level_db"] == pytest.approx(-20, abs=0.3)
    assert measured["snr_db"] == pytest.approx(-20 - 10 * np.log10(noise), abs=1)
    assert measured["words_per_s"] == pytest.approx(2.5, abs=0.1)


def test_noise_has_no_pitch_and_silence_nothing() -> None:
    rng = np.random.default_rng(0)
    assert "pitch_hz" not in measure(rng.normal(0, 0.1, RATE).astype(np.float32), 1)
    assert measure(np.zeros(RATE, np.float32), 1) == {}
    assert set(measure(voice(150, 0.01), 1)) <= {"words_per_s", "level_db", "snr_db"}


def test_a_manifest_gets_the_fields_again_at_a_second_run(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(codec.encode(between_pauses(voice(200, 1.0), 1e-6)))
    utterances = [
        Utterance("a", "a.flac", "one two", extra={"pitch_hz": 1.0, "accent": "x"}),
        Utterance("lost", "lost.flac", "one", extra={"snr_db": 3.0}),
        Utterance("text", "", "one two three"),
    ]
    write_manifest(tmp_path / "manifest.jsonl", utterances)
    main(["data", "describe", str(tmp_path / "manifest.jsonl"), str(tmp_path / "out" / "described.jsonl")])
    spoken, lost, text = read_manifest(tmp_path / "out" / "described.jsonl")
    assert spoken.extra["pitch_hz"] == pytest.approx(200, rel=0.03)
    assert spoken.extra["accent"] == "x"
    assert not lost.extra
    assert not text.extra
    assert Path(spoken.audio) == tmp_path / "a.flac"


def test_parts_join_to_what_one_process_writes(tmp_path: Path) -> None:
    utterances = []
    for number in range(5):
        (tmp_path / f"{number}.flac").write_bytes(codec.encode(voice(100 + 20 * number, 0.3)))
        utterances.append(Utterance(str(number), f"{number}.flac", "one"))
    manifest = tmp_path / "manifest.jsonl"
    write_manifest(manifest, utterances)
    for part in ("2/2", "1/2"):
        main(["data", "describe", str(manifest), str(tmp_path / "parts.jsonl"), "--part", part])
    main(["data", "describe", str(manifest), str(tmp_path / "whole.jsonl")])
    assert (tmp_path / "parts.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    assert [one.extra for one in describe(utterances, tmp_path)] == [
        {key: value for key, value in json.loads(line).items() if key in ("pitch_hz", "words_per_s", "level_db", "snr_db")}
        for line in (tmp_path / "whole.jsonl").read_text().splitlines()
    ]
