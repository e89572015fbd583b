from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from mtbi.demo.speech import EspeakVoices, join, speak_digits


def test_espeak_speaks_words_that_differ() -> None:
    espeak = EspeakVoices()
    three, seven = (espeak.speak(word, "en+m3", 160, 50) for word in ("three", "seven"))
    assert 0.15 < len(three) / espeak.sample_rate < 0.8
    assert 0.05 < np.abs(three).max() <= 1
    assert len(three) != len(seven)
    faster = espeak.speak("seven", "en+m3", 240, 50)
    assert len(faster) < 0.8 * len(seven)


def test_spoken_digits_have_the_layout_of_the_recordings(tmp_path: Path) -> None:
    speak_digits(tmp_path, voices=2, recordings=2, seed=0)
    names = [path.stem.split("_") for path in tmp_path.iterdir()]
    assert {int(digit) for digit, _, _ in names} == set(range(10))
    assert len({speaker for _, speaker, _ in names}) == 2
    assert "theo" in {speaker for _, speaker, _ in names}
    assert {int(number) for _, _, number in names} == {0, 1, 40, 41}
    wave, rate = soundfile.read(next(tmp_path.iterdir()))
    assert rate == 22_050
    assert np.isfinite(wave).all()


def test_join_says_where_each_clip_is() -> None:
    clips = [np.full(1600, 0.5, np.float32), np.full(800, -0.5, np.float32)]
    wave, times = join(clips, np.random.default_rng(0))
    for clip, (start, end) in zip(clips, times, strict=True):
        np.testing.assert_array_equal(wave[round(start * 16_000) : round(end * 16_000)], clip)
    assert np.count_nonzero(wave) == 2400
