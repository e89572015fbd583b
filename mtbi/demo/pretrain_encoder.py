"""Pretrain the miniature speech encoder with CTC: `python -m mtbi.demo.pretrain_encoder RECORDINGS OUT`.

RECORDINGS is a folder of the Free Spoken Digit Dataset. Its speaker theo and recordings 40 to 49 of everybody are never
trained on. Voices of espeak-ng join the four remaining speakers. Digit strings are put together afresh at every step
and changed in speed, pitch, vocal-tract length, tempo, channel, reverberation and noise, with SpecAugment (Park et al.
2019) on top. About 40 minutes on one core. The shipped weights in `mtbi/demo/weights/encoder` were made in these two
phases (docs/miniature-world.md tells how they were measured).
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from mtbi.demo.encoder import BLANK, DemoEncoder, DemoEncoderConfig, frame_mask
from mtbi.demo.speech import ACCENTS, SAMPLE_RATE, VARIANTS, EspeakVoices, join
from mtbi.demo.world import DIGITS, MAX_DIGITS, MIN_DIGITS

UNSEEN_SPEAKER = "theo"
FIRST_TEST_RECORDING = 40

Pool = dict[str, dict[int, list[np.ndarray]]]  # speaker → digit → recordings at 16 kHz


def to_16k(wave: np.ndarray, rate: int) -> np.ndarray:
    """Resample `(samples,)` to 16 kHz."""
    return torchaudio.functional.resample(torch.from_numpy(wave.astype(np.float32)), rate, SAMPLE_RATE).numpy()


def read_recordings(folder: Path) -> dict[str, Pool]:
    """The recordings by part: `train`, `known` (held-out recordings of training speakers) and `unseen`."""
    parts: dict[str, Pool] = {part: defaultdict(lambda: defaultdict(list)) for part in ("train", "known", "unseen")}
    for path in sorted(p for p in folder.rglob("*_*_*.*") if p.suffix in (".wav", ".flac")):
        digit, speaker, number = path.stem.split("_")
        part = "unseen" if speaker == UNSEEN_SPEAKER else "known" if int(number) >= FIRST_TEST_RECORDING else "train"
        parts[part][speaker][int(digit)].append(to_16k(*soundfile.read(path)))
    return parts


def speak_pool(voices: int, rng: random.Random) -> Pool:
    """Every digit three times by each of `voices` espeak-ng voices."""
    espeak = EspeakVoices()
    pool: Pool = {}
    choices = rng.sample([(accent, variant) for accent in ACCENTS for variant in VARIANTS], voices)
    for accent, variant in tqdm(choices, desc="espeak-ng speaks", unit="voice"):
        pool[f"{accent}+{variant}"] = {
            digit: [
                to_16k(
                    espeak.speak(word, f"{accent}+{variant}", rng.randint(110, 240), rng.randint(15, 85)), espeak.sample_rate
                )
                for _ in range(3)
            ]
            for digit, word in enumerate(DIGITS)
        }
    return pool


def change_rate(wave: np.ndarray, factor: float) -> np.ndarray:
    """Play faster (`factor` > 1): speed, pitch and formants change together."""
    return np.interp(np.arange(0, len(wave) - 1, factor), np.arange(len(wave)), wave).astype(np.float32)


def change_channel(wave: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Another microphone, room and background: a random smooth equaliser, decaying echoes, coloured noise."""
    samples = len(wave)
    size = 2 ** (samples + SAMPLE_RATE // 2).bit_length()  # a power of two: fast, and room for the echo's tail
    spectrum = np.fft.rfft(wave, size)
    place = np.linspace(0, 1, len(spectrum))
    decibels = sum(rng.normal(0, 4 * strength) * np.cos(np.pi * k * place * 2 + rng.uniform(0, 6.28)) for k in range(1, 6))
    spectrum *= 10 ** (decibels / 20)
    if rng.random() < 0.3 * strength:
        decay = rng.uniform(0.02, 0.12) * SAMPLE_RATE
        echo = rng.normal(size=int(4 * decay)) * np.exp(-np.arange(int(4 * decay)) / decay) * rng.uniform(0.01, 0.06)
        echo[0] = 1.0
        spectrum *= np.fft.rfft(echo, size)
    wave = np.fft.irfft(spectrum, size)[:samples]
    if rng.random() < 0.7 * strength:
        noise = rng.normal(size=samples)
        noise = noise + rng.uniform(0, 0.95) * np.roll(noise, 1)
        wave = wave + noise * np.sqrt(np.mean(wave**2) / np.mean(noise**2)) * 10 ** (-rng.uniform(8, 45) / 20)
    return wave.astype(np.float32)


@dataclass
class Strings:
    """A batch of digit strings."""

    waveforms: Tensor  #: (strings, samples)
    lengths: Tensor  #: (strings,) samples
    labels: Sequence[list[int]]  #: CTC classes


def make_strings(
    pools: list[tuple[float, Pool]], size: int, batches: int, rng: np.random.Generator, strength: float
) -> Iterator[Strings]:
    """Batches of digit strings of similar length, each string by one speaker.

    `pools` gives the probability of each pool; `strength` scales the changes made to the sound (0 = none, 1 = full).
    """
    strings = []
    for _ in range(size * batches):
        pool = pools[rng.choice(len(pools), p=[share for share, _ in pools])][1]
        clips_of = pool[rng.choice(sorted(pool))]
        digits = rng.integers(0, 10, rng.integers(MIN_DIGITS, MAX_DIGITS + 1)).tolist()
        clips = [clips_of[digit][rng.integers(len(clips_of[digit]))] for digit in digits]
        if strength:
            rates = np.exp(strength * (rng.uniform(-0.22, 0.22) + rng.uniform(-0.08, 0.08, len(clips))))
            clips = [change_rate(clip, rate) * rng.uniform(0.6, 1.4) for clip, rate in zip(clips, rates, strict=True)]
        wave, _ = join(clips, rng)
        strings.append(
            (torch.from_numpy(change_channel(wave, rng, strength) if strength else wave), [digit + 1 for digit in digits])
        )
    strings.sort(key=lambda string: len(string[0]))
    for batch in rng.permutation(batches):
        waves, labels = zip(*strings[batch * size : (batch + 1) * size], strict=True)
        lengths = torch.tensor([len(wave) for wave in waves])
        yield Strings(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, labels)


def warp(features: Tensor, frames: Tensor, rng: np.random.Generator, strength: float) -> tuple[Tensor, Tensor]:
    """Other vocal tracts (mel axis stretched by string) and tempos (time axis stretched by batch), then SpecAugment."""
    strings, longest, mels = features.shape
    tempo = float(np.exp(strength * rng.uniform(-0.25, 0.25)))
    stretched = max(8, round(longest * tempo))
    theta = torch.zeros(strings, 2, 3)
    theta[:, 0, 0] = torch.from_numpy(np.exp(strength * rng.uniform(-0.15, 0.15, strings)))
    theta[:, 0, 2] = torch.from_numpy(strength * rng.uniform(-0.08, 0.08, strings))
    theta[:, 1, 1] = 1
    grid = functional.affine_grid(theta, [strings, 1, stretched, mels], align_corners=False)
    features = functional.grid_sample(features[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    frames = (frames * (stretched / longest)).long().clamp(1, stretched)
    for row in range(strings):
        for _ in range(2):
            low, high = rng.integers(0, mels), rng.integers(0, 7)
            features[row, :, low : low + high] = 0
            start, width = rng.integers(0, stretched), rng.integers(0, 5)
            features[row, start : start + width] = 0
    return features * frame_mask(frames, stretched)[..., None], frames


@torch.no_grad()
def measure(encoder: DemoEncoder, pool: Pool, strings: int = 500) -> float:
    """Share of strings that greedy CTC gets wholly right."""
    right = 0
    for batch in make_strings([(1.0, pool)], 50, strings // 50, np.random.default_rng(0), strength=0):
        features, lengths = encoder.eval()(batch.waveforms, batch.lengths)
        best = encoder.log_probabilities(features).argmax(-1)
        for guess, length, label in zip(best, lengths, batch.labels, strict=True):
            right += [c for c in guess[:length].unique_consecutive().tolist() if c != BLANK] == label
    return right / strings


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own cosine schedule."""

    steps: int
    learning_rate: float
    strength: float  #: of the changes made to the sound
    recordings_share: float  #: of the strings made of recordings; the others are espeak-ng's


#: Strong changes first, for speakers never heard; then weaker ones, for the last few per cent on the known ones.
PHASES = (Phase(2500, 1.5e-3, 1.0, 0.6), Phase(1500, 8e-4, 0.5, 0.7))


def run_phase(
    encoder: DemoEncoder, phase: Phase, pools: list[tuple[float, Pool]], batch_size: int, rng: np.random.Generator
) -> None:
    """Train `encoder` in place."""
    encoder.train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=200, num_training_steps=phase.steps)
    batches = (batch for _ in itertools.count() for batch in make_strings(pools, batch_size, 8, rng, phase.strength))
    bar = tqdm(zip(range(phase.steps), batches, strict=False), desc="encoder", total=phase.steps, unit="step")
    for step, batch in bar:
        with torch.no_grad():
            features, frames = encoder.features(batch.waveforms, batch.lengths)
            features, frames = warp(features, frames, rng, phase.strength)
        hidden, lengths = encoder.encode(features, frames)
        targets = torch.tensor([label for labels in batch.labels for label in labels])
        sizes = torch.tensor([len(labels) for labels in batch.labels])
        log_probabilities = encoder.log_probabilities(hidden).transpose(0, 1)
        loss = functional.ctc_loss(log_probabilities, targets, lengths, sizes, blank=BLANK, zero_infinity=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")


def train(recordings: Path, out: Path, batch_size: int, voices: int, seed: int) -> None:
    """Train, measure on held-out recordings and on the unseen speaker, and save."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    parts = read_recordings(recordings)
    spoken = speak_pool(voices, random.Random(seed))
    encoder = DemoEncoder(DemoEncoderConfig())
    for phase in PHASES:
        pools = [(phase.recordings_share, parts["train"]), (1 - phase.recordings_share, spoken)]
        run_phase(encoder, phase, pools, batch_size, rng)
        print(f"{phase}: {measure(encoder, parts['known']):.1%} of held-out strings wholly right")
        encoder.save(out)
    encoder = DemoEncoder.from_pretrained(out)
    known, unseen = measure(encoder, parts["known"]), measure(encoder, parts["unseen"])
    print(f"{out}: strings wholly right, known speakers {known:.1%}, unseen {unseen:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder with {digit}_{speaker}_{n}.wav or .flac")
    parser.add_argument("out", type=Path, help="folder for the encoder")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--voices", type=int, default=120, help="espeak-ng voices")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    train(options.recordings, options.out, options.batch_size, options.voices, options.seed)


if __name__ == "__main__":
    main()
