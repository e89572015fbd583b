"""Distortions of a waveform that keep its length and the times of its words: a room, noise, a telephone line.

A waveform is `(samples,)` float32 at 16 kHz. Inputs stay as they are.
"""

from __future__ import annotations

import numpy as np
import torch
from torchaudio import functional

from mtbi.audio.codec import SAMPLE_RATE

TELEPHONE_RATE = 8000
TELEPHONE_BAND_HZ = (300.0, 3400.0)
MU_LAW_LEVELS = 256
SILENT_RMS = 1e-6  # below a sample of 16 bits; what is softer has no level to compare with


def rms(wave: np.ndarray) -> float:
    """The root mean square of a waveform; 0 without samples."""
    return float(np.sqrt(np.square(wave, dtype=np.float64).mean())) if len(wave) else 0.0


def with_noise(wave: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """A waveform with noise of the same length, at a ratio of their mean powers in decibels.

    Where one of the two is silent, the waveform stays as it is.
    """
    if min(rms(wave), rms(noise)) < SILENT_RMS:
        return wave
    own, other = torch.from_numpy(wave), torch.from_numpy(np.ascontiguousarray(noise))
    return functional.add_noise(own, other, torch.tensor(snr_db, dtype=torch.float32)).numpy()


def in_room(wave: np.ndarray, response: np.ndarray) -> np.ndarray:
    """A waveform as it sounds in a room with the impulse response `(samples,)`, as loud as before.

    The largest sample of the response is the direct path. Its delay is taken off, so the words keep their times. What sounds on
    after the end is cut off.
    """
    direct = int(np.abs(response).argmax())
    whole = len(wave) + len(response) - 1
    padded = torch.from_numpy(np.pad(wave, (0, fast_length(whole) - whole)))
    heard = functional.fftconvolve(padded, torch.from_numpy(np.ascontiguousarray(response))).numpy()
    heard = heard[direct : direct + len(wave)]
    return heard * np.float32(rms(wave) / rms(heard)) if rms(heard) > SILENT_RMS else wave


def fast_length(length: int) -> int:
    """The next length whose Fourier transform is quick: 1, 3 or 5 times a power of 2. One with large factors is slow."""
    return min(factor << max(0, (-(-length // factor) - 1).bit_length()) for factor in (1, 3, 5))


def by_telephone(wave: np.ndarray) -> np.ndarray:
    """A waveform from a telephone line: the band from 300 to 3400 Hz, at 8 kHz in the 8 bits of the mu-law (G.711)."""
    narrow = functional.resample(torch.from_numpy(wave), SAMPLE_RATE, TELEPHONE_RATE).numpy()
    spectrum = np.fft.rfft(narrow)
    frequencies = np.fft.rfftfreq(len(narrow), 1 / TELEPHONE_RATE)
    low, high = TELEPHONE_BAND_HZ
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    narrow = np.fft.irfft(spectrum, len(narrow)).astype(np.float32)
    coded = functional.mu_law_encoding(torch.from_numpy(narrow).clamp(-1, 1), MU_LAW_LEVELS)
    decoded = functional.mu_law_decoding(coded, MU_LAW_LEVELS)
    return functional.resample(decoded, TELEPHONE_RATE, SAMPLE_RATE)[: len(wave)].numpy()


def louder(wave: np.ndarray, decibels: float) -> np.ndarray:
    """A waveform with a gain."""
    return wave * np.float32(10 ** (decibels / 20))


def unclipped(wave: np.ndarray) -> np.ndarray:
    """A waveform within [-1, 1]: one that goes beyond is made softer as a whole."""
    peak = float(np.abs(wave).max(initial=0.0))
    return wave / np.float32(peak) if peak > 1 else wave
