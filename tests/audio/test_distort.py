from __future__ import annotations

import numpy as np
import pytest

from mtbi.audio import distort

RATE = 16_000
RNG = np.random.default_rng(0)
WAVE = (0.1 * RNG.standard_normal(RATE)).astype(np.float32)


def decibels(part: np.ndarray, whole: np.ndarray) -> float:
    return 20 * np.log10(distort.rms(part) / distort.rms(whole))


def tone(frequency: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, np.float64(12.5)])
def test_noise_has_its_level(snr_db: float) -> None:
    noise = tone(440.0)
    noisy = distort.with_noise(WAVE, noise, snr_db)
    assert noisy.dtype == np.float32
    assert decibels(WAVE, noisy - WAVE) == pytest.approx(float(snr_db), abs=0.01)


@pytest.mark.parametrize("soft", [0.0, 1e-30])
def test_silence_gets_no_noise_and_makes_none(soft: float) -> None:
    silence = np.full(RATE, soft, np.float32)
    assert distort.with_noise(silence, WAVE, 10.0) is silence
    assert distort.with_noise(WAVE, silence, 10.0) is WAVE
    assert distort.in_room(WAVE, silence) is WAVE


@pytest.mark.parametrize("delay", [0, 37, 1600])
def test_a_room_keeps_level_length_and_times(delay: int) -> None:
    clicks = np.zeros(RATE, np.float32)
    clicks[[2000, 9000]] = 0.5
    echo = np.zeros(delay + 800, np.float32)
    echo[delay], echo[delay + 500] = -0.9, 0.3
    heard = distort.in_room(clicks, echo)
    assert heard.dtype == np.float32
    assert len(heard) == len(clicks)
    assert sorted(np.argsort(np.abs(heard))[-4:].tolist()) == [2000, 2500, 9000, 9500]
    assert abs(heard[9500] / heard[9000]) == pytest.approx(1 / 3, rel=1e-3)
    assert distort.rms(heard) == pytest.approx(distort.rms(clicks), rel=1e-4)


def test_a_fast_length_is_the_next_one() -> None:
    fast = sorted(factor << power for factor in (1, 3, 5) for power in range(12))
    for length in range(1, 1500):
        assert distort.fast_length(length) == next(size for size in fast if size >= length)


def test_a_telephone_passes_its_band_alone() -> None:
    for frequency, change in ((100.0, -25), (5000.0, -25)):
        assert decibels(distort.by_telephone(tone(frequency)), tone(frequency)) < change
    for frequency in (500.0, 1000.0, 3000.0):
        own, heard = tone(frequency), distort.by_telephone(tone(frequency))
        assert heard.dtype == np.float32
        assert abs(decibels(heard, own)) < 0.5
        assert 20 < decibels(own, heard - own) < 60  # in time with it; eight bits leave a little noise


@pytest.mark.parametrize("samples", [1, 2, 15_999])
def test_a_telephone_keeps_any_length(samples: int) -> None:
    assert distort.by_telephone(WAVE[:samples]).shape == (samples,)


def test_a_gain_is_in_decibels_and_what_would_be_clipped_is_made_softer() -> None:
    assert decibels(distort.louder(WAVE, 6.0), WAVE) == pytest.approx(6.0, abs=1e-3)
    assert distort.unclipped(WAVE) is WAVE
    loud = distort.unclipped(distort.louder(WAVE, 40.0))
    assert np.abs(loud).max() == 1
    np.testing.assert_allclose(loud / loud[0], WAVE / WAVE[0], rtol=1e-4)
    assert len(distort.unclipped(WAVE[:0])) == 0
