"""Pretrain the miniature speech encoder with CTC: `python -m mtbi.demo.pretrain_encoder RECORDINGS OUT`.

RECORDINGS is a folder of the Free Spoken Digit Dataset. Training leaves out its speaker theo, and recordings 40 to 49 of every
speaker. Voices of espeak-ng join the four remaining speakers. Every step makes new digit strings. Some digits are spliced from
two recordings. Each string is changed in speed, pitch, vocal-tract length, tempo, channel, reverberation and noise, with
SpecAugment (Park et al. 2019) on top. The strength of the changes is drawn for each string. Besides CTC, a classifier learns
the digit of each frame; it is not saved. The moving average of the weights is saved. Training takes about 40 minutes on one
core. This script made the shipped weights in `mtbi/demo/weights/encoder`. docs/miniature-world.md describes how they were
measured.
"""

from __future__ import annotations

import argparse
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from mtbi.demo.encoder import BLANK, HOP_SAMPLES, DemoEncoder, DemoEncoderConfig
from mtbi.demo.importer import FILE_NAME, split_of
from mtbi.demo.speech import ACCENTS, SAMPLE_RATE, VARIANTS, EspeakVoices, join
from mtbi.demo.world import DIGITS, MAX_DIGITS, MIN_DIGITS
from mtbi.model.encoders.protocol import frame_mask

FRAMES_A_SECOND = SAMPLE_RATE / (4 * HOP_SAMPLES)
LEARNING_RATE = 2e-3
SMALLEST_STRENGTH = 0.1  #: of the changes to the audio, drawn for each string
LARGEST_STRENGTH = (1.3, 0.7)  #: of the changes to the audio, at the start and at the end of training
RECORDINGS_SHARE = (0.6, 0.8)  #: of strings from recordings, at the start and at the end; the others are espeak-ng's
GAIN_DB = 16  #: largest difference in level between two digits of a string
SPLICED_SHARE = 0.3  #: of digits that are spliced from two recordings
FRAMES_WEIGHT = 0.5  #: of the loss of the frames' classifier, beside CTC
AVERAGE_DECAY = 0.995

Pool = dict[str, dict[int, list[np.ndarray]]]  # speaker → digit → recordings at 16 kHz


def to_16k(wave: np.ndarray, rate: int) -> np.ndarray:
    """Resample `(samples,)` to 16 kHz."""
    return torchaudio.functional.resample(torch.from_numpy(wave.astype(np.float32)), rate, SAMPLE_RATE).numpy()


def read_recordings(folder: Path) -> dict[str, Pool]:
    """The recordings by split: `train`, `test_known` (held-out recordings of training speakers) and `test_unseen`."""
    splits: dict[str, Pool] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for path in sorted(path for path in folder.rglob("*") if FILE_NAME.fullmatch(path.name)):
        digit, speaker, number = path.stem.split("_")
        splits[split_of(speaker, int(number))][speaker][int(digit)].append(to_16k(*soundfile.read(path)))
    return splits


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


def splice(first: np.ndarray, second: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The start of one recording and the end of another of the same word, with a cross-fade of 20 ms."""
    share = rng.uniform(0.25, 0.75)
    cut, second_cut = int(share * len(first)), int(share * len(second))
    half = min(SAMPLE_RATE // 100, cut, second_cut, len(first) - cut, len(second) - second_cut)
    if half < 1:
        return first
    fade = np.linspace(1, 0, 2 * half, dtype=np.float32)
    middle = first[cut - half : cut + half] * fade + second[second_cut - half : second_cut + half] * (1 - fade)
    return np.concatenate([first[: cut - half], middle, second[second_cut + half :]])


def change_channel(wave: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Another microphone, room and background: a random smooth equaliser, decaying echoes, coloured noise."""
    samples = len(wave)
    size = 2 ** (samples + SAMPLE_RATE // 2).bit_length()  # a power of two is fast; the rest holds the echo's tail
    spectrum = np.fft.rfft(wave, size)
    frequency = np.linspace(0, 1, len(spectrum))  # share of the highest
    decibels = sum(rng.normal(0, 4 * strength) * np.cos(np.pi * k * frequency * 2 + rng.uniform(0, 6.28)) for k in range(1, 6))
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
    times: Sequence[list[tuple[float, float]]]  #: (start, end) of each digit in seconds
    strengths: np.ndarray  #: (strings,) of the changes to the audio


def make_strings(
    pools: list[tuple[float, Pool]], size: int, batches: int, rng: np.random.Generator, strengths: tuple[float, float] = (0, 0)
) -> Iterator[Strings]:
    """Batches of digit strings of similar length, each string by one speaker.

    `pools` holds each pool with its probability. The strength of the changes to the audio is drawn for each string between the
    two `strengths` (0 = no change).
    """
    strings = []
    for _ in range(size * batches):
        pool = pools[rng.choice(len(pools), p=[share for share, _ in pools])][1]
        clips_of = pool[rng.choice(sorted(pool))]
        digits = rng.integers(0, 10, rng.integers(MIN_DIGITS, MAX_DIGITS + 1)).tolist()
        clips = [clips_of[digit][rng.integers(len(clips_of[digit]))] for digit in digits]
        if strength := rng.uniform(*strengths):
            for index in np.flatnonzero(rng.random(len(clips)) < SPLICED_SHARE):
                takes = clips_of[digits[index]]
                clips[index] = splice(clips[index], takes[rng.integers(len(takes))], rng)
            rates = np.exp(strength * (rng.uniform(-0.22, 0.22) + rng.uniform(-0.08, 0.08, len(clips))))
            gains = 10 ** (-rng.uniform(0, GAIN_DB, len(clips)) / 20)
            clips = [change_rate(clip, rate) * gain for clip, rate, gain in zip(clips, rates, gains, strict=True)]
        wave, times = join(clips, rng)
        audio = torch.from_numpy(change_channel(wave, rng, strength) if strength else wave)
        strings.append((audio, [digit + 1 for digit in digits], times, strength))
    strings.sort(key=lambda string: len(string[0]))
    for batch in rng.permutation(batches):
        waves, labels, times, drawn = zip(*strings[batch * size : (batch + 1) * size], strict=True)
        lengths = torch.tensor([len(wave) for wave in waves])
        yield Strings(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True), lengths, labels, times, np.array(drawn))


def warp(features: Tensor, frames: Tensor, rng: np.random.Generator, strengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Other vocal tracts (the mel axis stretched for each string) and tempos (the time axis stretched), then SpecAugment.

    `features` are `(strings, frames, mels)`. Returns the new features and their lengths in frames.
    """
    strings, longest, mels = features.shape
    tempo = float(np.exp(strengths.mean() * rng.uniform(-0.25, 0.25)))
    stretched = max(8, round(longest * tempo))
    theta = torch.zeros(strings, 2, 3)
    theta[:, 0, 0] = torch.from_numpy(np.exp(strengths * rng.uniform(-0.15, 0.15, strings)))
    theta[:, 0, 2] = torch.from_numpy(strengths * rng.uniform(-0.08, 0.08, strings))
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
    """Share of strings whose greedy CTC transcript is right."""
    right = 0
    for batch in make_strings([(1.0, pool)], 50, strings // 50, np.random.default_rng(0)):
        features, lengths = encoder.eval()(batch.waveforms, batch.lengths)
        best = encoder.log_probabilities(features).argmax(-1)
        for guess, length, label in zip(best, lengths, batch.labels, strict=True):
            right += [c for c in guess[:length].unique_consecutive().tolist() if c != BLANK] == label
    return right / strings


def frame_labels(batch: Strings, lengths: Tensor, longest: int, stretch: float) -> Tensor:
    """The class spoken at each encoder frame, `(strings, longest)`: blank between words, -100 beyond a string's end."""
    labels = torch.full((len(batch.labels), longest), BLANK)
    for row, (classes, times) in enumerate(zip(batch.labels, batch.times, strict=True)):
        for label, (start, end) in zip(classes, times, strict=True):
            first = round(start * FRAMES_A_SECOND * stretch)
            labels[row, first : max(first + 1, round(end * FRAMES_A_SECOND * stretch))] = label
    return labels.masked_fill(~frame_mask(lengths, longest), -100)


def run(encoder: DemoEncoder, recordings: Pool, spoken: Pool, options: argparse.Namespace) -> DemoEncoder:
    """Train `encoder` in place. Returns the moving average of its weights."""
    rng = np.random.default_rng(options.seed)
    frames_head = torch.nn.Linear(encoder.width, 1 + len(DIGITS))
    parameters = [*encoder.parameters(), *frames_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=200, num_training_steps=options.steps)
    average = AveragedModel(encoder, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    encoder.train()
    bar = tqdm(total=options.steps, desc="encoder", unit="step")
    while bar.n < options.steps:
        done = bar.n / options.steps
        largest, share = (first + (last - first) * done for first, last in (LARGEST_STRENGTH, RECORDINGS_SHARE))
        for batch in make_strings(
            [(share, recordings), (1 - share, spoken)], options.batch_size, 8, rng, (SMALLEST_STRENGTH, largest)
        ):
            with torch.no_grad():
                plain, frames = encoder.features(batch.waveforms, batch.lengths)
                features, frames = warp(plain, frames, rng, batch.strengths)
            hidden, lengths = encoder.encode(features, frames)
            targets = torch.tensor([label for labels in batch.labels for label in labels])
            sizes = torch.tensor([len(labels) for labels in batch.labels])
            log_probabilities = encoder.log_probabilities(hidden).transpose(0, 1)
            loss = functional.ctc_loss(log_probabilities, targets, lengths, sizes, blank=BLANK, zero_infinity=True)
            labels = frame_labels(batch, lengths, hidden.shape[1], features.shape[1] / plain.shape[1])
            loss = loss + FRAMES_WEIGHT * functional.cross_entropy(frames_head(hidden).flatten(0, 1), labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            average.update_parameters(encoder)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    bar.close()
    assert isinstance(average.module, DemoEncoder)
    return average.module


def train(options: argparse.Namespace) -> None:
    """Train and save an encoder, and measure it on held-out recordings and on the unseen speaker."""
    torch.manual_seed(options.seed)
    splits = read_recordings(options.recordings)
    spoken = speak_pool(options.voices, random.Random(options.seed))
    run(DemoEncoder(DemoEncoderConfig()), splits["train"], spoken, options).save(options.out)
    encoder = DemoEncoder.from_pretrained(options.out)
    known, unseen = measure(encoder, splits["test_known"]), measure(encoder, splits["test_unseen"])
    print(f"{options.out}: strings wholly right, known speakers {known:.1%}, unseen {unseen:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, help="folder with {digit}_{speaker}_{n}.wav or .flac")
    parser.add_argument("out", type=Path, help="folder for the encoder")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--voices", type=int, default=120, help="espeak-ng voices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3500)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
