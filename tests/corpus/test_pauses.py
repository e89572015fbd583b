from __future__ import annotations

import numpy as np
import pytest

from mtbi.audio.codec import SAMPLE_RATE
from mtbi.corpus.pauses import trim


def speech_between(seconds: float, *loud: tuple[float, float], noise: float = 0.001) -> np.ndarray:
    """Faint noise, with loud noise in some stretches of seconds."""
    wave = np.random.default_rng(0).normal(0, noise, int(seconds * SAMPLE_RATE)).astype(np.float32)
    for start, end in loud:
        wave[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)] *= 0.2 / noise
    return wave


@pytest.mark.parametrize("noise", [0.0001, 0.001, 0.01])
def test_spans_lose_the_silence_around_their_words(noise: float) -> None:
    wave = speech_between(2.0, (0.3, 0.8), (1.2, 1.6), noise=noise)
    assert trim([(0.0, 0.9), (0.9, 2.0)], wave) == pytest.approx(np.array([(0.3, 0.8), (1.2, 1.6)]), abs=0.021)


def test_silence_inside_a_word_stays_and_spans_never_grow() -> None:
    wave = speech_between(2.0, (0.3, 0.8), (1.2, 1.6))
    assert trim([(0.0, 2.0)], wave) == pytest.approx(np.array([(0.3, 1.6)]), abs=0.021)
    assert trim([(0.4, 0.7)], wave) == [(0.4, 0.7)]


def test_words_without_sound_keep_their_spans() -> None:
    assert trim([(0.0, 0.5), (0.5, 0.5), (0.5, 1.0)], np.zeros(SAMPLE_RATE, np.float32)) == [(0.0, 0.5), (0.5, 0.5), (0.5, 1.0)]
    assert trim([(0.85, 1.1)], speech_between(2.0, (0.3, 0.8))) == [(0.85, 1.1)]
