"""The corpus of the miniature world: single spoken digits joined into strings, with word times and right answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mtbi.answers import task_library
from mtbi.audio import codec
from mtbi.corpus import recordings
from mtbi.corpus.manifest import Utterance, read_manifest, write_manifest
from mtbi.demo import world
from mtbi.demo.speech import join
from mtbi.errors import UserError

Pool = dict[str, dict[str, list[Utterance]]]  # speaker → digit word → recordings


@dataclass(frozen=True)
class Split:
    """One split of the corpus."""

    name: str
    digits: str  #: split of the single digits that its strings are made of
    strings: int  #: how many
    seed: int


SPLITS = (
    Split("train", "train", 4000, seed=1),
    Split("dev", "train", 200, seed=2),
    Split("test_known", "test_known", 400, seed=3),
    Split("test_unseen", "test_unseen", 200, seed=4),
)


def make_split(split: Split, digits_folder: Path, out: Path) -> Path:
    """Join single digits of one speaker (manifest made by `mtbi data import fsdd`) into strings. Returns the new manifest.

    The manifest also holds the true time of each word and the right answer to every task. Raises UserError where no speaker
    has all ten digits.
    """
    pool = read_pool(digits_folder / "manifest.jsonl", split.digits)
    speakers = sorted(speaker for speaker, digits in pool.items() if len(digits) == len(world.DIGITS))
    if not speakers:
        raise UserError(
            f"{digits_folder / 'manifest.jsonl'}: no speaker of split {split.digits!r} says all ten digits. "
            "The demo needs files named {digit}_{speaker}_{n}.wav as in the Free Spoken Digit Dataset; "
            "numbers 40 to 49 and speaker theo are its test splits."
        )
    tasks = list(task_library.load(["digits"]))
    draw, pauses = random.Random(split.seed), np.random.default_rng(split.seed)
    waves: dict[str, np.ndarray] = {}
    strings = []
    (out / "audio").mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(split.strings), desc=f"{split.name}: strings", unit="string"):
        speaker = draw.choice(speakers)
        digits = world.random_digits(draw)
        clips = [draw.choice(pool[speaker][world.DIGITS[digit]]) for digit in digits]
        for clip in clips:
            if clip.id not in waves:
                waves[clip.id] = recordings.read(clip, digits_folder)
        wave, times = join((waves[clip.id] for clip in clips), pauses)
        name = f"{split.name}-{number:05d}"
        (out / "audio" / f"{name}.flac").write_bytes(codec.encode(wave))
        answers = {task: world.answer_about(task, digits) for task in tasks}
        seconds = len(wave) / codec.SAMPLE_RATE
        strings.append(make_utterance(name, split.name, speaker, digits, times, seconds, answers))
    write_manifest(out / "manifest.jsonl", strings)
    return out / "manifest.jsonl"


def read_pool(manifest: Path, split: str) -> Pool:
    """The single digits of a split, by speaker and digit word."""
    pool: Pool = defaultdict(lambda: defaultdict(list))
    for utterance in read_manifest(manifest):
        if utterance.split == split:
            pool[utterance.speaker][utterance.text].append(utterance)
    return pool


def make_utterance(
    name: str,
    split: str,
    speaker: str,
    digits: Sequence[int],
    times: list[tuple[float, float]],
    seconds: float,
    answers: dict[str, str],
) -> Utterance:
    """The manifest's entry for a string. `times` are the start and end of each word in seconds."""
    words = [world.DIGITS[digit] for digit in digits]
    return Utterance(
        id=name,
        audio=f"audio/{name}.flac",
        text=" ".join(words),
        speaker=speaker,
        duration_s=round(seconds, 4),
        language="en",
        sample_rate=codec.SAMPLE_RATE,
        split=split,
        words=[(word, round(start, 4), round(end, 4)) for word, (start, end) in zip(words, times, strict=True)],
        answers=answers,
    )
